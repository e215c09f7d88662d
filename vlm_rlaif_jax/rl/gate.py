"""Keeps PPO from starting on a judge or a reward model that is not good enough."""

import dataclasses
import pathlib

from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.train import console
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import artifacts


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
  """Raises ArtifactError if the judge or the reward model is below its limit."""
  if settings.gate.override:
    return
  for check in _checks(settings, run):
    limit = getattr(settings.gate, check.name)
    if not limit:
      continue
    demand = f'config.gate.{check.name} asks for {limit:.1%}'
    if not isinstance(check.value, int | float):
      message = (
        f'{demand}, which is not measured: {check.folder / "summary.json"} has none'
      )
      if check.required:
        raise artifacts.ArtifactError(
          f'{message}; PPO might learn noise. Make the reward model with '
          'configs/reward.py, or --config.gate.override=True'
        )
      console.say(f'  {message}')
    elif not check.value >= limit:  # NaN is not
      raise artifacts.ArtifactError(
        f'{check.claim} {check.value:.1%}, {demand}; PPO would '
        'learn noise. Improve it, or --config.gate.override=True'
      )


def _checks(settings: PpoRun, run: RunContext) -> list[Check]:
  """Returns what the summaries of the stages label and reward measured."""
  inputs, size = settings.inputs, settings.critic_size
  label_folder = run.artifact('label', inputs.label, size)
  reward_folder = run.artifact('reward', inputs.reward, size)
  label = artifacts.read_summary(label_folder) or {}
  reward = artifacts.read_summary(reward_folder) or {}
  return [
    Check(
      'judge_agreement',
      label_folder,
      label.get('agreement_kept', label.get('agreement')),
      "the judge's labels agree with the truth on",
    ),
    Check(
      'order_agreement',
      label_folder,
      label.get('order_agreement'),
      'the judge agrees with itself, answers swapped, on',
    ),
    Check(
      'reward_accuracy',
      reward_folder,
      reward.get('accuracy'),
      'the reward model ranks held-out pairs right on',
      required=True,
    ),
  ]


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
