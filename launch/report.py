"""Writes a page that shows what runs have done, in one file that loads nothing.

  python -m launch.report runs/tiny                     # runs/tiny/report.html
  python -m launch.report runs/seed42 runs/seed43 --out compared.html

A run is a folder `<workdir>/<size>`, or a workdir with all its sizes; several are
compared, side by side. What is missing or broken is a line in the page and here.
"""

import os
import pathlib
import sys

from absl import flags, logging

from launch import process
from vlm_rlaif_jax.settings.build import ConfigError

_OUT = flags.DEFINE_string(
  'out', '', 'File of the page; default: report.html in the first run.'
)


@process.one_line_errors
def main(argv: list[str]) -> None:
  if not argv[1:]:
    raise ConfigError(
      'no run: python -m launch.report RUNS..., each <workdir>/<size> or <workdir>'
    )
  logging.set_verbosity(logging.ERROR)
  from vlm_rlaif_jax.reports.page import page

  path, problems = page.write(
    argv[1:], pathlib.Path(_OUT.value) if _OUT.value else None
  )
  for problem in problems:
    print(problem, file=sys.stderr)
  print(f'Report: {path}')


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'  # it reads files; a device may be in use
  process.prepare()
  process.run(main)
