"""Our side of a benchmark: a LoRA step and sampling, as calls that wait for results.

Prompts are text alone: a visual token is passed along, and no prompt has a slot for it.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.sections import OptimConfig
from vlm_rlaif_jax.train import optim, shardings, supervised
from vlm_rlaif_jax.weights import adapters

SCHEDULE_STEPS = 1000  # of the learning rate; no time depends on it


def training_call(
  model: Vlm, base: Any, ids: np.ndarray, mesh: jax.sharding.Mesh, config: OptimConfig
) -> Callable[[], None]:
  """Returns a call that trains a fresh adapter by one step on all rows of ids.

  Args:
    base: `{'llama': ...}` on the mesh, in any residency.
    ids: `int32[B, T]`; every token is a target.
  """
  assert model.lora is not None
  batch = {
    'ids': jnp.asarray(ids),
    'target': jnp.ones(ids.shape, bool),
    'visual': no_video(model, len(ids)),
  }
  optimizer = optim.make_optimizer(config)
  trainable = {'lora': fresh_adapter(model)}
  layout = shardings.trainable(model.cfg, model.lora, mesh, trainable)
  state = shardings.start(trainable, layout, optimizer, 0, mesh)
  step = supervised.program(
    functools.partial(supervised.loss, model),
    optimizer,
    optim.learning_rate(config, SCHEDULE_STEPS),
    1,
    mesh,
    state,
    base,
  )

  def train() -> None:
    nonlocal state
    state, metrics = step(state, base, batch)
    jax.block_until_ready(metrics)

  return train


def sampling_call(
  model: Vlm, base: Any, ids: np.ndarray, prompt: int, response: int
) -> Callable[[int], None]:
  """Returns a call that samples after the first `rows` rows of ids.

  Args:
    base: `{'llama': ...}`, in any residency.
    ids: `int32[B, T]`; the first `prompt` of each row are read.
    response: tokens sampled, always as many.
  """
  adapter = fresh_adapter(model)
  sampling = sampler.Sampling(response, eos=-1)

  @jax.jit
  def sample(params, lora, ids, visual, keys):
    variables = {'params': params, 'lora': lora}
    return sampler.sample(model, variables, ids, ids != PAD, visual, keys, sampling)

  def call(rows: int) -> None:
    prompts = jnp.asarray(ids[:rows, :prompt])
    keys = sampler.example_keys(jax.random.key(0), jnp.arange(rows))
    visual = no_video(model, rows)
    jax.block_until_ready(sample(base, adapter, prompts, visual, keys))

  return call


def fresh_adapter(model: Vlm) -> Any:
  """Returns an initialized LoRA of the model."""
  assert model.lora is not None
  return adapters.init_adapter(model.cfg, model.lora, jax.random.key(1))


def no_video(model: Vlm, rows: int) -> jax.Array:
  """Returns one visual token of zeros a row, `[rows, 1, D]`."""
  return jnp.zeros((rows, 1, model.cfg.llama.width), model.cfg.dtype)
