"""Resolves which stages a command runs: the requested one, after those it still needs.

Nothing here loads JAX, so that a wrong setting is refused at once.
"""

import dataclasses
import importlib
import json
import pathlib

from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.build import ConfigError, changes, from_config_dict
from vlm_rlaif_jax.settings.constants import WORLD_SIZES
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.stage import MERGED, Requirement, Run
from vlm_rlaif_jax.weights.artifact_paths import result_path


def resolve_jobs(
  settings: Run, workdir: pathlib.Path, make_all: bool = False, follow: bool = True
) -> tuple[list[Run], list[str]]:
  """Returns the runs of a command in their order, and notes on reused artifacts.

  Args:
    make_all: whether missing artifacts are made, and stages that follow run, in every
      size; else in those of the built-in world.
    follow: whether stages that follow run at all.

  Raises:
    ConfigError: an artifact is missing and not made, is not where the settings say, or
      was made with other settings (built-in world).
  """
  resolved: dict[pathlib.Path, Run] = {}
  notes: list[str] = []

  def visit(run: Run) -> None:
    for needed in stages.of(run).requires(run):
      if needed.field and getattr(run.inputs, needed.field):  # type: ignore[attr-defined]
        _check_named(run, needed)
        continue
      folder = workdir / needed.size / needed.stage
      if folder in resolved:
        continue
      other, lineage = _settings_of(run, needed), _lineage_of(folder)
      if lineage is None:
        if not needed.optional:
          make(other, folder)
        continue
      expected = other.lineage
      old = {name: lineage.get(name, value) for name, value in expected.items()}
      differing = changes(old, expected)
      if not differing:
        continue
      message = f'{folder}: made with other settings: {"; ".join(differing)}'
      if settings.size not in WORLD_SIZES or settings.checkpoint.on_change == 'ignore':
        notes.append(f'{message}; it is used as it is')
      elif settings.checkpoint.on_change == 'restart':
        make(other, folder)
      else:
        raise ConfigError(f'{message}. {_remedies(settings, needed, folder)}')

  def make(run: Run, folder: pathlib.Path) -> None:
    visit(run)
    if not make_all and not {settings.size, run.size} <= {*WORLD_SIZES}:
      raise ConfigError(
        f'{folder}: no {run.stage} artifact; make it with python -m launch.train '
        f'--config configs/{run.stage}.py:{run.size} --workdir={workdir}'
      )
    resolved[folder] = run

  visit(settings)
  jobs = [*resolved.values(), settings]
  if follow and (make_all or settings.size in WORLD_SIZES):
    following = [Requirement(x, settings.size, '') for x in stages.of(settings).then]
    jobs += [_settings_of(settings, needed) for needed in following]
  return jobs, list(dict.fromkeys(notes))


def _settings_of(run: Run, needed: Requirement) -> Run:
  """Returns the settings of another stage, with all that it shares with this run."""
  other = configured(needed.stage, needed.size)
  shared = run.inputs_for(needed)
  inputs = getattr(other, 'inputs', None)
  if inputs is not None:
    names = {field.name for field in dataclasses.fields(inputs)}
    own = {name: shared['inputs'][name] for name in names & shared['inputs'].keys()}
    shared['inputs'] = dataclasses.replace(inputs, **own)
  shared['checkpoint'] = dataclasses.replace(
    other.checkpoint, on_change=run.checkpoint.on_change
  )
  fields = {field.name for field in dataclasses.fields(other)}
  try:
    other = dataclasses.replace(other, **{n: shared[n] for n in fields & shared.keys()})
  except ValueError as error:
    raise ConfigError(f'stage {needed.stage}, made before: config.{error}') from None
  return completed(other)


def completed(settings: Run) -> Run:
  """Returns the settings with what follows from them filled in (`Run.completed`)."""
  return settings.completed(lambda: configured(settings.stage, settings.size))


def loras(settings: Run) -> tuple[LoraConfig, LoraConfig]:
  """Returns the adapters of PPO's actor and critic, as their stages are configured."""
  size = getattr(settings, 'critic_size', settings.size)
  init, reward = configured('init', settings.size), configured('reward', size)
  return init.lora, reward.lora  # type: ignore[attr-defined]


def configured(stage: str, size: str) -> Run:
  """Returns a stage's settings as its config file has them."""
  module = importlib.import_module(f'configs.{stage}')
  return from_config_dict(stages.every()[stage].settings, module.get_config(size))


def _lineage_of(folder: pathlib.Path) -> dict | None:
  """Returns what a finished stage was made from; None where there is no such stage."""
  path = folder / 'summary.json'
  try:
    return json.loads(path.read_text()).get('lineage', {})
  except FileNotFoundError:
    return None
  except OSError as error:
    raise ConfigError(f'{path}: cannot be read ({error.strerror})') from None
  except (ValueError, AttributeError):
    raise ConfigError(f'{path}: damaged, expected a JSON object') from None


def _check_named(run: Run, needed: Requirement) -> None:
  """Raises ConfigError where an artifact is not at the place that the settings name."""
  path = getattr(run.inputs, needed.field)  # type: ignore[attr-defined]
  place, field = pathlib.Path(path), f'config.inputs.{needed.field}: {path}'
  if needed.field == 'pairs':
    if not place.is_file():
      raise ConfigError(f'{field}: no such file')
    return
  if needed.stage == 'sft' and path == MERGED:
    return
  if not place.is_dir():
    raise ConfigError(f'{field}: no such folder')
  result = stages.every()[needed.stage].result
  if not result_path(place, result).is_file():
    raise ConfigError(
      f'{field}: has no {result}, expected a folder of stage {needed.stage}, as '
      f'runs/{needed.size}/{needed.stage}'
    )


def _remedies(settings: Run, needed: Requirement, folder: pathlib.Path) -> str:
  """Returns what a user can do about an artifact that was made with other settings."""
  ways = ['another --workdir', '--config.checkpoint.on_change=restart to make it again']
  if getattr(getattr(settings, 'inputs', None), needed.field, None) == '':
    place = folder / 'pairs.json' if needed.field == 'pairs' else folder
    ways.append(f'--config.inputs.{needed.field}={place} to use it as it is')
  return f'Give {", ".join(ways[:-1])} or {ways[-1]}'
