import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import CFG, random_params
from vlm_rlaif_jax.nn import heads, vlm
from vlm_rlaif_jax.nn.vlm import Vlm


@pytest.mark.slow
def test_log_odds_head_is_the_difference_of_two_logits():
  params = random_params()
  hidden = jax.random.normal(jax.random.key(0), (3, CFG.llama.width))
  logits = vlm.logits(Vlm(CFG), {'params': params}, hidden)
  head = heads.log_odds_head(params['llama']['head']['w'], 7, 9)
  np.testing.assert_allclose(head(hidden), logits[:, 7] - logits[:, 9], atol=1e-5)


def test_log_odds_head_is_float32_whatever_the_base_is():
  head = heads.log_odds_head(jnp.ones((4, 8), jnp.bfloat16), 1, 2)
  assert head.w.dtype == head.b.dtype == jnp.float32
  np.testing.assert_array_equal(head.w, 0)


@pytest.mark.parametrize('shape', [(4, 16), (4, 3, 16)])
def test_no_chip_rounds_the_product_of_a_head(shape):
  head = heads.init_head(jax.random.key(0), shape[-1])

  def total(head, hidden):
    return jnp.sum(head(hidden) ** 2)

  hidden = jnp.ones(shape, jnp.bfloat16)
  program = jax.jit(jax.value_and_grad(total)).lower(head, hidden).as_text()
  products = [line for line in program.splitlines() if 'stablehlo.dot' in line]
  assert products
  assert all('HIGHEST, HIGHEST' in line for line in products)
