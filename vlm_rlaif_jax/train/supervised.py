"""Supervised training of an adapter: the loss, the step, the batches.

Used by SFT (adapter and projector, from patch features) and by policy initialization
(adapter alone, from visual tokens).
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vlm_rlaif_jax.core import compilation, sharding
from vlm_rlaif_jax.data import batches, readers
from vlm_rlaif_jax.data.pairs import PairSample
from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.vlm import Vlm, embedded_index
from vlm_rlaif_jax.objectives import likelihood
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.init import InitRun
from vlm_rlaif_jax.settings.reward import RewardRun
from vlm_rlaif_jax.settings.sections import LogConfig, OptimConfig
from vlm_rlaif_jax.settings.sft import SftRun
from vlm_rlaif_jax.train import console, journal, loop, optim, shardings, step_weights
from vlm_rlaif_jax.train.checkpointer import Checkpointer
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.train.sample_batches import SampleBatches
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.train.step_weights import StepWeights
from vlm_rlaif_jax.weights import bases, placement

LOGIT_CHUNK = 512  # positions whose vocabulary-sized logits exist at a time


def target_logprobs(
  model: Vlm,
  variables: dict,
  ids: jax.Array,
  valid: jax.Array,
  visual: jax.Array,
  rngs: dict | None = None,
) -> jax.Array:
  """Returns log p of every text token given those before it, `float32[B, T - 1]`.

  ids        1 7 V 9 4 2          logits come from the embedded position before
  predicts     7 V 9 4 2          each token: for 9, the last visual token
  """
  hidden, _, _ = vlm.hidden(model, variables, ids, valid, visual, rngs=rngs)
  before = embedded_index(ids, visual.shape[1])[:, 1:] - 1
  hidden = jnp.take_along_axis(hidden, jnp.maximum(before, 0)[..., None], axis=1)

  def log_probabilities(h: jax.Array, tokens: jax.Array) -> jax.Array:
    return likelihood.log_probabilities(vlm.logits(model, variables, h), tokens)

  targets = jnp.maximum(ids[:, 1:], 0)  # the slot's own id is never a target
  return likelihood.over_chunks(log_probabilities, hidden, targets, LOGIT_CHUNK)


def loss(
  model: Vlm, trainable: dict, base: dict, batch: dict, key: jax.Array
) -> tuple[jax.Array, dict]:
  """Returns the cross-entropy of the answers of one micro-batch.

  Args:
    trainable: `{'lora': ...}`, with `projector` where it trains too.
    base: `{'llama': ...}`, frozen.
    batch: ids `int32[B, T]`, target `bool[B, T]`, and either `patches [B, F, P, C]` or
      `visual [B, N, D]`.
  """
  params = dict(base)
  if 'projector' in trainable:
    params['projector'] = trainable['projector']
  if 'patches' in batch:
    visual = vlm.project(model, params, batch['patches'])
  else:
    visual = batch['visual'].astype(model.cfg.dtype)
  variables = {'params': params, 'lora': trainable['lora']}
  ids, target = batch['ids'], batch['target']
  logp = target_logprobs(
    model, variables, ids, ids != PAD, visual, rngs={'dropout': key}
  )
  return likelihood.cross_entropy(logp, target[:, 1:]), {}


def make_step(
  loss_fn: Callable,
  optimizer: optax.GradientTransformation,
  schedule: Callable,
  accumulate: int,
  weigh: Callable[[Any], StepWeights] | None = None,
  extend: Callable[[TrainState, Any, Any, jax.Array], Any] | None = None,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict]]:
  """Returns one optimizer step over `accumulate` micro-batches.

  Args:
    loss_fn: (trainable, base, micro-batch, key) -> (loss, dict of metrics).
    weigh: batch, split into micro-batches `[A, B / A, ...]` -> weights; None: micro-
      batches count alike, and every step is a whole one.
    extend: (state, base, micro-batches, their weights) -> micro-batches with what a
      loss has to know of the whole step.

  Returns:
    (state, base, batch) -> (state, metrics).
  """

  def step(current: TrainState, base: Any, batch: Any) -> tuple[TrainState, dict]:
    micro = jax.tree.map(
      lambda x: einops.rearrange(x, '(b a) ... -> a b ...', a=accumulate), batch
    )
    parts, share = weigh(micro) if weigh else step_weights.alike(accumulate)
    if extend:
      micro = extend(current, base, micro, parts)

    # Gradients, accumulated over micro-batches
    gradient_of = jax.value_and_grad(loss_fn, has_aux=True)

    def add(total: Any, item: tuple) -> tuple[Any, dict]:
      index, weight, part = item
      key = current.at_step(index)
      with jax.named_scope('update/gradient'):
        (value, extra), gradient = gradient_of(current.trainable, base, part, key)
      total = optim.add_weighted(total, weight, gradient)
      return total, jax.tree.map(lambda x: weight * x, {'loss': value, **extra})

    zeros = jax.tree.map(jnp.zeros_like, current.trainable)
    if accumulate == 1:
      first = (0, parts[0], jax.tree.map(lambda x: x[0], micro))
      gradient, metrics = add(zeros, first)
    else:
      items = (jnp.arange(accumulate), parts, micro)
      gradient, metrics = jax.lax.scan(add, zeros, items)
      metrics = jax.tree.map(jnp.sum, metrics)

    # Optimizer; a step on part of a batch is that part of a step
    rate = schedule(current.step)
    with jax.named_scope('update/optimizer'):
      trainable, opt_state = optim.apply_gradients(
        optimizer, gradient, current.opt_state, current.trainable, rate, share
      )
    metrics = {
      **metrics,
      'gradient_norm': optax.tree.norm(gradient),
      'learning_rate': rate,
      'lr': rate,
    }
    return dataclasses.replace(
      current, step=current.step + 1, trainable=trainable, opt_state=opt_state
    ), metrics

  return step


def program(
  loss_fn: Callable,
  optimizer: optax.GradientTransformation,
  schedule: Callable,
  accumulate: int,
  mesh: Mesh,
  current: TrainState,
  frozen: Any,
  weigh: Callable[[Any], StepWeights] | None = None,
  extend: Callable[[TrainState, Any, Any, jax.Array], Any] | None = None,
) -> sharding.Program:
  """Returns `make_step` on a mesh.

  Args:
    current, frozen: state and base, as arrays or as shapes with shardings.
    weigh, extend: see `make_step`.
  """
  layout = sharding.layout_of(current)
  return sharding.Program(
    'update',
    make_step(loss_fn, optimizer, schedule, accumulate, weigh, extend),
    mesh,
    (layout, sharding.layout_of(frozen), sharding.by_batch(mesh)),
    (layout, sharding.replicated(mesh)),
    donate=(0,),
    options=sharding.gradient_options(mesh),
  )


def place(
  settings: SftRun | InitRun | RewardRun,
  run: RunContext,
  base: bases.Base,
  trainable: dict,
  optimizer: optax.GradientTransformation,
) -> tuple[dict, TrainState]:
  """Puts the frozen decoder and a fresh training state on the mesh.

  Returns:
    `{'llama': ...}` with its linears quantized as the settings say, and the state.
  """
  sharding.check_batch(
    settings.optim.batch_size // settings.optim.accumulate,
    run.mesh,
    'config.optim.batch_size / accumulate',
  )
  frozen = placement.on_device(
    {'llama': base.params['llama']}, settings.model, run.mesh, quant=settings.quant
  )
  layout = shardings.trainable(settings.model, settings.lora, run.mesh, trainable)
  initial = shardings.start(trainable, layout, optimizer, settings.seed, run.mesh)
  console.write_sharding_table(
    run.folder / 'layout.txt',
    {'base': frozen, 'trained': initial.trainable, 'optimizer': initial.opt_state},
  )
  return frozen, initial


def train(
  settings: SftRun | InitRun,
  run: RunContext,
  model: Vlm,
  base: bases.Base,
  trainable: dict,
  optimizer: optax.GradientTransformation,
  steps: list[batches.Step],
  build: SampleBatches,
) -> tuple[TrainState, dict]:
  """Runs all steps of a supervised stage, resumed from its last checkpoint.

  Args:
    build: returns the batch of a step, on the devices.

  Returns:
    the final state, and the base's quantization and bytes for the summary.
  """
  frozen, initial = place(settings, run, base, trainable, optimizer)
  optim.report_warmup(settings.optim, len(steps))
  step = program(
    functools.partial(loss, model),
    optimizer,
    optim.learning_rate(settings.optim, len(steps)),
    settings.optim.accumulate,
    run.mesh,
    initial,
    frozen,
    step_weights.weigh_by(step_weights.targets_of, settings.optim.loss_mean),
  )
  checkpointer = Checkpointer(
    run.folder,
    settings.checkpoint,
    journal.identity(
      settings,
      base.fingerprint,
      total_steps=len(steps),
      **journal.videos(settings, build.features.contents),
    ),
  )
  final = loop.fit(
    lambda current, batch: step(current, frozen, batch),
    initial,
    lambda first: batches.prefetch(build, steps[first:]),
    len(steps),
    title=settings.stage,
    folder=run.folder,
    checkpointer=checkpointer,
    log=settings.log,
    profiler=Profiler(settings.profile, run.folder, [step]),
    work=lambda batch: step_flops(settings, batch),
    prepare=lambda current, done: compile_ahead(
      step, (current, frozen), steps[done:], build.shapes, settings.stage, settings.log
    ),
  )
  checkpointer.close()
  return final, {'model': placement.base_summary(frozen, settings.quant)}


def step_flops(settings: SftRun | InitRun, batch: dict) -> tuple[float, float, float]:
  """Returns positions of a batch, operations that it needs, and recomputed ones."""
  rows, text = batch['ids'].shape
  if 'patches' in batch:
    frames = batch['patches'].shape[1]
  else:
    frames = batch['visual'].shape[1] - settings.model.vision.patches
  return flops.supervised_step(
    settings.model.llama,
    settings.lora,
    settings.model.vision,
    rows,
    text,
    frames,
    projects='patches' in batch,
  )


def steps_of(
  samples: Sequence[readers.Sample | PairSample], settings: OptimConfig, seed: list[int]
) -> list[batches.Step]:
  """Returns the batches of all epochs, in order."""
  shapes = [sample.shape for sample in samples]
  return [
    step
    for epoch in range(settings.epochs)
    for step in batches.plan_batches(shapes, settings.batch_size, [*seed, epoch])
  ]


def compile_ahead(
  program: sharding.Program,
  leading: tuple,
  steps: list[batches.Step],
  shapes: Callable[[batches.Step], dict],
  title: str,
  log: LogConfig,
) -> None:
  """Compiles a program for every shape that its batches will have.

  Args:
    leading: the arguments before the batch.
    shapes: returns the batch of a step as shapes, without reading any data.
  """
  first = {step.shape: step for step in reversed(steps)}.values()
  compilation.ahead(
    [(program, (*leading, shapes(step))) for step in first],
    loop.bar(f'{title}: compile', log, 'shape'),
  )
