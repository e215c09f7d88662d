"""Decoding without a scan over layers, beside `sampler.sample`, in float32."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.inference.test_sampler import MODEL, keys, prompts
from tests.tiny import CFG, random_adapter, random_params, sample_answers
from vlm_rlaif_jax.core import target
from vlm_rlaif_jax.core.quant import nf4
from vlm_rlaif_jax.inference import decoder_weights, decoding, sampler
from vlm_rlaif_jax.inference.sampler import Sampling
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.models import LINEARS, LoraConfig

SETTINGS = Sampling(20, temperature=0.8, eos=28)


@pytest.fixture(scope='module')
def variables():
  return {'params': random_params(), 'lora': random_adapter()}


def packed(params: dict) -> dict:
  """With the decoder's linears in NF4."""
  layers = params['llama']['layers']
  held = {name: {'w': nf4.quantize(layers[name]['w'])} for name in LINEARS}
  return {**params, 'llama': {**params['llama'], 'layers': {**layers, **held}}}


def sampled(variables, how, unrolled, model=MODEL, rows=4, count=4, settings=SETTINGS):
  ids, valid, visual = prompts(rows)

  def run(variables):
    weights = decoder_weights.prepare(model, variables, how, unrolled)
    return decoding.sample(model, weights, ids, valid, visual, keys(count), settings)

  return jax.jit(run)(variables)


def same(found, expected, atol=2e-5):
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_array_equal(found.mask, expected.mask)
  np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=atol)


@pytest.mark.parametrize('bits', [16, 4])
@pytest.mark.parametrize('how', ['beside', 'merged'])
@pytest.mark.parametrize('unrolled', [True, False], ids=['unrolled', 'scanned'])
@pytest.mark.slow
def test_every_form_draws_the_same_tokens(variables, how, unrolled, bits):
  """Merged, too: in float32 the sum of a weight and its adapter loses nothing."""
  if bits == 4:
    variables = {**variables, 'params': packed(variables['params'])}
  ids, valid, visual = prompts()
  expected = sample_answers(MODEL, variables, ids, valid, visual, keys(), SETTINGS)
  assert not np.asarray(expected.mask).all()  # some row ends before the others
  same(sampled(variables, how, unrolled), expected)


@pytest.mark.slow
def test_a_base_without_an_adapter(variables):
  bare = {'params': variables['params']}
  model = Vlm(CFG)
  expected = sampled(bare, 'beside', False, model)
  for how in ('beside', 'merged'):
    same(sampled(bare, how, True, model), expected)


@pytest.mark.slow
@pytest.mark.parametrize('bits', [16, 4])
@pytest.mark.parametrize('unrolled', [True, False], ids=['unrolled', 'scanned'])
def test_tokens_one_at_a_time_are_those_of_the_loop(
  variables, unrolled, bits, monkeypatch
):
  monkeypatch.setattr(decoder_weights, 'affords_copy', lambda _: unrolled)
  if bits == 4:
    variables = {**variables, 'params': packed(variables['params'])}
  variables = jax.device_put(variables)
  expected = sampled(variables, 'beside', unrolled)
  weights = decoding.answer_weights(MODEL, variables)
  assert isinstance(weights, decoder_weights.Weights) == unrolled
  assert unrolled or weights is variables

  def advance(weights, state):
    return decoding.decode_step(MODEL, weights, keys(), SETTINGS, state)

  prefill = jax.jit(lambda *arrays: decoding.prefill(MODEL, *arrays, SETTINGS))
  state, step, drawn = prefill(weights, *prompts()), jax.jit(advance), []
  for _ in range(SETTINGS.max_tokens):
    finished = state.finished
    state, token, logprob = step(weights, state)
    drawn.append((token, logprob, ~finished))
  columns = (np.stack(column, 1) for column in zip(*drawn, strict=True))
  same(sampler.Answers(*columns), expected)


def test_streams_copy_no_4_bit_weights(variables, monkeypatch):
  monkeypatch.setattr(decoder_weights, 'affords_copy', lambda _: True)
  params = jax.device_put(packed(variables['params']))
  weights = decoding.answer_weights(MODEL, {**variables, 'params': params})
  for name, layer in (('o', weights.layers[1].o), ('down', weights.layers[0].down)):
    assert layer.kernel[0].stack is params['llama']['layers'][name]['w']


@pytest.mark.slow
def test_copies_of_a_prompt(variables):
  expected = sampled(variables, 'beside', False, rows=2, count=4)
  same(sampled(variables, 'merged', True, rows=2, count=4), expected)


@pytest.mark.slow
def test_an_adapter_on_some_linears():
  model = Vlm(CFG, LoraConfig(rank=4, alpha=8.0, targets=('q', 'v', 'down')))
  adapter = random_adapter(lora=model.lora)
  both = {'params': random_params(), 'lora': adapter}
  expected = sampled(both, 'beside', False, model)
  for how in ('beside', 'merged'):
    same(sampled(both, how, True, model), expected)


@pytest.mark.slow
def test_a_cache_in_8_bits_moves_log_probabilities_little(variables):
  """In both forms alike, and of the same tokens: those that no rounding changes."""
  settings = dataclasses.replace(SETTINGS, cache='int8')
  scanned = sampled(variables, 'beside', False, rows=2, settings=settings)
  unrolled = sampled(variables, 'merged', True, rows=2, settings=settings)
  same(unrolled, scanned)
  exact = sampled(variables, 'beside', False, rows=2)
  alike = np.cumprod(np.asarray(exact.tokens) == scanned.tokens, 1).astype(bool)
  alike &= np.asarray(exact.mask)
  assert alike.sum() > 0.5 * np.asarray(exact.mask).sum()
  gap = np.abs(np.asarray(exact.logprobs) - scanned.logprobs)[alike]
  assert 0 < gap.mean() < 0.05  # nats a token, the gate of PPO
  np.testing.assert_allclose(gap.reshape(-1)[:1], 0, atol=1e-5)  # of the prompt alone


@pytest.mark.slow
def test_merging_in_16_bits_moves_log_probabilities_little(variables):
  """Of the same tokens, by the gate's own measure: nats a token."""
  cfg = dataclasses.replace(CFG, dtype='bfloat16')
  model = Vlm(cfg, MODEL.lora)
  cast = lambda x: x.astype('bfloat16')
  half = {**variables, 'params': jax.tree.map(cast, variables['params'])}
  ids, valid, visual = prompts()
  logits = {
    how: sampler.next_logits(
      model, decoder_weights.prepare(model, half, how, False), ids, valid, visual
    )
    for how in ('beside', 'merged')
  }
  logp = {how: jax.nn.log_softmax(x) for how, x in logits.items()}
  assert np.abs(logp['merged'] - logp['beside']).mean() < 0.05
  assert np.abs(logp['merged'] - logp['beside']).max() > 0  # it did round


def test_layers_are_copied_where_they_fit_twice(variables, monkeypatch):
  monkeypatch.setattr(target, 'platform', lambda: 'gpu')
  stacks = variables['params']['llama']['layers']
  copy = 2 * sum(stacks[name]['w'].size for name in LINEARS)
  for room, fits in ((2.5 * copy, False), (2.9 * copy, True), (0, False)):
    monkeypatch.setattr(target, 'memory', lambda room=room: room)
    assert decoder_weights.affords_copy(variables) == fits
  assert decoder_weights.affords_copy({'params': packed(variables['params'])})
  monkeypatch.setattr(target, 'platform', lambda: 'tpu')
  assert not decoder_weights.affords_copy(variables)


def test_on_a_cpu_the_scan_stays(variables):
  assert not decoder_weights.applies()
  assert decoder_weights.prepare(MODEL, variables, 'beside') is variables
