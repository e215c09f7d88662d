import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import CFG, LORA, hidden_states, random_adapter, random_params
from vlm_rlaif_jax.nn import attention, layers, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan.count import executed
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.train.profiling import flops

MODEL = Vlm(CFG, LORA)
N = 6


@pytest.fixture(scope='module')
def params():
  return random_params()


def states(params, ids, valid=None, visual=None, adapter=None, model=MODEL):
  ids = jnp.asarray(ids)
  valid = ids != 0 if valid is None else jnp.asarray(valid)
  if visual is None:
    visual = jax.random.normal(jax.random.key(3), (len(ids), N, CFG.llama.width))
  variables = {'params': params}
  if adapter is not None:
    variables['lora'] = adapter
  hidden, valid, _ = hidden_states(model, variables, ids, valid, visual)
  return np.asarray(hidden), np.asarray(valid)


@pytest.mark.slow
def test_future_tokens_do_not_move_the_past(params):
  a, _ = states(params, [[1, 5, VIDEO, 7, 8, 9]])
  b, _ = states(params, [[1, 5, VIDEO, 7, 30, 31]])
  np.testing.assert_array_equal(a[0, : N + 3], b[0, : N + 3])
  assert (a[0, N + 3 :] != b[0, N + 3 :]).any()


@pytest.mark.slow
def test_gradient_of_a_state_reaches_exactly_what_it_saw(params):
  ids = jnp.array([[0, 0, 1, VIDEO, 7, 8]])
  visual = jax.random.normal(jax.random.key(3), (1, N, CFG.llama.width))
  embedded = MODEL.apply(
    {'params': params}, ids, method=lambda m, ids: m.llama.embed(ids)
  )

  def one(x, position):
    x, valid = vlm.splice(ids, ids != 0, x, visual)
    places = jnp.arange(x.shape[1])[None]
    hidden, _ = MODEL.apply(
      {'params': params},
      method=lambda m: m.llama(x, places, attention.causal_mask(valid)),
    )
    return hidden[0, position].sum()

  gradient = jax.jit(jax.grad(one))(embedded, N + 3)  # of the state of token 7
  depends = np.abs(gradient).sum(-1)[0] > 0
  np.testing.assert_array_equal(depends, [False, False, True, False, True, False])


@pytest.mark.slow
def test_left_pads_change_nothing(params):
  visual = jax.random.normal(jax.random.key(3), (1, N, CFG.llama.width))
  short, _ = states(params, [[1, 5, VIDEO, 7, 8]], visual=visual)
  padded, valid = states(params, [[0, 0, 0, 1, 5, VIDEO, 7, 8]], visual=visual)
  assert valid[0].tolist() == [False] * 3 + [True] * (N + 4)
  np.testing.assert_allclose(padded[0, 3:], short[0], atol=2e-5)
  assert np.isfinite(padded).all()


@pytest.mark.slow
def test_remat_changes_nothing(params):
  ids = [[1, 5, VIDEO, 7, 8]]
  plain, _ = states(params, ids)
  for remat in ('full', 'dots', 'names'):
    model = Vlm(dataclasses.replace(CFG, remat=remat), LORA)
    again, _ = states(params, ids, model=model)
    np.testing.assert_allclose(again, plain, atol=1e-6)


def loss_under(remat: str, params):
  model = Vlm(dataclasses.replace(CFG, remat=remat), LORA)
  ids = jnp.array([[1, 5, VIDEO, 7, 8]])
  visual = jnp.ones((1, N, CFG.llama.width))

  def loss(adapter):
    variables = {'params': params, 'lora': adapter}
    hidden, _, _ = vlm.hidden(model, variables, ids, ids != 0, visual)
    return jnp.sum(jnp.sin(hidden))

  return loss


@pytest.fixture(scope='module')
def gradient_without_remat(params):
  return jax.jit(jax.grad(loss_under('none', params)))(random_adapter())


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['full', 'dots', 'names'])
def test_gradients_are_the_same_under_remat(params, gradient_without_remat, remat):
  found = jax.jit(jax.grad(loss_under(remat, params)))(random_adapter())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()),
    found,
    gradient_without_remat,
  )


@pytest.mark.slow
def test_names_keep_every_product_with_a_base_weight(params):
  """What is computed again is attention, a whole square, and A x of the adapters."""
  done = {
    remat: executed(
      jax.make_jaxpr(jax.grad(loss_under(remat, params)))(random_adapter()).jaxpr,
      1, 'cpu',
    )
    for remat in ('none', 'full', 'names')
  }  # fmt: skip
  cfg, length = CFG.llama, N + 4
  square = 2 * cfg.layers * length**2 * cfg.heads * cfg.head_dim
  again = flops.recomputed_by_names(cfg, LORA, length) + square
  assert done['names'] - done['none'] == again
  base = 2 * length * (flops.linear_weights(cfg) - cfg.layers * cfg.width * cfg.mlp)
  assert (
    done['full'] - done['names'] >= base
  )  # all but `down`, whose y no gradient reads


@pytest.mark.slow
def test_a_zero_adapter_is_no_adapter_and_a_random_one_moves_every_layer(params):
  ids = [[1, 5, VIDEO, 7, 8]]
  plain, _ = states(params, ids)
  adapter = random_adapter()
  zero = jax.tree.map(jnp.zeros_like, adapter)
  np.testing.assert_array_equal(states(params, ids, adapter=zero)[0], plain)
  for layer in range(CFG.llama.layers):
    for name in LORA.targets:
      one = jax.tree.map(jnp.zeros_like, adapter)
      part = jax.tree.map(
        lambda new, old, layer=layer: old.at[layer].set(new[layer]),
        adapter['llama']['layers'][name],
        one['llama']['layers'][name],
      )
      one['llama']['layers'][name] = part
      moved = states(params, ids, adapter=one)[0]
      assert np.abs(moved - plain).max() > 1e-4, (layer, name)


@pytest.mark.slow
def test_gradients_have_the_adapters_tree_and_nothing_else(params):
  adapter = random_adapter()
  ids = jnp.array([[1, 5, VIDEO, 7, 8]])
  visual = jnp.ones((1, N, CFG.llama.width))

  def loss(adapter):
    variables = {'params': params, 'lora': adapter}
    return vlm.hidden(MODEL, variables, ids, ids != 0, visual)[0].sum()

  gradient = jax.jit(jax.grad(loss))(adapter)
  assert jax.tree.structure(gradient) == jax.tree.structure(adapter)
  assert all(bool(jnp.any(g != 0)) for g in jax.tree.leaves(gradient))


def test_the_adapter_is_scaled_by_alpha_over_rank():
  x, w = jnp.ones((1, 3)), jnp.zeros((2, 3))
  a, b = jnp.ones((4, 3)), jnp.ones((2, 4))
  np.testing.assert_allclose(layers.linear(x, w, (a, b), scale=0.25), [[3.0, 3.0]])


@pytest.mark.slow
def test_dropout_acts_on_the_adapter_and_only_with_a_key(params):
  model = Vlm(CFG, dataclasses.replace(LORA, dropout=0.5))
  ids = jnp.array([[1, 5, VIDEO, 7, 8]])
  visual = jnp.ones((1, N, CFG.llama.width))
  variables = {'params': params, 'lora': random_adapter()}
  run = lambda rngs, v=variables: np.asarray(
    hidden_states(model, v, ids, ids != 0, visual, rngs=rngs)[0]
  )
  np.testing.assert_array_equal(run(None), run(None))
  assert (run({'dropout': jax.random.key(0)}) != run(None)).any()
  bare = {'params': params}
  np.testing.assert_array_equal(
    run({'dropout': jax.random.key(0)}, bare), run(None, bare)
  )


def test_grouped_heads_equal_repeated_ones(rng):
  q = jnp.asarray(rng.normal(size=(2, 4, 5, 8)), jnp.float32)
  k, v = (jnp.asarray(rng.normal(size=(2, 2, 5, 8)), jnp.float32) for _ in range(2))
  mask = attention.causal_mask(jnp.ones((2, 5), bool))
  repeat = lambda x: jnp.repeat(x, 2, axis=1)
  np.testing.assert_allclose(
    attention.attend(q, k, v, mask),
    attention.attend(q, repeat(k), repeat(v), mask),
    atol=1e-6,
  )


@pytest.mark.slow
@pytest.mark.parametrize('groups', [4, 2])
@pytest.mark.parametrize('length', [7, 1030])
def test_attention_has_the_gradient_of_its_formula(rng, groups, length):
  """Written out once more for JAX to differentiate; long queries are taken in parts."""
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  q, out = draw(2, 4, length, 8), draw(2, 4, length, 8)
  k, v = draw(2, groups, length, 8), draw(2, groups, length, 8)
  valid = jnp.ones((2, length), bool).at[1, :3].set(False)  # left pads see nothing
  mask = attention.causal_mask(valid)
  out = out * valid[:, None, :, None]

  def formula(q, k, v):
    k, v = (jnp.repeat(x, 4 // groups, axis=1) for x in (k, v))
    scores = jnp.einsum('bhtk,bhsk->bhts', q, k) * 8**-0.5
    weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
    return jnp.einsum('bhts,bhsk->bhtk', weights, v)

  ours = lambda q, k, v: attention.attend(q, k, v, mask, causal=True)
  found, back = jax.vjp(jax.jit(ours), q, k, v)
  expected, back_expected = jax.vjp(jax.jit(formula), q, k, v)
  mask = np.asarray(valid)[:, None, :, None]
  np.testing.assert_allclose(found * mask, expected * mask, atol=2e-6)
  for mine, theirs in zip(back(out), back_expected(out), strict=True):
    np.testing.assert_allclose(mine, theirs, atol=2e-5)


@pytest.mark.slow
def test_small_gradients_of_float16_are_not_lost():
  """Weights reach the length: what is divided by their sum must not be as small."""
  rng = np.random.default_rng(5)
  q, k, v = (jnp.asarray(rng.normal(size=(1, 2, 512, 16)), jnp.float32) for _ in 'qkv')
  g = 1e-4 * jnp.asarray(rng.normal(size=(1, 2, 512, 16)), jnp.float32)
  mask = attention.causal_mask(jnp.ones((1, 512), bool))

  def gradients(dtype):
    cast = [x.astype(dtype) for x in (q, k, v)]
    _, back = jax.vjp(lambda *qkv: attention.attend(*qkv, mask, causal=True), *cast)
    return [np.asarray(x, np.float32) for x in back(g.astype(dtype))]

  for ours, exact in zip(gradients(jnp.float16), gradients(jnp.float32), strict=True):
    assert np.linalg.norm(ours - exact) <= 0.01 * np.linalg.norm(exact)


def test_long_queries_look_at_no_key_after_their_part(rng):
  x = jnp.asarray(rng.normal(size=(1, 1, 1649, 8)), jnp.bfloat16)
  mask = attention.causal_mask(jnp.ones((1, 1649), bool))
  traced = jax.make_jaxpr(lambda x: attention.attend(x, x, x, mask, causal=True))(x)
  whole = jax.make_jaxpr(lambda x: attention.attend(x, x, x, mask))(x)
  done = [executed(made.jaxpr, 1, 'cpu') for made in (traced, whole)]
  assert 0.6 < done[0] / done[1] < 0.66


@pytest.mark.slow
def test_attention_over_a_past_equals_attention_over_all(rng):
  q, k, v = (jnp.asarray(rng.normal(size=(2, 2, 6, 8)), jnp.float32) for _ in range(3))
  mask = attention.causal_mask(jnp.ones((2, 6), bool))
  whole = attention.attend(q, k, v, mask)
  late = attention.attend(
    q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], mask[:, 4:], (k[:, :, :4], v[:, :, :4])
  )
  np.testing.assert_allclose(late, whole[:, :, 4:], atol=1e-6)


def test_rope_sees_differences_of_positions_only(rng):
  q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

  def turned(x, position):
    table = attention.rotations(jnp.array([[position]]), 8, 1e4, x.dtype)
    return attention.rope(x, table)

  product = lambda a, b: float(jnp.sum(turned(q, a) * turned(k, b)))
  assert product(7, 3) == pytest.approx(product(104, 100), rel=1e-4)
  assert product(7, 3) != pytest.approx(product(7, 4), rel=1e-3)


def test_logits_of_16_bits_are_not_rounded(params, rng):
  """Two tokens whose rows differ a little: their log-odds do not become 0."""
  model = Vlm(dataclasses.replace(CFG, dtype='bfloat16'))
  hidden = jnp.asarray(rng.normal(size=(64, CFG.llama.width)), jnp.bfloat16)
  table = 4 * np.asarray(params['llama']['head']['w'])
  table[7] = table[9]
  table[7, 0] += 2**-8 * np.abs(table[9]).max()
  head = {'llama': {'head': {'w': jnp.asarray(table)}}}
  found = np.asarray(vlm.logits(model, {'params': head}, hidden))
  assert found.dtype == np.float32
  rounded = np.asarray(jnp.asarray(table, jnp.bfloat16), np.float64)
  exact = np.asarray(hidden, np.float64) @ rounded.T
  np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-5)
  odds, expected = (x[:, 7] - x[:, 9] for x in (found, exact))
  np.testing.assert_allclose(odds, expected, atol=1e-5)


def test_the_gradient_through_logits_of_16_bits_is_that_of_float32(params, rng):
  hidden = jnp.asarray(rng.normal(size=(8, CFG.llama.width)), jnp.bfloat16)
  table = jnp.asarray(params['llama']['head']['w'], jnp.bfloat16)

  def loss(x, w, product):
    return jnp.sum(jax.nn.logsumexp(product(x, w), axis=-1))

  found = jax.grad(loss, (0, 1))(hidden, table, layers.product_in_float32)
  wide = [x.astype(jnp.float32) for x in (hidden, table)]
  expected = jax.grad(loss, (0, 1))(*wide, lambda x, w: x @ w.T)
  for ours, theirs, like in zip(found, expected, (hidden, table), strict=True):
    assert ours.dtype == like.dtype
    np.testing.assert_allclose(ours.astype(np.float32), theirs, atol=0.02, rtol=0.02)
