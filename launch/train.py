"""Runs a stage of the method.

  python -m launch.train --config configs/ppo.py                  # all of it, tiny, CPU
  python -m launch.train --config configs/ppo.py:7b --workdir=/data/runs

In the tiny size, earlier artefacts that are missing are made first, and an evaluation
follows PPO. In the real sizes a missing artefact is an error with the command that
makes it.
"""

import dataclasses
import importlib
import pathlib

from absl import flags, logging
from ml_collections import config_flags

from launch import process
from vlm_rlaif_jax.config import stages as settings_of
from vlm_rlaif_jax.config.build import ConfigError, from_config_dict
from vlm_rlaif_jax.config.models import LoraConfig

_CONFIG = config_flags.DEFINE_config_file('config', None, 'configs/<stage>.py[:size]')
_WORKDIR = flags.DEFINE_string('workdir', 'runs', 'where <size>/<stage>/ folders go')

RUNS = {
  'base': settings_of.BaseRun,
  'sft': settings_of.SftRun,
  'label': settings_of.LabelRun,
  'reward': settings_of.RewardRun,
  'init': settings_of.InitRun,
  'ppo': settings_of.PpoRun,
  'eval': settings_of.EvalRun,
}
NEEDS = {  # earlier stages, in the order in which they are made
  'base': (),
  'sft': (),
  'label': ('sft',),
  'reward': ('sft', 'label'),
  'init': ('sft',),
  'ppo': ('sft', 'label', 'reward', 'init'),
  'eval': ('sft', 'label', 'reward', 'init', 'ppo'),
}
ONE_HOST = {'base'}  # a network for one laptop
SHARED = ('seed', 'base', 'data', 'world', 'mesh', 'log')  # handed to earlier stages


@process.one_line_errors
def main(argv) -> None:
  del argv
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  settings = settings_of_flags()
  workdir = pathlib.Path(_WORKDIR.value)
  jobs = plan(settings, workdir)
  process.start()
  process.one_host({job.stage for job in jobs} & ONE_HOST)
  import jax

  from vlm_rlaif_jax import stages
  from vlm_rlaif_jax.core import chips
  from vlm_rlaif_jax.plan import fit
  from vlm_rlaif_jax.train import report

  for job in jobs:
    fit.check(job, jax.devices(), chips.memory(), loras(job))
  report.announce(settings, jobs)
  for number, job in enumerate(jobs, 1):
    with report.stage(job, f'{number}/{len(jobs)}') as done:
      done(stages.run(job, workdir))
  report.table(workdir / settings.size, [job.stage for job in jobs])


def plan(settings: settings_of.Run, workdir: pathlib.Path) -> list[settings_of.Run]:
  """The stage that was asked for, after those that it still needs."""
  stage = settings.stage
  needed = NEEDS[stage]
  if isinstance(settings, settings_of.EvalRun):
    wanted = {'sft': 'sft', 'init': 'init', 'rlaif': 'ppo'}
    asked = {wanted[m] for m in settings.eval.models if m in wanted}
    needed = needed if 'ppo' in asked else tuple(s for s in needed if s in asked)
  missing = [
    name
    for name in needed
    if not getattr(settings, name, '')
    and not (workdir / _size(settings, name) / name / 'summary.json').exists()
  ]
  if missing and settings.size != 'tiny':
    name = missing[0]
    raise ConfigError(
      f'{workdir / _size(settings, name) / name}: no {name} artefact; make it with '
      f'python -m launch.train --config configs/{name}.py:{_size(settings, name)} '
      f'--workdir={workdir}'
    )
  jobs = [_earlier(settings, name) for name in missing] + [settings]
  if stage == 'ppo' and settings.size == 'tiny':
    jobs.append(_earlier(settings, 'eval'))
  return jobs


def _size(settings: settings_of.Run, stage: str) -> str:
  """Which size an earlier stage has: PPO's reward model has the critic's."""
  if isinstance(settings, settings_of.PpoRun) and stage in ('label', 'reward'):
    return settings.critic_size
  return settings.size


def _earlier(settings: settings_of.Run, stage: str) -> settings_of.Run:
  """The settings of another stage: the same size, data and seed."""
  module = importlib.import_module(f'configs.{stage}')
  made = from_config_dict(RUNS[stage], module.get_config(settings.size))
  return dataclasses.replace(made, **{name: getattr(settings, name) for name in SHARED})


def loras(settings: settings_of.Run) -> tuple[LoraConfig, LoraConfig]:
  """Adapters of PPO's actor and critic, as the stages that make them are configured."""
  size = getattr(settings, 'critic_size', settings.size)
  made = [
    from_config_dict(
      RUNS[stage], importlib.import_module(f'configs.{stage}').get_config(of)
    )
    for stage, of in (('init', settings.size), ('reward', size))
  ]
  return made[0].lora, made[1].lora  # type: ignore[attr-defined]


def settings_of_flags() -> settings_of.Run:
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
  return from_config_dict(RUNS[stage], config)


if __name__ == '__main__':
  process.prepare()
  process.run(main)
