"""Keeps PPO from starting on a judge or a reward model that is not good enough.

The judge is compared by what the stage label has measured, before anything is loaded;
the reward model by what it does on PPO's own base.
"""

import dataclasses
import pathlib
from typing import Any

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.train import console, labeler, pairwise
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import artifacts
from vlm_rlaif_jax.weights.bases import Base


@dataclasses.dataclass(frozen=True)
class Check:
  """A share that has to reach a limit of `config.gate`.

  Attributes:
    name: of the limit.
    folder: of the stage that measured the share.
    value: the share; None if it was not measured.
    claim: how a message begins that ends in the share.
    required: whether a share that was not measured stops the run.
  """

  name: str
  folder: pathlib.Path
  value: float | None
  claim: str
  required: bool = False


def check_gate(settings: PpoRun, run: RunContext) -> None:
  """Raises ArtifactError if the judge is below its limit, before anything is loaded.

  Or if the accuracy of the reward model, which `check_reward` compares later, cannot be
  measured.
  """
  if settings.gate.override:
    return
  for check in _checks(settings, run):
    limit = getattr(settings.gate, check.name)
    if not limit:
      continue
    demand = f'config.gate.{check.name} asks for {limit:.1%}'
    if not isinstance(check.value, int | float):
      path = check.folder / 'summary.json'
      message = f'{demand}, which is not measured: {path} has none'
      if check.required:
        raise artifacts.ArtifactError(
          f'{message}; run configs/reward.py again, or --config.gate.override=True'
        )
      console.say(f'  {message}')
    elif not check.value >= limit:  # NaN is not
      raise artifacts.ArtifactError(
        f'{check.claim} {check.value:.1%}, {demand}; PPO would '
        'learn noise. Improve it, or --config.gate.override=True'
      )
  if settings.gate.reward_accuracy and not held_out_file(settings, run).is_file():
    raise _unmeasured(settings, run, 'there is no such file')


def held_out_file(settings: PpoRun, run: RunContext) -> pathlib.Path:
  """Returns the file of the pairs that the reward model was not trained on."""
  folder = run.artifact('reward', settings.inputs.reward, settings.critic_size)
  return folder / pairwise.HELD_OUT


def check_reward(settings: PpoRun, run: RunContext, measured: dict[str, Any]) -> None:
  """Raises ArtifactError if the reward model is below its limit.

  Args:
    measured: of `reward_accuracy.measure`.
  """
  limit = settings.gate.reward_accuracy
  if not measured['pairs']:
    raise _unmeasured(settings, run, 'it has no usable pair')
  value, (low, high) = measured['accuracy'], measured['accuracy_interval']
  view = ' and without the video' if measured.get('blind') else ''
  claim = (
    f'the reward model, its base in {measured["residency"]}{view}, ranks '
    f'{measured["pairs"]} held-out pairs right on {value:.1%} '
    f'(95 % interval {low:.1%} to {high:.1%})'
  )
  demand = f'config.gate.reward_accuracy asks for {limit:.1%}'
  if not value >= limit:  # NaN is not
    raise artifacts.ArtifactError(
      f'{claim}, {demand}; PPO would learn noise. Improve it, or '
      '--config.gate.override=True'
    )
  doubt = '' if low >= limit else f'; {demand}, which the interval does not exclude'
  console.say(f'  {claim}{doubt}')


def _unmeasured(
  settings: PpoRun, run: RunContext, reason: str
) -> artifacts.ArtifactError:
  """Returns the error about a reward model whose accuracy cannot be measured."""
  return artifacts.ArtifactError(
    f'config.gate.reward_accuracy asks for {settings.gate.reward_accuracy:.1%}, which '
    f'is not measured: {held_out_file(settings, run)}: {reason}; PPO might learn '
    'noise. Run configs/reward.py, which writes it (a stage of an earlier version '
    'is trained again); or --config.gate.override=True'
  )


def _checks(settings: PpoRun, run: RunContext) -> list[Check]:
  """Returns what the summaries of the stages label and reward measured."""
  inputs, size = settings.inputs, settings.critic_size
  folder = run.artifact('label', inputs.label, size)
  reward_folder = run.artifact('reward', inputs.reward, size)
  label = artifacts.read_summary(folder) or {}
  reward = artifacts.read_summary(reward_folder) or {}
  return [
    Check(
      'judge_agreement',
      folder,
      label.get('agreement_kept', label.get('agreement')),
      "the judge's labels agree with the truth on",
    ),
    Check(
      'order_agreement',
      folder,
      label.get('order_agreement'),
      'the judge agrees with itself, answers swapped, on',
    ),
    Check(
      'grounding',
      reward_folder,
      _lead(reward.get('accuracy'), reward.get('accuracy_without_video')),
      'the reward model ranks held-out pairs better with the video than without by',
      required=True,
    ),
  ]


def _lead(share: float | None, other: float | None) -> float | None:
  """Returns the difference of two shares; None if one was not measured."""
  return None if share is None or other is None else share - other


def say_other_pairs(
  settings: PpoRun, run: RunContext, reward: artifacts.Artifact
) -> None:
  """Prints it where the pairs were labeled again since the reward model was trained."""
  if settings.inputs.reward and not settings.inputs.label:
    return  # a reward model from elsewhere
  folder = run.artifact('label', settings.inputs.label, settings.critic_size)
  pairs = folder / 'pairs.json'
  trained_on = reward.info.get('pairs')
  if not pairs.is_file() or trained_on in (None, hosts.files_fingerprint([pairs])):
    return
  console.say(
    f'  {pairs} is not what the reward model was trained on; configs/reward.py trains '
    'it again'
  )


def say_other_labeler(settings: PpoRun, run: RunContext, critic: Base) -> None:
  """Prints it where another model than the critic's tuned one labeled the pairs.

  And where they have narratives that PPO would write otherwise for the reward model.

  Args:
    critic: the base of value and reward, with its SFT.
  """
  inputs, size = settings.inputs, settings.critic_size
  if inputs.reward or inputs.label:
    return  # pairs from elsewhere
  sft = inputs.sft if settings.one_base else inputs.critic_sft
  label = run.artifact('label', '', size)
  labeler.say_other_labeler(label, run.artifact('sft', sft, size), critic)
  if settings.scoring.placeholder == 'captions':
    labeler.say_other_narratives(label, settings.judge)


def check_scoring(reward: artifacts.Artifact, scoring: RewardPrompt) -> None:
  """Raises ArtifactError if responses would be scored after another turn."""
  requested = dataclasses.asdict(scoring)
  if reward.info['scoring'] != requested:
    raise artifacts.ArtifactError(
      f'config.scoring: the reward model was trained with {reward.info["scoring"]}, '
      f'this run would score with {requested}'
    )
  trained_with = reward.info.get('scoring_text')
  if trained_with not in (None, text := prompts.load(scoring.prompt)):
    raise artifacts.ArtifactError(
      f'config.scoring.prompt: the text of {scoring.prompt!r} has changed since the '
      f'reward model was trained: {_difference(trained_with, text)!r} -> '
      f'{_difference(text, trained_with)!r}. Restore it, or train the reward model '
      'again'
    )


def _difference(text: str, other: str) -> str:
  """Returns a few words of a text from where it begins to differ from another one."""
  differ = (i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b)
  same = next(differ, min(len(text), len(other)))
  return text[max(same - 20, 0) : same + 20]
