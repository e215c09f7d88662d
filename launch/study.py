"""Runs the cells of `configs/study.py` and writes a table of what each shows.

  python -m launch.study --workdir=runs/study
  python -m launch.study --cells=default,inverted --seeds=42,43
  python -m launch.study --table                    # of what has run; runs nothing
  python -m launch.study --table --former=old/study.json

A cell is a run folder a seed, `<workdir>/<cell>-<seed>`, made by `launch.train`, stage
by stage; a stage that is done is not run again (unless one before it is, or its flags
have changed), and one that refuses to run (a gate, say) ends its cell, not the study.
Stages that a cell shares with the default run are links to it.

In `<workdir>`, as JSON and as a table in Markdown: `study`, what the cells show;
`default`, the default run before and after RLAIF, and `stages`, what its stages report;
`kinds`, what it does to each kind of question. `study.html` is a page with plots.
"""

import importlib
import json
import pathlib
import sys

from absl import flags

from launch import cells, process
from vlm_rlaif_jax.reports import study_default, study_kinds, study_table
from vlm_rlaif_jax.reports.page import study
from vlm_rlaif_jax.settings.build import ConfigError

_WORKDIR = flags.DEFINE_string('workdir', 'runs/study', 'Folder of the cells.')
_CELLS = flags.DEFINE_list('cells', [], 'Cells to run, in this order; none: all.')
_SEEDS = flags.DEFINE_list(
  'seeds',
  [],
  'Seeds to run; none: those of the study. The table has all that have run.',
)
_TABLE = flags.DEFINE_bool('table', False, 'Write the table of what has run, and exit.')
_FORMER = flags.DEFINE_string(
  'former',
  '',
  'study.json of a former study: the table has its cells that did not run.',
)


@process.one_line_errors
def main(argv: list[str]) -> None:
  process.reject_arguments(argv)
  config = importlib.import_module('configs.study').get_config()
  names, seeds = cells.choose(config, _CELLS.value, _SEEDS.value)
  root = pathlib.Path(_WORKDIR.value)
  refused = {}
  if not _TABLE.value:
    for seed in seeds:
      for name in names:
        cell = config['cells'][name]
        if stage := cells.run_cell(root, name, cell, seed, cells.execute):
          refused[f'{name}-{seed}'] = stage
  there = cells.seeds_there(root, config['cells'], config['seeds'])
  results = study_table.read(root, config['cells'], there)
  if _FORMER.value:
    results = study_table.with_former(results, _former())
  kinds = study_kinds.by_kind(root, cells.DEFAULT, there)
  runs = study_default.read(root, cells.DEFAULT, there)
  root.mkdir(parents=True, exist_ok=True)
  (root / 'study.html').write_text(study.page(results, kinds), encoding='utf-8')
  numbers = {'study': results, 'default': study_default.numbers(runs), 'kinds': kinds}
  for name, value in numbers.items():
    (root / f'{name}.json').write_text(json.dumps(value, indent=2) + '\n')
  tables = {
    'study': study_table.table(results),
    'default': study_default.results(runs),
    'stages': study_default.by_stage(runs),
    'kinds': study_kinds.table(kinds),
  }
  for name, table in tables.items():
    text = '\n'.join(table) + '\n'
    (root / f'{name}.md').write_text(text)
    sys.stdout.write(f'{text}\n')
  if refused:
    listed = ', '.join(f'{stage} of {name}' for name, stage in refused.items())
    raise ConfigError(f'refused, each with a line above: {listed}; the rest has run')


def _former() -> dict:
  """Returns what `--former` names."""
  try:
    former = json.loads(pathlib.Path(_FORMER.value).read_text())
    if not all('claim' in cell for cell in former.values()):
      raise ValueError('its cells have no claims')
  except (OSError, ValueError, AttributeError, TypeError) as error:
    raise ConfigError(
      f'--former={_FORMER.value}: expected the study.json of a study; {error}'
    ) from None
  return former


if __name__ == '__main__':
  process.run(main)
