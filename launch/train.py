"""Runs a stage of the method.

  python -m launch.train --config configs/ppo.py                  # all of it, tiny, CPU
  python -m launch.train --config configs/ppo.py:7b --workdir=/data/runs

On the built-in world, earlier artifacts that are missing are made first, and an
evaluation follows PPO (not with --nofollow). In the real sizes a missing artifact is an
error with the command that makes it.
"""

import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from launch import jobs, process
from vlm_rlaif_jax.settings import describe, stages
from vlm_rlaif_jax.settings.build import ConfigError, from_config_dict
from vlm_rlaif_jax.settings.stage import Run

_CONFIG = config_flags.DEFINE_config_file('config', None, 'configs/<stage>.py[:size]')
_WORKDIR = flags.DEFINE_string(
  'workdir', 'runs', 'Folder of <size>/<stage>/; default: runs.'
)
_PRINT = flags.DEFINE_bool(
  'print_config', False, 'Print every setting with its value and meaning, and exit.'
)
_FOLLOW = flags.DEFINE_bool(
  'follow', True, 'Also run what follows the stage: evaluation, after PPO on the world.'
)


@process.one_line_errors
def main(argv: list[str]) -> None:
  process.reject_arguments(argv)
  settings = settings_of_flags()
  if _PRINT.value:
    sys.stdout.write(describe.text(settings))
    return
  workdir = pathlib.Path(_WORKDIR.value)
  runs, notes = jobs.resolve_jobs(settings, workdir, follow=_FOLLOW.value)
  process.start()
  process.check_one_process([run.stage for run in runs if stages.of(run).one_process])
  import jax

  from vlm_rlaif_jax.core import chips
  from vlm_rlaif_jax.plan import fit
  from vlm_rlaif_jax.reports import terminal
  from vlm_rlaif_jax.reports.page import page
  from vlm_rlaif_jax.stages import run as run_stage

  for run in runs:
    fit.check(run, jax.devices(), chips.memory(), jobs.loras(run))
  terminal.announce(settings, runs, notes)
  for number, run in enumerate(runs, 1):
    with terminal.stage(run, f'{number}/{len(runs)}') as report_done:
      report_done(run_stage(run, workdir))
  names = [run.stage for run in runs]
  terminal.table(workdir / settings.size, names)
  page.write_after(workdir / settings.size, names)


def settings_of_flags() -> Run:
  """Returns the command line as frozen settings."""
  config = _CONFIG.value
  if config is None:
    raise ConfigError('--config is missing: --config configs/<stage>.py, see configs/')
  try:
    stage = config.get('stage', '')
  except OSError as error:  # how ml_collections says that there is no such file
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raise ConfigError(f'--config: {lines[-1]}') from None
  specs = stages.every()
  if stage not in specs:
    names = ', '.join(f'configs/{name}.py' for name in specs)
    raise ConfigError(
      f'config.stage: {stage!r} is no stage; give --config one of {names}, or a copy'
    )
  return jobs.completed(from_config_dict(specs[stage].settings, config))


if __name__ == '__main__':
  process.prepare()
  process.run(main)
