"""The training state: everything that a step changes, and nothing else."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

Tree = Any


@flax.struct.dataclass
class TrainState:
  """One pytree that is saved, restored and donated as a whole.

  Frozen bases are arguments of their own.

  Attributes:
    step: `int32[]`, updates so far.
    trainable: by name, for instance `{'lora': ..., 'projector': ...}`.
    opt_state: of the optimizer.
    key: a typed key; every use folds the step in, so it never changes.
  """

  step: jax.Array
  trainable: dict[str, Tree]
  opt_state: Tree
  key: jax.Array

  def at_step(self, salt: int = 0) -> jax.Array:
    """Returns the key of this step; different salts are for different uses."""
    return jax.random.fold_in(jax.random.fold_in(self.key, self.step), salt)


def portable(state: TrainState) -> dict:
  """Returns a state as plain arrays for a checkpoint, which typed keys are not."""
  return {
    'step': state.step,
    'trainable': state.trainable,
    'opt_state': state.opt_state,
    'key': jax.random.key_data(state.key),
  }


def from_portable(saved: dict) -> TrainState:
  """Returns the state that `portable` was given."""
  return TrainState(
    step=jnp.asarray(saved['step']),
    trainable=saved['trainable'],
    opt_state=saved['opt_state'],
    key=jax.random.wrap_key_data(saved['key']),
  )


def copy(tree: Tree) -> Tree:
  """Returns a tree with buffers of its own, as donation needs."""
  return jax.tree.map(jnp.copy, tree)


def checksum(tree: Tree) -> jax.Array:
  """Returns a `uint32[]` of the bits of every leaf and their order.

  It is computed where the tree is, inside or outside jit, so that the adapter that the
  sampler used and the one that the last update wrote are compared every iteration.
  """
  total = jnp.uint32(2166136261)
  for leaf in jax.tree.leaves(tree):
    bits = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32).ravel()
    place = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435761) + 1
    total = total * jnp.uint32(16777619) ^ jnp.sum(bits * place, dtype=jnp.uint32)
  return total
