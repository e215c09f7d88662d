"""The arguments of every phase of an iteration as shapes.

A plan compiles the phases for chips that are not here by them, a run before its first
iteration.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.train import shardings
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.types import Bases, Frozen, Prompts, Rollout


def arguments(
  phases: dict[str, sharding.Program],
  bases: Bases,
  frozen: Frozen,
  state: TrainState,
  prompts: Prompts,
  response_tokens: int,
  key: Any,
  number: Any,
) -> dict[str, tuple]:
  """Returns what each phase of `rl.algorithm.programs` is called with, by name.

  The phase that takes longest to compile comes first.

  Args:
    bases, frozen, state, prompts: arrays, or shapes with shardings.
    response_tokens: columns of a response.
    key: of the sampler, or its shape.
    number: a float32 on the devices, or its shape: learning rate, weight of the KL
      penalty.
  """
  rows, mesh = prompts.ids.shape[0], phases['score'].mesh

  def by_row(dtype: Any, *shape: int) -> Any:
    return shardings.rows(mesh, jax.ShapeDtypeStruct((rows, *shape), dtype))

  rollout: Any = Rollout(
    prompts=prompts,
    tokens=by_row(jnp.int32, response_tokens),
    mask=by_row(jnp.bool_, response_tokens),
    sampler_logprobs=by_row(jnp.float32, response_tokens),
    has_eos=by_row(jnp.bool_),
    adapter=sharding.abstract(
      jax.ShapeDtypeStruct((), jnp.uint32), sharding.replicated(mesh)
    ),
  )
  score = bases, state.trainable, frozen, rollout
  scores = shardings.rows(mesh, phases['score'].trace(*score).out_info)
  estimate = rollout, scores, by_row(jnp.float32), by_row(jnp.float32), number
  estimates, _ = phases['estimate'].trace(*estimate).out_info
  return {
    'update': (state, bases, rollout, scores, shardings.rows(mesh, estimates), number),
    'rollout': (bases, state.trainable['policy'], prompts, key),
    'score': score,
    'estimate': estimate,
    'reward': (bases, frozen, prompts, rollout.tokens),
  }
