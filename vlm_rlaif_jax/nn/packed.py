"""Attention that writes no scores to memory: cuDNN's, on rows without holes.

cuDNN knows rows that begin at slot 0 and how long they are, not left pads. So real
tokens are moved to the front, each with the rotary position that it had, and hidden
states are moved back after the last norm:

    positions   0 1 2 3 4 5 6      a: real, p: pad
    padded      p p a b c p p
    packed      a b c p p p p p    keys seen: the first 3; an even number of places
    place of    3 4 0 1 2 5 6      `inverse`

A pad to the right of the answer sees all real tokens, as it does in the padded form
(the reference trains values there). One to the left sees them too, where it saw none:
nobody reads it. An id 0 inside an answer (register B36) is a pad that sees what
follows.
"""

import flax.struct
import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import target

STEP = 128  # packed lengths are a multiple of it


@flax.struct.dataclass
class Rows:
  """Takes the mask's place in a decoder whose rows are packed: causal, by lengths.

  lengths: `int32[B]`, real tokens.
  """

  lengths: jax.Array


@flax.struct.dataclass
class Packing:
  """Where tokens went. order, inverse: `int32[B, T]`, T a multiple of `STEP`."""

  order: jax.Array
  inverse: jax.Array
  rows: Rows


def implementation(dtype, head_dim: int) -> str | None:
  """Of `jax.nn.dot_product_attention` for the chip at hand; None: `attention.attend`.

  The one place that chooses. On an H100 cuDNN takes a quarter of the time of plain
  operations (docs/benchmarks); it computes in 16 bits alone.
  """
  mesh = jax.sharding.get_abstract_mesh()
  fits = dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128
  on_gpu = target.platform() == 'gpu' and mesh.shape.get('tensor', 1) == 1
  return 'cudnn' if fits and on_gpu else None


def packing(valid) -> Packing:
  """`bool[B, M]`, which positions are real -> where they go."""
  room = -valid.shape[1] % STEP
  valid = jnp.pad(valid, ((0, 0), (0, room)))
  order = jnp.argsort(~valid, axis=1, stable=True)
  # A row without any real token sees itself, and stays finite.
  lengths = jnp.maximum(jnp.sum(valid, axis=1), 1).astype(jnp.int32)
  return Packing(order, jnp.argsort(order, axis=1), Rows(lengths))


def pack(x, where: Packing):
  """`[B, M, ...]` -> `[B, T, ...]`, real tokens first."""
  room = where.order.shape[1] - x.shape[1]
  return _moved(
    jnp.pad(x, ((0, 0), (0, room)) + ((0, 0),) * (x.ndim - 2)),
    where.order,
    where.inverse,
  )


def unpack(x, where: Packing, length: int):
  """`[B, T, ...]` -> `[B, length, ...]`; undoes `pack`."""
  return _moved(x, where.inverse, where.order)[:, :length]


@jax.custom_vjp
def _moved(x, places, back):
  """x at `places` of its second axis; the gradient is moved back, nothing is added up
  in an order of its own."""
  return _taken(x, places)


def _taken(x, places):
  return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), 1)


_moved.defvjp(
  lambda x, places, back: (_taken(x, places), back),
  lambda back, grad: (_taken(grad, back), None, None),
)


def attend(q, k, v, rows: Rows | None = None):
  """softmax(q kᵀ / sqrt(K)) v; with rows causal, and of each only its real keys.

  Args:
    q: `[B, T, H, K]`; k, v: `[B, T, G, K]`, G dividing H.
    rows: None: every query sees every key.

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
