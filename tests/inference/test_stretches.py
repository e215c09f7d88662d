"""Decoding in several loops, each over the slots up to its last, as on TPUs."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.inference.test_sampler import MODEL, N, keys, prompts
from tests.tiny import CFG, LORA, random_adapter, random_params, sample_answers
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.sampler import Sampling
from vlm_rlaif_jax.nn import cache
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan import count, kernels
from vlm_rlaif_jax.settings.constants import PAD


@pytest.fixture(scope='module')
def variables():
  return {'params': random_params(), 'lora': random_adapter()}


@pytest.fixture
def on_tpu(monkeypatch):
  """The program that a TPU runs; what else is chosen by chip differs on GPUs alone."""
  monkeypatch.setattr(sampler.target, 'platform', lambda: 'tpu')
  monkeypatch.setattr(cache, 'STEP', 8)


def program(settings, model=MODEL):
  return jax.jit(lambda *arguments: sampler.sample(model, *arguments, settings))


def longer(prompt, width):
  """A prompt in a bucket of more text."""
  ids, valid, visual = prompt
  ids = jnp.pad(ids, ((0, 0), (width, 0)), constant_values=PAD)
  return ids, jnp.pad(valid, ((0, 0), (width, 0))), visual


def test_stretches_of_a_ppo_rollout(monkeypatch):
  assert sampler.stretches(753, 896) == [(896, 1649)]
  monkeypatch.setattr(sampler.target, 'platform', lambda: 'tpu')
  assert sampler.stretches(753, 896) == [
    (271, 1024), (256, 1280), (256, 1536), (113, 1649)
  ]  # fmt: skip
  assert sampler.stretches(753, 64) == [(64, 817)]


@pytest.mark.parametrize('prompt', [1, 127, 128, 753, 1024])
@pytest.mark.parametrize('limit', [1, 128, 129, 512, 896, 2048])
def test_every_step_reads_all_slots_before_it(monkeypatch, prompt, limit):
  monkeypatch.setattr(sampler.target, 'platform', lambda: 'tpu')
  loops = sampler.stretches(prompt, limit)
  assert sum(steps for steps, _ in loops) == limit
  assert len(loops) <= sampler.MAX_LOOPS
  after = itertools.accumulate(steps for steps, _ in loops)
  for (steps, reads), done in zip(loops, after, strict=True):
    assert steps > 0 and reads == prompt + done


@pytest.mark.slow
@pytest.mark.parametrize(
  ('settings', 'width', 'copies'),
  [
    (Sampling(20, temperature=0.8, eos=28), 0, 1),  # rows end at different steps
    (Sampling(40, eos=-1), 9, 1),
    (Sampling(33, temperature=0.0, eos=-1), 4, 1),
    (Sampling(40, eos=-1, cache='int8'), 3, 1),
    (Sampling(20, temperature=0.8, top_p=0.9, eos=28), 5, 2),
  ],
)
def test_several_loops_draw_what_one_draws(
  variables, on_tpu, monkeypatch, settings, width, copies
):
  arguments = variables, *longer(prompts(), width), keys(4 * copies)
  length = 7 + width + N - 1
  assert len(sampler.stretches(length, settings.max_tokens)) > 1
  found = program(settings)(*arguments)
  monkeypatch.undo()
  expected = program(settings)(*arguments)
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_array_equal(found.mask, expected.mask)
  np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=2e-6)
  if settings.eos > 0:
    ends = np.asarray(expected.mask).sum(1)
    assert len(set(ends.tolist())) > 1


@pytest.mark.slow
def test_no_loop_runs_a_step_after_all_rows_have_ended(variables, on_tpu):
  ids, valid, visual = (part[:1] for part in prompts())
  positions = []

  class Counting(Vlm):
    def extend(self, ids, positions_, mask, past):
      jax.debug.callback(lambda x: positions.append(int(x)), positions_[0, 0])
      return super().extend(ids, positions_, mask, past)

  arguments = variables, ids, valid, visual, keys(1)
  free = sample_answers(MODEL, *arguments, Sampling(40, 0.0, eos=-1))
  tokens = np.asarray(free.tokens[0]).tolist()
  last = max(tokens.index(token) for token in set(tokens))
  first_loop = sampler.stretches(7 + N - 1, 40)[0][0]
  for end in sorted({0, last}):
    positions.clear()
    settings = Sampling(40, 0.0, eos=tokens[end])
    answers = program(settings, Counting(CFG, LORA))(*arguments)
    jax.effects_barrier()
    assert len(positions) == end + 1 == int(answers.mask.sum())
  assert last >= first_loop  # the second loop, too, ends before its limit


def test_each_loop_takes_only_its_slots_out_of_the_cache(variables, on_tpu):
  arguments = variables, *prompts(), keys()
  text = str(jax.make_jaxpr(program(Sampling(40, eos=63)))(*arguments))
  cfg = CFG.llama
  sizes = rf'slice_sizes=\(1, 4, {cfg.kv_heads}, (\d+), {cfg.head_dim}\)'
  slots = [reads for _, reads in sampler.stretches(7 + N - 1, 40)]
  assert sorted(int(size) for size in re.findall(sizes, text)) == sorted(
    2 * [0, *slots]
  )


@pytest.mark.slow
def test_plans_count_each_loop_by_its_steps(variables, on_tpu):
  arguments = variables, *prompts(), keys()
  traced = program(Sampling(40, eos=63)).trace(*arguments)
  steps = [steps for steps, _ in sampler.stretches(7 + N - 1, 40)]
  loops = kernels.Program(traced.lower().compile().as_text()).decode_steps(99)
  assert [loop.times for loop in loops] == steps
  flops = [
    count.executed(traced.jaxpr.jaxpr, number, platform='cpu') for number in (1, 99)
  ]
  assert flops[0] == flops[1]  # nothing is counted by the default
