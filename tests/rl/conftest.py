import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl.learner import ROWS, N, T
from tests.tiny import CFG, random_adapter, random_params
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.types import Bases, Frozen, Prompts


@pytest.fixture(scope='module')
def networks():
  params = random_params()
  llama = {'llama': params['llama']}
  return Bases(actor=llama, critic={'llama': random_params(9)['llama']})


@pytest.fixture(scope='module')
def frozen():
  return Frozen(
    reference=random_adapter(1),
    reward=random_adapter(2),
    reward_head=heads.init_head(jax.random.key(4), CFG.llama.width),
  )


@pytest.fixture(scope='module')
def prompts():
  rng = np.random.default_rng(0)
  ids = rng.integers(3, 60, (ROWS, T))
  ids[:, 3] = VIDEO
  ids[::3, 0] = 0
  visual = jax.random.normal(jax.random.key(5), (2, ROWS, N, CFG.llama.width))
  return Prompts(
    ids=jnp.asarray(ids), valid=jnp.asarray(ids != 0), actor_visual=visual[0],
    critic_visual=visual[1], example_id=jnp.arange(ROWS),
  )  # fmt: skip
