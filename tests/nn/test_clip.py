import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import CFG
from vlm_rlaif_jax.nn import layers
from vlm_rlaif_jax.nn.clip import Clip, ClipText


@pytest.mark.slow
def test_text_is_read_up_to_its_end_only():
  model = ClipText(CFG.text, CFG.joint)
  ids = jnp.array([[1, 5, 6, 2, 9, 9], [1, 5, 6, 2, 7, 0]])
  import flax.linen as nn

  params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), ids))
  embedded = jax.jit(model.apply)(params, ids)
  assert embedded.shape == (2, CFG.joint)
  np.testing.assert_allclose(embedded[0], embedded[1], atol=1e-6)


@pytest.mark.slow
def test_similarities_are_cosines_times_the_temperature():
  import flax.linen as nn

  model = Clip(CFG.vision, CFG.text, CFG.joint)
  pixels = jax.random.normal(jax.random.key(0), (3, 16, 16, 3))
  ids = jnp.array([[1, 5, 6, 2], [1, 8, 2, 0]])
  params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(1), pixels, ids))
  scores = jax.jit(model.apply)(params, pixels, ids)
  assert scores.shape == (3, 2)
  assert np.abs(scores).max() <= np.exp(2.6592) + 1e-3


def test_quick_gelu():
  x = jnp.array([-1.0, 0.0, 2.0])
  np.testing.assert_allclose(
    layers.quick_gelu(x),
    np.asarray(x) / (1 + np.exp(-1.702 * np.asarray(x))),
    rtol=1e-6,
  )
