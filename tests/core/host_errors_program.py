"""What each process of `test_hosts` runs where hosts differ, or one of them fails."""

import dataclasses
import os
import pathlib
import sys

import jax
from absl import app, logging

from launch import process
from vlm_rlaif_jax.core import host_failures, hosts
from vlm_rlaif_jax.settings.sft import SftRun


def differ(what: str) -> None:
  """Host 1 has another seed, other code or other data, or lacks a base or a folder."""
  mine = jax.process_index()
  if what == 'seed':
    settings = dataclasses.replace(SftRun(), seed=mine)
    hosts.agree({'--config': lambda: dataclasses.asdict(settings)})
  elif what == 'base':
    from configs import models  # all that reads weights, which the others do without
    from vlm_rlaif_jax.weights import bases

    here = pathlib.Path(sys.argv[1]) / 'none' if mine else bases.TINY
    bases.load(str(here), models.tiny())
  elif what == 'code':
    hosts.agree({'--config': lambda: 1, 'code': lambda: f'version {mine}'})
  elif what == 'folder':  # not shared; each has what an earlier start left
    disk = pathlib.Path(sys.argv[1]) / f'disk-{mine}'
    (disk / 'runs').mkdir(parents=True)
    (disk / 'runs' / '.hosts').write_text('every host must see this file\n')
    os.chdir(disk)
    hosts.shared_folder(pathlib.Path('runs'))
  elif what == 'workdir':
    hosts.shared_folder(pathlib.Path(sys.argv[1]) / f'mount-{mine}')
  else:
    root = pathlib.Path(sys.argv[1]) / str(mine) / 'instructions'
    root.mkdir(parents=True)
    (root / 'rl.json').write_text(f'[{mine}]')
    hosts.agree({'data': lambda: hosts.data_fingerprint(root.parent)})


def fail(host: int) -> None:
  """One host fails by itself while the others wait for it in a collective."""
  if jax.process_index() == host:
    raise OSError(28, 'No space left on device', 'state.bin')
  hosts.barrier('that the host never reaches')


@process.one_line_errors
def main(argv) -> None:
  logging.set_verbosity(logging.ERROR)
  process.join()
  host_failures.watch()
  kind, what = argv[2].split('-')
  if kind == 'fail':
    fail(int(what))
  else:
    differ(what)


if __name__ == '__main__':
  app.run(main)
