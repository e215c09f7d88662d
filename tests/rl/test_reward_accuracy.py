"""The gate compares what the reward model does on the base that PPO scores on."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from tests.own_data import BASE, record, workspace
from tests.rl.learner import run_of
from tests.tiny import CFG, LORA, random_adapter, random_params
from vlm_rlaif_jax.data import examples, pairs
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.rl import reward_accuracy
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoRun
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.train import pairwise
from vlm_rlaif_jax.types import Bases, Frozen
from vlm_rlaif_jax.weights import placement

PAIRS = 30
VOCAB = dataclasses.replace(CFG.llama, vocab=768, max_positions=1024)
NETWORK = dataclasses.replace(CFG, llama=VOCAB)


@pytest.mark.slow
def test_it_is_measured_on_the_quantized_base(tmp_path):
  """Pairs labeled by the scores on a base in 4 bits: all right there, not in 16."""
  run = workspace(tmp_path, [record(0)])
  scoring = RewardPrompt(prompt='tiny_reward')
  quant = QuantConfig(residency='int4', group=4)
  settings = PpoRun(scoring=scoring, critic_quant=quant)
  run.artifact = run_of(settings, tmp_path).artifact
  folder = run.artifact('reward', '', settings.critic_size)
  folder.mkdir(parents=True)
  rng = np.random.default_rng(0)
  words = ['red', 'blue', 'circle', 'square', 'moves', 'left', 'right', 'stays']
  answers = [' '.join(rng.choice(words, 3)) + '.' for _ in range(2 * PAIRS)]

  def write(preferences) -> None:
    rows = [
      {**record(i), 'output_1': {'value': answers[2 * i]},
       'output_2': {'value': answers[2 * i + 1]}, 'preference': preference}
      for i, preference in enumerate(preferences)
    ]  # fmt: skip
    (folder / 'held_out.json').write_text(json.dumps(rows))

  model = Vlm(NETWORK, LORA)
  features = run.features()
  features.mesh = run.mesh
  shape = features.read('tokens', None).shape

  def read(kind, video):
    seed = [*video.paths[0].encode()]
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)

  features.read = read
  features.blank = lambda kind, frames: np.zeros(shape, np.float32)
  frozen = Frozen(
    reference=None,
    reward=random_adapter(2, NETWORK),
    reward_head=heads.init_head(jax.random.key(4), CFG.llama.width),
  )
  llama = jax.tree.map(np.asarray, random_params(cfg=NETWORK)['llama'])
  llama = {'llama': llama}

  def measured(quant: QuantConfig, blind: bool = False) -> dict:
    base = placement.on_device(llama, NETWORK, run.mesh, quant=quant)
    return reward_accuracy.measure(
      dataclasses.replace(
        settings, critic_quant=quant, ppo=PpoConfig(blind_reward=blind)
      ), run, model, features,
      BASE.tokenizer, Bases(actor=base, critic=base), frozen,
    )  # fmt: skip

  # The labels of the quantized model itself, by the sign of its scores.
  write([1] * PAIRS)
  parsed = [parse() for _, parse in examples.pairs(folder / 'held_out.json')]
  samples = [pairs.encode_pair(p, BASE.tokenizer, scoring, run.data) for p in parsed]
  packed = placement.on_device(llama, NETWORK, run.mesh, quant=quant)
  scorer = {'lora': frozen.reward, 'head': frozen.reward_head}
  program = pairwise.score_program(model, run.mesh, scorer, packed)
  margins = pairwise.pair_margins(program, scorer, packed, samples, features)
  write([2 if margin > 0 else 1 for margin in margins])

  found = measured(quant)
  assert found['accuracy'] == 1.0
  assert 0.8 < found['accuracy_interval'][0] < found['accuracy_interval'][1] == 1.0
  assert found['pairs'] == PAIRS and found['residency'] == 'int4'
  assert 'blind' not in found and measured(QuantConfig())['accuracy'] < 1.0

  # A reward that PPO computes without the video is measured without it.
  blank = pairwise.pair_margins(program, scorer, packed, samples, features, 'blank')
  hidden = measured(quant, blind=True)
  expected = np.mean((blank > 0) == (margins > 0))
  assert hidden['accuracy'] == expected < 1.0 and hidden['blind']
