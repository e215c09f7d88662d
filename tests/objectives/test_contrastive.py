import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.objectives import contrastive


def test_clip_loss_against_its_definition(rng):
  s = rng.normal(size=(3, 3))
  rows = [np.log(np.exp(s[i]).sum()) - s[i, i] for i in range(3)]
  columns = [np.log(np.exp(s[:, i]).sum()) - s[i, i] for i in range(3)]
  expected = (np.mean(rows) + np.mean(columns)) / 2
  np.testing.assert_allclose(contrastive.clip_loss(jnp.asarray(s)), expected, rtol=1e-5)
