"""Runs a stage of the method.

  python -m launch.train --config configs/ppo.py                  # all of it, tiny, CPU
  python -m launch.train --config configs/ppo.py:7b --workdir=/data/runs

In the tiny size, earlier artifacts that are missing are made first, and an evaluation
follows PPO. In the real sizes a missing artifact is an error with the command that
makes it.
"""

import pathlib

from absl import flags, logging
from ml_collections import config_flags

from launch import process
from launch.jobs import RUNS, loras, one_network, plan
from vlm_rlaif_jax.reports import terminal
from vlm_rlaif_jax.settings import stage
from vlm_rlaif_jax.settings.build import ConfigError, from_config_dict

_CONFIG = config_flags.DEFINE_config_file('config', None, 'configs/<stage>.py[:size]')
_WORKDIR = flags.DEFINE_string('workdir', 'runs', 'where <size>/<stage>/ folders go')

ONE_HOST = {'pretrain'}  # a network for one laptop


@process.one_line_errors
def main(argv) -> None:
  process.no_words(argv)
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  settings = settings_of_flags()
  workdir = pathlib.Path(_WORKDIR.value)
  jobs, notes = plan(settings, workdir)
  process.start()
  process.one_host({job.stage for job in jobs} & ONE_HOST)
  import jax

  from vlm_rlaif_jax import stages
  from vlm_rlaif_jax.core import chips
  from vlm_rlaif_jax.plan import fit

  for job in jobs:
    fit.check(job, jax.devices(), chips.memory(), loras(job))
  terminal.announce(settings, jobs, notes)
  for number, job in enumerate(jobs, 1):
    with terminal.stage(job, f'{number}/{len(jobs)}') as done:
      done(stages.run(job, workdir))
  terminal.table(workdir / settings.size, [job.stage for job in jobs])


def settings_of_flags() -> stage.Run:
  """The command line as frozen settings."""
  config = _CONFIG.value
  if config is None:
    raise ConfigError('--config is missing: --config configs/<stage>.py, see configs/')
  try:
    stage = config.get('stage', '')
  except OSError as error:  # how ml_collections says that there is no such file
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raise ConfigError(f'--config: {lines[-1]}') from None
  if stage not in RUNS:
    raise ConfigError(f'config.stage: choose one of {", ".join(RUNS)}')
  return one_network(from_config_dict(RUNS[stage], config))


if __name__ == '__main__':
  process.prepare()
  process.run(main)
