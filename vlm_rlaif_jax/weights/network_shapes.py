"""Shapes and logical axes of every weight of a network, without making one."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta

from vlm_rlaif_jax.nn.clip import ClipText
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.constants import PAD, VIDEO
from vlm_rlaif_jax.settings.models import ClipTextConfig, LoraConfig, VlmConfig


@functools.lru_cache(maxsize=16)
def abstract(cfg: VlmConfig, lora: LoraConfig | None = None) -> Any:
  """Returns shapes and logical axes of every weight, as boxed `ShapeDtypeStruct`s."""
  size = cfg.vision.image_size
  return jax.eval_shape(
    Vlm(cfg, lora).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 2, size, size, 3), jnp.float32),
    jax.ShapeDtypeStruct((1, 3), jnp.int32),
    jax.ShapeDtypeStruct((1, 3), jnp.bool_),
  )


def abstract_params(cfg: VlmConfig) -> Any:
  """Returns the shapes of a base."""
  return meta.unbox(abstract(cfg))['params']


def abstract_text(cfg: ClipTextConfig, joint: int) -> Any:
  """Returns the shapes of a text tower.

  Args:
    joint: width of its embeddings.
  """
  ids = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  boxed = jax.eval_shape(ClipText(cfg, joint).init, jax.random.key(0), ids)
  return meta.unbox(boxed)['params']


def abstract_adapter(cfg: VlmConfig, lora: LoraConfig, dtype: str = 'float32') -> Any:
  """Returns the shapes of an adapter."""
  shapes = meta.unbox(abstract(cfg, lora))['lora']
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)


@functools.partial(jax.jit, static_argnums=0)
def init(cfg: VlmConfig, key: jax.Array) -> dict[str, Any]:
  """Returns random weights of a network; for pretraining and for tests.

  It is compiled as one program, so that the pass that declares the weights is not
  computed.
  """
  size = cfg.vision.image_size
  ids = jnp.array([[1, VIDEO, 1]])
  variables = Vlm(cfg).init(key, jnp.zeros((1, 2, size, size, 3)), ids, ids != PAD)
  return meta.unbox(variables)['params']
