"""Which stages a command runs: the one that was asked for, after those it still needs.

Nothing here loads JAX: what cannot be is refused at once.
"""

import dataclasses
import importlib
import json
import os
import pathlib
from typing import Any, NamedTuple

from vlm_rlaif_jax.settings import eval, init, label, ppo, pretrain, reward, sft, stage
from vlm_rlaif_jax.settings import sections as settings_of
from vlm_rlaif_jax.settings.build import ConfigError, changes, from_config_dict
from vlm_rlaif_jax.settings.models import COMPUTED, LoraConfig

RUNS = {
  'pretrain': pretrain.PretrainRun,
  'sft': sft.SftRun,
  'label': label.LabelRun,
  'reward': reward.RewardRun,
  'init': init.InitRun,
  'ppo': ppo.PpoRun,
  'eval': eval.EvalRun,
}
SHARED = (  # handed to the other stages of a command, as far as they have it
  'seed', 'base', 'model', 'data', 'world', 'mesh', 'log',
  'sft', 'init', 'label', 'reward',
)  # fmt: skip


class Need(NamedTuple):
  """An artifact that a run reads.

  Attributes:
    field: of the run; names another place than `<workdir>/<size>/<stage>`.
    of_critic: it is the critic's, not the policy's.
    optional: read where it is, not made where it is not.
  """

  stage: str
  size: str
  field: str
  of_critic: bool = False
  optional: bool = False


def plan(
  settings: stage.Run, workdir: pathlib.Path
) -> tuple[list[stage.Run], list[str]]:
  """The runs in their order, and what is to be said about artifacts that are reused.

  Raises:
    ConfigError: an artifact is missing (real sizes), is not where the settings say, or
      was made with other settings (tiny).
  """
  planned: dict[pathlib.Path, stage.Run] = {}
  notes: list[str] = []

  def visit(run: stage.Run) -> None:
    for need in needs(run):
      if getattr(run, need.field):
        _check_named(run, need)
        continue
      folder = workdir / need.size / need.stage
      if folder in planned:
        continue
      made, known = _other(run, need), _lineage_of(folder)
      if known is None:
        if not need.optional:
          make(made, folder)
        continue
      wanted = made.lineage
      differing = changes({n: known.get(n, v) for n, v in wanted.items()}, wanted)
      if not differing:
        continue
      said = f'{folder}: made with other settings: {"; ".join(differing)}'
      if settings.size != 'tiny' or settings.checkpoint.on_change == 'ignore':
        notes.append(f'{said}; it is used as it is')
      elif settings.checkpoint.on_change == 'restart':
        make(made, folder)
      else:
        raise ConfigError(f'{said}. {_remedies(settings, need, folder)}')

  def make(run: stage.Run, folder: pathlib.Path) -> None:
    visit(run)
    if {settings.size, run.size} != {'tiny'}:
      raise ConfigError(
        f'{folder}: no {run.stage} artifact; make it with python -m launch.train '
        f'--config configs/{run.stage}.py:{run.size} --workdir={workdir}'
      )
    planned[folder] = run

  visit(settings)
  jobs = [*planned.values(), settings]
  if settings.stage == 'ppo' and settings.size == 'tiny':
    jobs.append(_other(settings, Need('eval', 'tiny', '')))
  return jobs, list(dict.fromkeys(notes))


def needs(settings: stage.Run) -> list[Need]:
  """What a run reads, in the order in which it is made."""
  size = settings.size
  sft = Need('sft', size, 'sft')
  if isinstance(settings, label.LabelRun | init.InitRun):
    return [sft]
  if isinstance(settings, reward.RewardRun):
    return [sft, Need('label', size, 'pairs')]
  if isinstance(settings, eval.EvalRun):
    asked = set(settings.eval.models)
    stages = {
      'sft': asked - {'base'},
      'init': asked & {'init'},
      'ppo': asked & {'rlaif'},
    }
    return [Need(stage, size, stage) for stage, readers in stages.items() if readers]
  if isinstance(settings, ppo.PpoRun):
    found, critics = [sft], settings.critic_size
    if not settings.one_base:
      found.append(Need('sft', critics, 'critic_sft', of_critic=True))
    if settings.label or not settings.reward:
      found.append(Need('label', critics, 'label', of_critic=True, optional=True))
    found.append(Need('reward', critics, 'reward', of_critic=True))
    return [*found, Need('init', size, 'init')]
  return []


def _other(settings: stage.Run, need: Need) -> stage.Run:
  """The settings of another stage, with all that it shares with this one."""
  made = _configured(need.stage, need.size)
  shared: dict[str, Any] = {n: getattr(settings, n, '') for n in SHARED}
  if isinstance(settings, ppo.PpoRun):
    if need.of_critic and not settings.one_base:
      shared |= {
        'base': settings.critic_base,
        'model': settings.critic,
        'sft': settings.critic_sft,
      }
    if settings.label:
      shared['pairs'] = str(pathlib.Path(settings.label) / 'pairs.json')
  shared['checkpoint'] = dataclasses.replace(
    made.checkpoint, on_change=settings.checkpoint.on_change
  )
  # A stage's own section has its name, which is a place of it elsewhere.
  fields = {field.name for field in dataclasses.fields(made)} - {need.stage}
  try:
    made = dataclasses.replace(made, **{n: shared[n] for n in fields & shared.keys()})
  except ValueError as error:
    raise ConfigError(f'stage {need.stage}, made before: config.{error}') from None
  return one_network(made)


def one_network(settings: stage.Run) -> stage.Run:
  """Where PPO has one base for all roles, `config.critic` follows `config.model`.

  Raises:
    ConfigError: the critic was edited, into another network, or is of another size;
      or it stands on a base of its own that has no SFT.
  """
  if not isinstance(settings, ppo.PpoRun):
    return settings
  named = settings.critic.name
  if named in settings_of.SIZES and named != settings.critic_size:
    raise ConfigError(
      f"config.critic_size: the critic's network is that of {named!r}, got "
      f'{settings.critic_size!r}'
    )
  if not settings.one_base:
    places = [os.path.abspath(path) for path in (settings.base, settings.critic_base)]
    elsewhere = settings.critic_base and places[0] != places[1]
    if elsewhere and settings.critic_size == settings.size and not settings.critic_sft:
      raise ConfigError(
        f"config.critic_sft: stage sft of size {settings.size} tunes the policy's "
        f'base; name the SFT of critic_base {settings.critic_base}, or '
        f"'{stage.MERGED}' if it needs none"
      )
    return settings
  critic, wanted = settings.critic.identity, settings.model.identity
  if critic == wanted:
    return settings
  configured = _configured('ppo', settings.size)
  if critic != configured.critic.identity:  # type: ignore[attr-defined]
    raise ConfigError(
      'config.critic: stands on the base of config.model and must be the same network; '
      f'model -> critic: {"; ".join(changes(wanted, critic))}'
    )
  own = {name: getattr(settings.critic, name) for name in COMPUTED}
  return dataclasses.replace(
    settings, critic=dataclasses.replace(settings.model, **own)
  )


def loras(settings: stage.Run) -> tuple[LoraConfig, LoraConfig]:
  """Adapters of PPO's actor and critic, as the stages that make them are configured."""
  size = getattr(settings, 'critic_size', settings.size)
  made = [
    _configured(stage, of) for stage, of in (('init', settings.size), ('reward', size))
  ]
  return made[0].lora, made[1].lora  # type: ignore[attr-defined]


def _configured(stage: str, size: str) -> stage.Run:
  """A stage as its config file has it."""
  module = importlib.import_module(f'configs.{stage}')
  return from_config_dict(RUNS[stage], module.get_config(size))


def _lineage_of(folder: pathlib.Path) -> dict | None:
  """What a finished stage says that it was made from; None where there is none."""
  path = folder / 'summary.json'
  try:
    return json.loads(path.read_text()).get('lineage', {})
  except FileNotFoundError:
    return None
  except OSError as error:
    raise ConfigError(f'{path}: cannot be read ({error.strerror})') from None
  except (ValueError, AttributeError):
    raise ConfigError(f'{path}: damaged, expected a JSON object') from None


def _check_named(settings: stage.Run, need: Need) -> None:
  """Refuses a place that the settings name and where the artifact is not."""
  named = getattr(settings, need.field)
  place, where = pathlib.Path(named), f'config.{need.field}: {named}'
  if need.field == 'pairs':
    if not place.is_file():
      raise ConfigError(f'{where}: no such file')
    return
  if need.stage == 'sft' and named == stage.MERGED:
    return
  if not place.is_dir():
    raise ConfigError(f'{where}: no such folder')
  mark = 'summary.json' if need.stage == 'label' else 'artifact/artifact.json'
  if not (place / mark).is_file():
    raise ConfigError(
      f'{where}: has no {mark}, expected a folder of stage {need.stage}, as '
      f'runs/{need.size}/{need.stage}'
    )


def _remedies(settings: stage.Run, need: Need, folder: pathlib.Path) -> str:
  """What a user can do about an artifact of other settings."""
  ways = ['another --workdir', '--config.checkpoint.on_change=restart to make it again']
  if getattr(settings, need.field, None) == '':
    place = folder / 'pairs.json' if need.field == 'pairs' else folder
    ways.append(f'--config.{need.field}={place} to use it as it is')
  return f'Give {", ".join(ways[:-1])} or {ways[-1]}'
