"""Refuses to start on a judge or a reward model that is not good enough."""

import dataclasses

from vlm_rlaif_jax.settings.ppo import GateConfig, PpoRun
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.train import console
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import artifacts


def check_gate(settings: PpoRun, space: RunContext) -> None:
  """Refuses to start on a judge or a reward model that is not good enough."""
  gate: GateConfig = settings.gate
  judged = space.artifact('label', settings.inputs.label, settings.critic_size)
  ranked = space.artifact('reward', settings.inputs.reward, settings.critic_size)
  label, reward = (artifacts.read_summary(at) or {} for at in (judged, ranked))
  measured = (
    (
      'judge_agreement',
      judged,
      label.get('agreement_kept', label.get('agreement')),
      "the judge's labels agree with the truth on",
    ),
    (
      'order_agreement',
      judged,
      label.get('order_agreement'),
      'the judge agrees with itself, answers swapped, on',
    ),
    (
      'reward_accuracy',
      ranked,
      reward.get('accuracy'),
      'the reward model ranks held-out pairs right on',
    ),
  )
  for name, folder, value, words in measured:
    least = getattr(gate, name)
    if gate.override or not least:
      continue
    asks = f'config.gate.{name} asks for {least:.1%}'
    if not isinstance(value, (int, float)):
      said = f'{asks}, which is not measured: {folder / "summary.json"} has none'
      if name == 'reward_accuracy':
        raise artifacts.ArtifactError(
          f'{said}; PPO might learn noise. Make the reward model with '
          'configs/reward.py, or --config.gate.override=True'
        )
      console.say(f'  {said}')
    elif not value >= least:  # NaN is not
      raise artifacts.ArtifactError(
        f'{words} {value:.1%}, {asks}; PPO would '
        'learn noise. Improve it, or --config.gate.override=True'
      )


def check_scoring(reward: artifacts.Artifact, scoring: RewardPrompt) -> None:
  """Refuses to score answers with another turn than the reward model learned."""
  scored_with = dataclasses.asdict(scoring)
  if reward.info['scoring'] != scored_with:
    raise artifacts.ArtifactError(
      f'config.scoring: the reward model was trained with {reward.info["scoring"]}, '
      f'this run would score with {scored_with}'
    )
