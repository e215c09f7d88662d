import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import (
  CFG,
  LORA,
  hidden_states,
  random_adapter,
  random_params,
  sample_answers,
)
from vlm_rlaif_jax.inference import draws, sampler, scoring
from vlm_rlaif_jax.inference.sampler import Sampling
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.constants import PAD, VIDEO

MODEL = Vlm(CFG, LORA)
N = 5
next_logits = jax.jit(sampler.next_logits, static_argnums=0)


@pytest.fixture(scope='module')
def variables():
  return {'params': random_params(), 'lora': random_adapter()}


def prompts(rows: int = 4):
  rng = np.random.default_rng(0)
  ids = rng.integers(3, 60, (rows, 7))
  ids[:, 3] = VIDEO
  for row in range(rows):
    ids[row, : row % 3] = PAD
  visual = jax.random.normal(jax.random.key(5), (rows, N, CFG.llama.width))
  return jnp.asarray(ids), jnp.asarray(ids != PAD), visual


def keys(rows: int = 4, seed: int = 0):
  return sampler.example_keys(jax.random.key(seed), jnp.arange(rows))


@pytest.mark.slow
def test_sampled_log_probabilities_are_those_of_the_trainer(variables):
  ids, valid, visual = prompts()
  settings = Sampling(9, temperature=0.7, eos=63)
  answers = sample_answers(MODEL, variables, ids, valid, visual, keys(), settings)

  @jax.jit
  def logprobs(base, adapter, tokens):
    hidden = scoring.response_hidden(MODEL, base, adapter, ids, valid, visual, tokens)
    return scoring.response_logprobs(MODEL, base, hidden, tokens, 0.7)[0]

  logp = logprobs(variables['params'], variables['lora'], answers.tokens)
  keep = np.asarray(answers.mask)
  np.testing.assert_array_equal(np.asarray(answers.tokens) != PAD, keep)
  np.testing.assert_allclose(
    np.asarray(answers.logprobs)[keep], np.asarray(logp)[keep], atol=2e-5
  )


@pytest.mark.slow
def test_greedy_decoding_equals_one_full_pass_a_token(variables):
  ids, valid, visual = prompts()
  settings = Sampling(6, temperature=0.0, eos=-1)
  answers = sample_answers(MODEL, variables, ids, valid, visual, keys(), settings)
  so_far, real = ids, valid
  for step in range(6):
    logits = next_logits(MODEL, variables, so_far, real, visual)
    token = jnp.argmax(logits, -1).astype(jnp.int32)
    np.testing.assert_array_equal(answers.tokens[:, step], token)
    so_far = jnp.concatenate([so_far, token[:, None]], 1)
    real = jnp.concatenate([real, jnp.ones_like(token[:, None], bool)], 1)


@pytest.mark.slow
def test_what_a_row_draws_does_not_depend_on_its_batch(variables):
  ids, valid, visual = prompts()
  settings = Sampling(8, eos=63)
  whole = sample_answers(MODEL, variables, ids, valid, visual, keys(), settings)
  for row in range(4):
    pick = slice(row, row + 1)
    alone = sample_answers(
      MODEL, variables, ids[pick], valid[pick], visual[pick], keys()[pick], settings
    )
    np.testing.assert_array_equal(alone.tokens[0], whole.tokens[row])


@pytest.mark.slow
def test_copies_share_a_prompt_and_differ_in_their_keys(variables):
  ids, valid, visual = prompts(2)
  settings = Sampling(8, eos=63)
  four = keys(4)
  both = sample_answers(MODEL, variables, ids, valid, visual, four, settings)
  repeat = lambda x: jnp.repeat(x, 2, axis=0)
  apart = sample_answers(
    MODEL, variables, repeat(ids), repeat(valid), repeat(visual), four, settings
  )
  np.testing.assert_array_equal(both.tokens, apart.tokens)
  assert (both.tokens[0] != both.tokens[1]).any()


@pytest.mark.slow
def test_nothing_follows_the_end_of_sequence(variables):
  ids, valid, visual = prompts()
  free = sample_answers(
    MODEL, variables, ids, valid, visual, keys(), Sampling(12, eos=-1)
  )
  eos = int(free.tokens[0, 3])
  answers = sample_answers(
    MODEL, variables, ids, valid, visual, keys(), Sampling(12, eos=eos)
  )
  for row in range(4):
    tokens = np.asarray(answers.tokens[row])
    ends = np.flatnonzero(tokens == eos)
    end = ends[0] + 1 if len(ends) else 12
    np.testing.assert_array_equal(tokens[:end], free.tokens[row, :end])
    assert np.all(tokens[end:] == PAD)
    assert not np.asarray(answers.logprobs[row, end:]).any()
    np.testing.assert_array_equal(answers.mask[row], np.arange(12) < end)


@pytest.mark.slow
def test_the_loop_ends_when_all_have_ended(variables):
  """With every token an end, one step is taken whatever the limit."""
  ids, valid, visual = prompts()
  steps = []

  def count(x):
    steps.append(int(x))

  class Counting(Vlm):
    def extend(self, ids, positions, mask, past):
      jax.debug.callback(count, positions[0, 0])
      return super().extend(ids, positions, mask, past)

  model = Counting(CFG, LORA)
  greedy = sample_answers(
    MODEL, variables, ids[:1], valid[:1], visual[:1], keys(1), Sampling(1, 0.0, eos=-1)
  )
  settings = Sampling(50, 0.0, eos=int(greedy.tokens[0, 0]))
  sample_answers(model, variables, ids[:1], valid[:1], visual[:1], keys(1), settings)
  jax.effects_barrier()
  assert len(steps) == 1


def test_suppressed_ids_are_never_drawn(variables):
  ids, valid, visual = prompts()
  settings = Sampling(20, temperature=5.0, eos=-1, suppress=(0, 7, 8))
  answers = sample_answers(MODEL, variables, ids, valid, visual, keys(), settings)
  assert not np.isin(np.asarray(answers.tokens), (0, 7, 8)).any()


def test_nucleus_keeps_the_fewest_tokens_that_reach_top_p():
  logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25]]))
  kept = lambda p: np.isfinite(np.asarray(draws.nucleus(logits, p)[0])).tolist()
  assert kept(0.4) == [False, True, False, False]
  assert kept(0.6) == [False, True, False, True]
  assert kept(0.99) == [True, True, True, True]


def test_no_copy_of_the_cache_stands_inside_the_loop(variables):
  """The compiled decode loop reads the cache and writes one slot (platform facts)."""
  ids, valid, visual = prompts()
  settings = Sampling(57, eos=63)
  step = jax.jit(lambda v, i, m, x, k: sampler.sample(MODEL, v, i, m, x, k, settings))
  text = step.lower(variables, ids, valid, visual, keys()).compile().as_text()
  slots = ids.shape[1] + N - 1 + 57
  cfg = CFG.llama
  cache = f'{cfg.layers},4,{cfg.kv_heads},{slots},{cfg.head_dim}'
  assert f'[{cache}]' in text  # the shape that is looked for does occur
  names = re.findall(r'while\(.*?body=(%[\w.-]+)', text)
  bodies = [part for part in text.split('\n\n') if part.lstrip().split(' ')[0] in names]
  assert len(bodies) == len(set(names)) >= 2  # the decode loop and the layers in it
  copies = [
    line
    for body in bodies
    for line in body.splitlines()
    if re.search(rf'= \w+\[{cache}\]\S* copy\(', line)
  ]
  assert not copies


def test_an_adapter_must_be_passed_to_have_an_effect(variables):
  ids, valid, visual = prompts()
  settings = Sampling(6, 0.0, eos=-1)
  bare = {'params': variables['params']}
  with_adapter = sample_answers(MODEL, variables, ids, valid, visual, keys(), settings)
  without = sample_answers(MODEL, bare, ids, valid, visual, keys(), settings)
  assert (with_adapter.tokens != without.tokens).any()


@pytest.mark.slow
def test_rewards_do_not_depend_on_where_the_pads_are(variables):
  from vlm_rlaif_jax.nn import heads

  head = heads.init_head(jax.random.key(2), CFG.llama.width)
  ids, _, visual = prompts()
  tokens = jnp.array(
    [[5, 6, 2, PAD], [7, 2, PAD, PAD], [8, 9, 0, 9], [2, PAD, PAD, PAD]]
  )
  suffix = jnp.array([11, 12])

  @jax.jit
  def score(ids, tokens):
    return scoring.reward_model_score(
      MODEL, variables['params'], variables['lora'], head, ids, visual, tokens, suffix
    )

  pad = functools.partial(jnp.pad, constant_values=PAD)
  wide = score(pad(ids, ((0, 0), (3, 0))), pad(tokens, ((0, 0), (0, 2))))
  np.testing.assert_allclose(score(ids, tokens), wide, atol=1e-4)
  row = [i for i in [*ids[0].tolist(), 5, 6, 2, 11, 12] if i != PAD]
  alone, _, _ = hidden_states(
    MODEL, variables, jnp.array([row]), jnp.ones((1, len(row)), bool), visual[:1]
  )
  np.testing.assert_allclose(score(ids, tokens)[0], head(alone[0, -1]), atol=1e-4)
