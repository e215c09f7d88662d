"""Answers and judgments of lists of prompts."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import CFG, LORA, random_adapter, random_params
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference import decoder_weights, generation, sampler
from vlm_rlaif_jax.inference.generation import GenerationError, Generator
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig


@pytest.fixture
def mesh():
  return sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])


@pytest.fixture
def features(mesh):
  """Six visual tokens of every video, all zero."""
  return types.SimpleNamespace(
    mesh=mesh,
    data=DataConfig(frames=2),
    read=lambda kind, video: np.zeros((6, CFG.llama.width), np.float32),
  )


@pytest.mark.slow
def test_what_is_no_number_is_refused(features):
  """NaN is neither above nor below a margin, so its judge would prefer one side."""
  llama = random_params()['llama']
  llama['final_norm']['scale'] = jnp.full_like(llama['final_norm']['scale'], jnp.nan)
  variables = {'params': {'llama': llama}}
  tokenizer = types.SimpleNamespace(eos=2, other_ends=())
  generator = Generator(Vlm(CFG), variables, tokenizer, features, (8,), 2)  # type: ignore
  prompts = [np.asarray([1, VIDEO, 5, 6], np.int32)] * 2
  videos = [Video(('a.mp4',)), Video(('b.mp4',))]
  with pytest.raises(GenerationError, match='log-odds of a judgment are NaN'):
    generator.log_odds(prompts, videos, (7, 9))
  settings = sampler.Sampling(2, eos=2)
  with pytest.raises(GenerationError, match='log-probabilities of answers are NaN'):
    generator.generate(prompts, videos, range(2), settings, jax.random.key(0))


@pytest.mark.slow
def test_an_answer_stops_at_any_end_and_says_so_by_one(features):
  """What reads answers looks for the tokenizer's own end."""
  variables = {'params': {'llama': random_params()['llama']}}
  prompts, videos = [np.asarray([1, VIDEO, 5, 6], np.int32)], [Video(('a.mp4',))]

  def answer(*other_ends):
    tokenizer = types.SimpleNamespace(eos=2, other_ends=other_ends)
    generator = Generator(Vlm(CFG), variables, tokenizer, features, (8,), 1)  # type: ignore
    settings = sampler.Sampling(6, temperature=0, eos=2)
    ((ids,),) = generator.generate(prompts, videos, [0], settings, jax.random.key(0))
    return ids.tolist()

  whole = answer()
  longest = CFG.llama.max_positions - 8 - features.data.frames - CFG.vision.patches
  with pytest.raises(DataError, match=r'exceed model\.llama\.max_pos'):
    Generator(
      Vlm(CFG),
      variables,
      types.SimpleNamespace(other_ends=()),
      features,
      (8,),
      1,  # type: ignore
    ).generate(prompts, videos, [0], sampler.Sampling(longest + 1), jax.random.key(0))
  assert len(whole) == 6 and 2 not in whole
  cut = whole.index(whole[2])
  assert answer(63, whole[2]) == [*whole[:cut], 2]


@pytest.mark.slow
def test_answers_without_a_scan_over_layers_are_the_same(mesh, monkeypatch):
  """As on GPUs: labels and evaluation decode as a rollout of PPO does."""
  ids, key = jnp.array([4, 7]), jax.random.key(0)
  arrays = {
    'ids': jnp.array([[0, 1, VIDEO, 5, 6], [1, VIDEO, 7, 8, 9]]),
    'visual': jax.random.normal(jax.random.key(3), (2, 6, CFG.llama.width)),
  }
  arrays['valid'] = arrays['ids'] != 0
  variables = {'params': random_params(), 'lora': random_adapter()}
  settings = sampler.Sampling(12, temperature=0.8, eos=2)

  def answers():
    generation.answer_program.cache_clear()
    step = generation.answer_program(Vlm(CFG, LORA), settings, 2, mesh)
    return step(variables, arrays, ids, key)

  scanned, calls = answers(), []
  monkeypatch.setattr(decoder_weights, 'affords_copy', lambda _: not calls.append(1))
  unrolled = answers()
  generation.answer_program.cache_clear()
  assert calls and unrolled.tokens.shape == (4, 12)
  np.testing.assert_array_equal(unrolled.tokens, scanned.tokens)
  np.testing.assert_allclose(unrolled.logprobs, scanned.logprobs, atol=2e-5)


@pytest.mark.slow
def test_the_tokens_of_an_answer_are_those_of_real_rows(features):
  """Rows that fill a batch repeat its first prompt with the key of another question."""
  counts = []
  generator = Generator(
    Vlm(CFG),
    {'params': {'llama': random_params()['llama']}},
    types.SimpleNamespace(eos=2, other_ends=tuple(range(3, 16))),  # type: ignore
    features,  # type: ignore
    (4, 8),
    8,
    on_batch=lambda *row: counts.append(row),
  )
  prompts = [np.asarray([1, VIDEO, *[5] * n], np.int32) for n in (2, 6, 6)]
  answers = generator.generate(
    prompts,
    [Video(('a.mp4',))] * 3,
    range(3),
    sampler.Sampling(9),
    jax.random.key(1),
    2,
  )
  lengths = [[len(ids) for ids in row] for row in answers]
  assert len({n for row in lengths for n in row}) > 2
  assert [row[0] for row in counts] == [1, 2]
  assert counts[0][3] == np.mean(lengths[0])
  assert counts[1][3] == np.mean(lengths[1:])
