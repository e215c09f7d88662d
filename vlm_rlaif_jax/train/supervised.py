"""Supervised fine-tuning of an adapter: the loss, the step, the batches.

Used by SFT (adapter and projector, from patch features) and by policy initialization
(adapter alone, from visual tokens).
"""

import dataclasses
from collections.abc import Callable, Sequence

import einops
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import batches, readers
from vlm_rlaif_jax.data.pairs import PairSample
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.vlm import Vlm, embedded_index
from vlm_rlaif_jax.objectives import likelihood
from vlm_rlaif_jax.settings.init import InitRun
from vlm_rlaif_jax.settings.reward import RewardRun
from vlm_rlaif_jax.settings.sections import LogConfig, OptimConfig
from vlm_rlaif_jax.settings.sft import SftRun
from vlm_rlaif_jax.train import console, journal, loop, optim, shardings, state
from vlm_rlaif_jax.train.checkpoint import Checkpointer
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import bases, placement

LOGIT_CHUNK = 512  # positions whose vocabulary-sized logits exist at a time


def target_logprobs(model: Vlm, variables, ids, valid, visual, rngs=None):
  """log p of every text token given what stands before it, `float32[B, T - 1]`.

  ids        1 7 V 9 4 2          logits come from the embedded position before
  predicts     7 V 9 4 2          each token: for 9, the last visual token
  """
  hidden, _, _ = vlm.hidden(model, variables, ids, valid, visual, rngs=rngs)
  before = embedded_index(ids, visual.shape[1])[:, 1:] - 1
  hidden = jnp.take_along_axis(hidden, jnp.maximum(before, 0)[..., None], axis=1)

  def log_probabilities(h, tokens):
    return likelihood.log_probabilities(vlm.logits(model, variables, h), tokens)

  targets = jnp.maximum(ids[:, 1:], 0)  # the slot's own id is never a target
  return likelihood.over_chunks(log_probabilities, hidden, targets, LOGIT_CHUNK)


def loss(model: Vlm, base, trainable, batch, key):
  """Cross-entropy of the answers of one micro-batch.

  Args:
    base: `{'llama': ...}`, frozen.
    trainable: `{'lora': ...}`, with `projector` where it trains too.
    batch: ids `int32[B, T]`, target `bool[B, T]`, and either `patches [B, F, P, C]` or
      `tokens [B, N, D]`.
  """
  params = dict(base)
  if 'projector' in trainable:
    params['projector'] = trainable['projector']
  if 'patches' in batch:
    visual = vlm.project(model, params, batch['patches'])
  else:
    visual = batch['tokens'].astype(model.cfg.dtype)
  variables = {'params': params, 'lora': trainable['lora']}
  ids, target = batch['ids'], batch['target']
  logp = target_logprobs(model, variables, ids, ids != 0, visual, rngs={'dropout': key})
  return likelihood.cross_entropy(logp, target[:, 1:]), {}


def make_step(
  loss_fn: Callable, optimizer: optax.GradientTransformation, schedule, accumulate: int
):
  """One optimizer step over `accumulate` micro-batches of equal weight.

  Args:
    loss_fn: (trainable, base, micro-batch, key) -> (loss, dict of metrics).

  Returns:
    (state, base, batch) -> (state, metrics).
  """

  def step(current: state.TrainState, base, batch):
    micro = jax.tree.map(
      lambda x: einops.rearrange(x, '(b a) ... -> a b ...', a=accumulate), batch
    )
    gradient_of = jax.value_and_grad(loss_fn, has_aux=True)

    def add(total, item):
      index, part = item
      key = current.at_step(index)
      with jax.named_scope('update/gradient'):
        (value, extra), gradient = gradient_of(current.trainable, base, part, key)
      return jax.tree.map(jnp.add, total, gradient), {'loss': value, **extra}

    zeros = jax.tree.map(jnp.zeros_like, current.trainable)
    if accumulate == 1:
      gradient, seen = add(zeros, (0, jax.tree.map(lambda x: x[0], micro)))
    else:
      gradient, seen = jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro))
      gradient = jax.tree.map(lambda g: g / accumulate, gradient)
      seen = jax.tree.map(jnp.mean, seen)
    rate = schedule(current.step)
    with jax.named_scope('update/optimizer'):
      trainable, opt_state = optim.apply_gradients(
        optimizer, gradient, current.opt_state, current.trainable, rate
      )
    metrics = {
      **seen,
      'gradient_norm': optax.tree.norm(gradient),
      'learning_rate': rate,
    }
    return dataclasses.replace(
      current, step=current.step + 1, trainable=trainable, opt_state=opt_state
    ), metrics

  return step


def program(
  loss_fn: Callable,
  optimizer: optax.GradientTransformation,
  schedule,
  accumulate: int,
  mesh,
  current: state.TrainState,
  frozen,
) -> sharding.Program:
  """`make_step` on a mesh; state and base are arrays, or shapes with a layout."""
  layout = sharding.layout_of(current)
  return sharding.Program(
    'update',
    make_step(loss_fn, optimizer, schedule, accumulate),
    mesh,
    (layout, sharding.layout_of(frozen), sharding.by_batch(mesh)),
    (layout, sharding.replicated(mesh)),
    donate=(0,),
    options=sharding.gradient_options(mesh),
  )


def place(
  settings: SftRun | InitRun | RewardRun,
  space: RunContext,
  base: bases.Base,
  trainable: dict,
  optimizer: optax.GradientTransformation,
):
  """The frozen decoder and a fresh training state on the mesh; says where they lie.

  Returns:
    `{'llama': ...}` as it is held, and the state.
  """
  sharding.check_batch(
    settings.optim.batch_size // settings.optim.accumulate,
    space.mesh,
    'config.optim.batch_size / accumulate',
  )
  frozen = placement.on_device(
    {'llama': base.params['llama']}, settings.model, space.mesh, quant=settings.quant
  )
  layout = shardings.trainable(settings.model, settings.lora, space.mesh, trainable)
  initial = shardings.start(trainable, layout, optimizer, settings.seed, space.mesh)
  console.write_sharding_table(
    space.folder / 'layout.txt',
    {'base': frozen, 'trained': initial.trainable, 'optimizer': initial.opt_state},
  )
  return frozen, initial


def train(
  settings: SftRun | InitRun,
  space: RunContext,
  model: Vlm,
  base: bases.Base,
  trainable: dict,
  optimizer: optax.GradientTransformation,
  steps: list[batches.Step],
  build: Callable[[batches.Step], dict],
) -> tuple[state.TrainState, dict]:
  """The whole supervised run of a stage, resumed where it was left.

  Args:
    build: makes the batch of a step, on the device.

  Returns:
    the final state, and how the base was held, for the summary.
  """
  frozen, initial = place(settings, space, base, trainable, optimizer)
  step = program(
    lambda t, b, batch, key: loss(model, b, t, batch, key),
    optimizer,
    optim.learning_rate(settings.optim, len(steps)),
    settings.optim.accumulate,
    space.mesh,
    initial,
    frozen,
  )
  checkpointer = Checkpointer(
    space.folder,
    settings.checkpoint,
    journal.identity(settings, base.fingerprint, total_steps=len(steps)),
  )
  final = loop.fit(
    lambda current, batch: step(current, frozen, batch),
    initial,
    lambda first: batches.prefetch(build, steps[first:]),
    len(steps),
    title=settings.stage,
    folder=space.folder,
    checkpointer=checkpointer,
    log=settings.log,
    profiler=Profiler(settings.profile, space.folder, [step]),
    work=lambda batch: step_flops(settings, batch),
    prepare=lambda current, done: compile_ahead(
      step, (current, frozen), steps[done:], build, settings.stage, settings.log
    ),
  )
  checkpointer.close()
  return final, {'model': placement.base_summary(frozen, settings.quant)}


def step_flops(settings: SftRun | InitRun, batch: dict) -> tuple[float, float, float]:
  """Positions of a batch, operations that it needs, and those of recomputation."""
  rows, text = batch['ids'].shape
  vision, llama = settings.model.vision, settings.model.llama
  length = text + settings.data.frames + vision.patches - 1
  needed, again = flops.training(llama, settings.lora, length, text)
  if 'patches' in batch:
    needed += 3 * flops.projector(vision, llama.width, settings.data.frames)
  return rows * length, rows * needed, rows * again


def steps_of(
  samples: Sequence[readers.Sample | PairSample], settings: OptimConfig, seed: list[int]
) -> list[batches.Step]:
  """The batches of all epochs, in order."""
  shapes = [sample.shape for sample in samples]
  return [
    step
    for epoch in range(settings.epochs)
    for step in batches.plan_batches(shapes, settings.batch_size, [*seed, epoch])
  ]


def compile_ahead(
  program: sharding.Program,
  before: tuple,
  steps: list[batches.Step],
  build: Callable[[batches.Step], dict],
  title: str,
  log: LogConfig,
) -> None:
  """Compiles a program for every shape that its batches will have, and for no other.

  Args:
    before: the arguments that stand before the batch.
  """
  first = list({step.shape: step for step in reversed(steps)}.values())
  for step in loop.progress(first, len(first), f'{title}: compile', log, 'shape'):
    program.compile(*before, build(step))


def batch_builder(
  samples: list[readers.Sample], seen: VisualFeatures, what: str
) -> Callable[[batches.Step], dict]:
  """Makes the batch of a step, with features, on the device.

  Args:
    what: 'patches' `[B, F, P, C]` or 'tokens' `[B, N, D]`, also the name in the batch.
  """

  def build(step: batches.Step) -> dict:
    indices = step.indices[sharding.rows_of_this_host(len(step.indices), seen.mesh)]
    picked = [None if i == batches.BLANK else samples[i] for i in indices]
    frames, length = step.shape  # type: ignore[misc]
    features = [
      seen.read(what, sample.example.video)
      if sample and sample.example.video
      else seen.blank(what, frames)
      for sample in picked
    ]
    batch = {**readers.collate(picked, length), what: np.stack(features)}
    return sharding.put_batch(batch, seen.mesh)

  return build
