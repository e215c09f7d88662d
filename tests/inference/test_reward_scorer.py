"""Answers are scored in batches as PPO scores them, one by one."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import CFG, LORA, random_adapter, random_params
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference import scoring
from vlm_rlaif_jax.inference.reward_scorer import RewardScorer
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig
from vlm_rlaif_jax.weights import bases

SUFFIX = np.asarray([11, 12], np.int32)
FRAMES = 3
VIDEOS = [Video((f'{number}.mp4',)) for number in range(3)]


def visual(item):
  rng = np.random.default_rng(int(item.paths[0][0]))
  return rng.normal(0, 1, (FRAMES + CFG.vision.patches, CFG.llama.width)).astype('f')


def scorer(**changes):
  features = types.SimpleNamespace(
    data=DataConfig(frames=FRAMES),
    mesh=sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1]),
    read=lambda kind, item: visual(item),
  )
  params = {'llama': random_params()['llama']}
  options = {
    'variables': {'params': params, 'lora': random_adapter()},
    'head': heads.init_head(jax.random.key(1), CFG.llama.width),
    'tokenizer': tokens.load_tokenizer(bases.TINY),
    'suffix': SUFFIX,
    'features': features,
    'buckets': (8,),
    'batch': 2,
    **changes,
  }
  return RewardScorer(Vlm(CFG, LORA), **options)


def sequences():
  rng = np.random.default_rng(0)
  prompts = [np.asarray([1, -200, *rng.integers(3, 60, 3)], np.int32) for _ in VIDEOS]
  answers = [rng.integers(3, 60, n).astype(np.int32) for n in (1, 9, 20)]
  return prompts, answers


@pytest.mark.slow
def test_rewards_are_those_that_ppo_gives():
  one = scorer(buckets=(32,))
  prompts, answers = sequences()
  rows = [np.concatenate([p, a, SUFFIX]) for p, a in zip(prompts, answers, strict=True)]
  kept = {}
  rewards = one.score(rows, VIDEOS, kept.__setitem__)
  assert kept == dict(enumerate(map(float, rewards)))
  expected = jax.jit(scoring.reward_model_score, static_argnums=(0,))(
    one.model,
    one.variables['params'],
    one.variables['lora'],
    one.head,
    jnp.asarray(np.stack(prompts)),
    jnp.asarray(np.stack([visual(item) for item in VIDEOS])),
    jnp.asarray(tokens.pad(answers, 20, 'right', PAD)),
    jnp.asarray(SUFFIX),
  )
  np.testing.assert_allclose(rewards, expected, rtol=1e-5, atol=1e-6)
  assert len({*map(float, rewards)}) == 3


def test_what_is_read_is_the_conversation_and_the_reward_prompt():
  one = scorer()
  closed, cut = (one.encode('<video>\nWhat?', 'A dog.', end) for end in (True, False))
  text = one.tokenizer.decode([i for i in closed[: -len(SUFFIX)] if i > 2])
  assert text.endswith('ASSISTANT: A dog.')
  assert closed[-2:].tolist() == cut[-2:].tolist() == SUFFIX.tolist()
  assert closed[-3] == one.tokenizer.eos and one.tokenizer.eos not in cut[1:]
  assert np.sum(closed == -200) == 1
  again = one.encode('What?', '<video> A dog.', True)  # a mark is not a second video
  assert again.tolist() == closed.tolist()


def test_lengths_grow_with_answers_and_end_at_the_last_position():
  one = scorer(buckets=(8, 100))
  assert [one.length(np.zeros(n), VIDEOS[0]) for n in (8, 9, 101)] == [8, 100, 200]
  room = CFG.llama.max_positions - FRAMES - CFG.vision.patches
  assert one.length(np.zeros(room), VIDEOS[0]) == room
  with pytest.raises(ValueError, match=f'{room + 1} tokens do not fit'):
    one.length(np.zeros(room + 1), VIDEOS[0])


@pytest.mark.slow
def test_a_reward_that_is_no_number_ends_the_run():
  broken = heads.ScalarHead(w=jnp.full(CFG.llama.width, jnp.nan), b=jnp.zeros(()))
  prompts, _ = sequences()
  with pytest.raises(UserError, match='a reward is NaN'):
    scorer(head=broken, buckets=(32,)).score(prompts[:1], VIDEOS[:1])
