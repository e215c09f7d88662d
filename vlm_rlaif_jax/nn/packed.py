"""Attends by cuDNN, which stores no scores, to rows whose real tokens come first.

cuDNN takes the length of a row that begins at slot 0, and no left pads. Real tokens are
therefore permuted to the front, each with the rotary position that it had, and hidden
states are permuted back after the last norm:

    positions   0 1 2 3 4 5 6      a: real, p: pad
    padded      p p a b c p p
    packed      a b c p p p p p    keys: the first 3; padded to a multiple of `STEP`
    place of    3 4 0 1 2 5 6      `inverse`

A pad to the right of the answer attends to all real tokens, as in the padded form (the
reference trains values there). One to the left attends to them too, where it attended
to none; its state is not used. An id 0 inside an answer (register B36) is a pad that
attends to what follows it.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import target

STEP = 128  # packed lengths are a multiple of it


@flax.struct.dataclass
class Rows:
  """The mask of a decoder whose rows are packed: causal, by lengths.

  Attributes:
    lengths: `int32[B]`, real tokens.
  """

  lengths: jax.Array


@flax.struct.dataclass
class Packing:
  """A permutation of the positions of each row.

  Attributes:
    order: `int32[B, T]`, the position of each packed token; T is a multiple of `STEP`.
    inverse: `int32[B, T]`, the packed place of each position.
    rows: lengths of the packed rows.
  """

  order: jax.Array
  inverse: jax.Array
  rows: Rows


def implementation(dtype: Any, head_dim: int) -> str | None:
  """Returns the implementation for `jax.nn.dot_product_attention` on this chip.

  None stands for `attention.attend`. No other place chooses. On an H100, cuDNN takes a
  quarter of the time of plain operations; it computes only in 16 bits.
  """
  mesh = jax.sharding.get_abstract_mesh()
  fits = dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128
  on_gpu = target.platform() == 'gpu' and mesh.shape.get('tensor', 1) == 1
  return 'cudnn' if fits and on_gpu else None


def packing(valid: jax.Array) -> Packing:
  """Returns where to put each token, given `bool[B, M]`, true at real tokens."""
  room = -valid.shape[1] % STEP
  valid = jnp.pad(valid, ((0, 0), (0, room)))
  order = jnp.argsort(~valid, axis=1, stable=True)
  # A row without any real token attends to its first pad, and stays finite.
  lengths = jnp.maximum(jnp.sum(valid, axis=1), 1).astype(jnp.int32)
  return Packing(order, jnp.argsort(order, axis=1), Rows(lengths))


def pack(x: jax.Array, where: Packing) -> jax.Array:
  """`[B, M, ...]` -> `[B, T, ...]`, real tokens first."""
  room = where.order.shape[1] - x.shape[1]
  return _permute(
    jnp.pad(x, ((0, 0), (0, room)) + ((0, 0),) * (x.ndim - 2)),
    where.order,
    where.inverse,
  )


def unpack(x: jax.Array, where: Packing, length: int) -> jax.Array:
  """`[B, T, ...]` -> `[B, length, ...]`, the inverse of `pack`."""
  return _permute(x, where.inverse, where.order)[:, :length]


@jax.custom_vjp
def _permute(x: jax.Array, places: jax.Array, inverse: jax.Array) -> jax.Array:
  """Returns x at `places` of its second axis.

  The gradient is permuted by `inverse`: a scatter would add in an undefined order.
  """
  return _gather(x, places)


def _gather(x: jax.Array, places: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), 1)


_permute.defvjp(
  lambda x, places, inverse: (_gather(x, places), inverse),
  lambda inverse, grad: (_gather(grad, inverse), None, None),
)


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, rows: Rows | None = None
) -> jax.Array:
  """softmax(q kᵀ / sqrt(K)) v; with rows, causal and over the real keys of each.

  Args:
    q: `[B, T, H, K]`.
    k, v: `[B, T, G, K]`, G dividing H.
    rows: lengths of packed rows; None: every query attends to every key.

  Returns:
    `[B, T, H, K]`.
  """
  how = implementation(q.dtype, q.shape[-1])
  if rows is None:
    return jax.nn.dot_product_attention(q, k, v, implementation=how)  # type: ignore
  whole = jnp.full_like(rows.lengths, q.shape[1])
  return jax.nn.dot_product_attention(
    q,
    k,
    v,
    is_causal=True,
    query_seq_lengths=whole,
    key_value_seq_lengths=rows.lengths,
    implementation=how,  # type: ignore
  )
