import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.settings.sections import OptimConfig
from vlm_rlaif_jax.train import optim


@pytest.mark.parametrize(
  ('ppo_step', 'expected'),
  [(1, 0.0), (2, 6e-6), (5, 2.4e-5), (6, 3e-5), (386, 5.1e-10)],
)
def test_reference_schedule(ppo_step, expected):
  """The reference's schedule: peak 3e-5, five steps of warm-up, cosine over 386."""
  settings = OptimConfig(learning_rate=3e-5, schedule='cosine', warmup=5.0)
  rate = float(optim.learning_rate(settings, 386)(ppo_step - 1))
  assert rate == pytest.approx(expected, rel=2e-2, abs=1e-12)


def test_a_share_of_warmup_is_rounded_up():
  settings = OptimConfig(schedule='constant', warmup=0.03, learning_rate=2e-5)
  assert optim.warmup_steps(settings, 226) == 7
  rate = optim.learning_rate(settings, 226)
  assert float(rate(0)) == 0.0
  assert float(rate(7)) == pytest.approx(2e-5)
  assert float(rate(200)) == pytest.approx(2e-5)


def test_first_adam_step_is_the_rate_in_each_direction():
  params = {'lora': jnp.array([1.0, -1.0, 0.5])}
  gradient = {'lora': jnp.array([3.0, -0.1, 0.0])}
  optimizer = optim.make_optimizer(OptimConfig())
  state = optim.init_optimizer(optimizer, params)
  new, _ = optim.apply_gradients(optimizer, gradient, state, params, 0.01)
  np.testing.assert_allclose(new['lora'], [0.99, -0.99, 0.5], rtol=1e-5)


def test_a_named_tree_has_its_own_rate():
  params = {'lora': jnp.zeros(2), 'projector': jnp.zeros(2)}
  gradient = {'lora': jnp.ones(2), 'projector': jnp.ones(2)}
  optimizer = optim.make_optimizer(OptimConfig(), {'projector': 0.1})
  state = optim.init_optimizer(optimizer, params)
  new, _ = optim.apply_gradients(optimizer, gradient, state, params, 0.01)
  np.testing.assert_allclose(new['lora'], -0.01, rtol=1e-5)
  np.testing.assert_allclose(new['projector'], -0.001, rtol=1e-5)


def test_bfloat16_parameters_lose_small_updates_and_float32_ones_do_not():
  """Register B11: an update of 3e-5 is lost on a bfloat16 weight of 0.0117."""
  optimizer = optim.make_optimizer(OptimConfig())
  for dtype, moves in (('float32', True), ('bfloat16', False)):
    params = {'lora': jnp.array([0.01171875], dtype)}
    state = optim.init_optimizer(optimizer, params)
    gradient = {'lora': jnp.ones(1, dtype)}
    new, state = optim.apply_gradients(optimizer, gradient, state, params, 3e-5)
    assert new['lora'].dtype == dtype
    assert bool(new['lora'][0] != params['lora'][0]) is moves
    assert state[0].mu['lora'].dtype == jnp.float32


def test_gradients_are_clipped_by_their_joint_norm():
  optimizer = optim.make_optimizer(
    OptimConfig(clip_norm=1.0, beta1=0.0, beta2=0.0, eps=1e9)
  )
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  gradient = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  state = optim.init_optimizer(optimizer, params)
  new, _ = optim.apply_gradients(optimizer, gradient, state, params, 1e9)
  np.testing.assert_allclose([new['a'][0], new['b'][0]], [-0.6, -0.8], rtol=1e-5)


@pytest.mark.slow
def test_muon_is_for_matrices_between_hidden_states():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  params = {
    'layers': {'q': {'w': draw(2, 6, 4)}, 'norm': {'scale': draw(2, 4)}},
    'head': {'w': draw(5, 4)},
  }
  gradient = jax.tree.map(lambda x: draw(*x.shape), params)
  optimizer = optim.make_muon(OptimConfig())
  state = optim.init_optimizer(optimizer, params)
  new, _ = optim.apply_gradients(optimizer, gradient, state, params, 1.0)
  step = jax.tree.map(lambda a, b: np.asarray(a - b), params, new)
  # Orthogonal, layer by layer: a root mean square of 0.2 in a 6 x 4 matrix of equal
  # singular values, 0.2 sqrt(6), to what five Newton-Schulz steps leave.
  for layer, g in zip(
    step['layers']['q']['w'], gradient['layers']['q']['w'], strict=True
  ):
    values = np.linalg.svd(layer, compute_uv=False) / (0.2 * 6**0.5)
    assert values.min() > 0.6 and values.max() < 1.3
    assert np.sum(layer * np.asarray(g)) > 0  # downhill
  for adam in (step['layers']['norm']['scale'], step['head']['w']):
    assert np.abs(adam).max() < 2.5  # Adam's first step, with Nesterov's look ahead
    assert np.abs(adam).min() > 0.5


def test_muon_decays_towards_zero():
  params = {'q': {'w': jnp.full((4, 4), 2.0)}}
  gradient = {'q': {'w': jnp.zeros((4, 4))}}
  optimizer = optim.make_muon(OptimConfig(weight_decay=0.1))
  state = optim.init_optimizer(optimizer, params)
  new, _ = optim.apply_gradients(optimizer, gradient, state, params, 0.5)
  np.testing.assert_allclose(new['q']['w'], 2.0 * (1 - 0.05), rtol=1e-6)


@pytest.mark.parametrize(
  'total, warmup, line',
  [
    (
      1,
      0.03,
      '1 step, no more than the warm-up; it has rate 0, and nothing is learned',
    ),
    (3, 5.0, '3 steps, no more than the warm-up; the last one has 40% of the learning'),
    (2, 2.0, 'the last one has 50%'),
    (3, 2.0, ''),
    (100, 0.03, ''),
    (1, 0.0, ''),
  ],
)
def test_a_run_that_is_all_warmup_is_said(total, warmup, line, capsys):
  """As one of fewer samples than a batch: its only step changes nothing."""
  settings = OptimConfig(warmup=warmup)
  optim.report_warmup(settings, total)
  output = capsys.readouterr().out
  assert line in output and bool(line) == bool(output)
  rates = [float(optim.learning_rate(settings, total)(step)) for step in range(total)]
  assert (max(rates) < settings.learning_rate * (1 - 1e-6)) == bool(line)
