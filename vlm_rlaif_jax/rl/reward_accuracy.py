"""Measures the reward model as PPO uses it: on the base as PPO holds it.

The stage `reward` measures the model on the base that it trained on, in 16 bits as a
rule; PPO scores with the same adapter on a base in 4 bits, and without the video where
`ppo.blind_reward` says so. What the gate compares with its limit is the accuracy of
that.
"""

import dataclasses
from typing import Any

from vlm_rlaif_jax.data import examples, pairs, readers
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.rl.gate import held_out_file
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.train import loop, pair_controls, pairwise
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.types import Bases, Frozen


def measure(
  settings: PpoRun,
  run: RunContext,
  model: Vlm,
  features: VisualFeatures,
  tokenizer: Tokenizer,
  bases: Bases,
  frozen: Frozen,
) -> dict[str, Any]:
  """Returns the accuracy on the pairs that the reward model was not trained on.

  Args:
    model: the critic; features, tokenizer: of its base.
    bases, frozen: on the devices.

  Returns:
    `accuracy`, `accuracy_interval`, `pairs`, `residency`, and `blind` where the video
    is hidden; of no pairs, `pairs` alone.
  """
  rows = examples.pairs(held_out_file(settings, run), run.data.ignore_fields)
  items = [parse() for _, parse in rows]
  bad = features.encode(
    [pair.example.video for pair in items if pair.example.video],
    'tokens',
    loop.bar('ppo: encoding videos of pairs', settings.log, 'video'),
  )
  # A pair is longer than a prompt, by both answers and the reward prompt.
  lengths = run.data.buckets
  data = dataclasses.replace(
    run.data, buckets=(*lengths, 2 * lengths[-1], 4 * lengths[-1])
  )
  samples = pairs.encode_pairs(
    [pair for pair in items if readers.is_readable(pair.example, bad, run.skipped)],
    tokenizer,
    settings.scoring,
    data,
    run.skipped,
    drop_long=False,
  )
  if not samples:
    return {'pairs': 0}
  scorer = {'lora': frozen.reward, 'head': frozen.reward_head}
  program = pairwise.score_program(model, run.mesh, scorer, bases.critic)
  blind = settings.ppo.blind_reward
  margins = pairwise.pair_margins(
    program, scorer, bases.critic, samples, features, 'blank' if blind else 'own'
  )
  return {
    **pair_controls.accuracy_of(samples, margins),
    'pairs': len(samples),
    'residency': settings.critic_quant.residency,
    **({'blind': True} if blind else {}),
  }
