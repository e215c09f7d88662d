"""The kernel compiled, on an NVIDIA GPU: `JAX_PLATFORMS=cuda pytest -n 0` with this."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.core.quant import kernel, nf4
from vlm_rlaif_jax.core.quant.product import Layer, product

pytestmark = pytest.mark.skipif(
  jax.default_backend() != 'gpu', reason='needs an NVIDIA GPU'
)


@pytest.mark.parametrize(
  ('out', 'inp'), [(4096, 4096), (11008, 4096), (4096, 11008), (5120, 13824)]
)
def test_the_compiled_kernel_is_the_plain_product(out, inp):
  """A row with one 1 reads a column of the weight, which is the same to the bit."""
  weight = 0.02 * jax.random.normal(jax.random.key(0), (2, out, inp))
  leaf = nf4.quantize(weight)
  dequantized = jax.tree.map(lambda a: a[1], leaf).dequantize(jnp.bfloat16)
  run, layer = jax.jit(kernel.product), Layer(leaf, jnp.int32(1))
  for rows in (1, 8, 31, 64, 128):
    x = jax.random.normal(jax.random.key(rows), (rows, inp), jnp.bfloat16)
    x = x.at[0].set(jnp.eye(1, inp, inp // 3, dtype=x.dtype)[0])
    actual = run(x, leaf, layer.index)
    np.testing.assert_array_equal(actual[0], dequantized[:, inp // 3])
    wide = np.asarray(x, np.float32) @ np.asarray(dequantized, np.float32).T
    error = np.linalg.norm(np.asarray(actual, np.float32) - wide) / np.linalg.norm(wide)
    assert error < 3e-3  # of rounding the result to bfloat16: 2**-9 / sqrt(3) = 1.1e-3
    assert 'triton' in jax.jit(product).lower(x, layer).as_text()
