"""AdamW with the reference's schedules, and Muon to pretrain the tiny base."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vlm_rlaif_jax.settings.sections import AdamWConfig
from vlm_rlaif_jax.train import console

NOT_HIDDEN = {'tokens', 'positions', 'head', 'probe'}  # matrices that Muon is not for


def warmup_steps(settings: AdamWConfig, total: int) -> int:
  """Returns the steps of warm-up; a share of all steps is rounded up."""
  if settings.warmup < 1:
    return math.ceil(settings.warmup * total)
  return int(settings.warmup)


def learning_rate(
  settings: AdamWConfig, total: int
) -> Callable[[jax.Array | int], jax.Array]:
  """Returns the schedule of the learning rate, a function of the step (from 0).

      s < w:  peak s / w;    else  peak (1 + cos(π (s - w) / (T - w))) / 2, or peak

  With a warm-up, step 0 has rate 0 (register B13).

  Args:
    total: T, the steps of the run.
  """
  warmup = warmup_steps(settings, total)
  peak = settings.learning_rate

  def rate(step: jax.Array | int) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    rising = peak * step / max(warmup, 1)
    if settings.schedule == 'cosine':
      share = (step - warmup) / max(total - warmup, 1)
      after = peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0, 1)))
    else:
      after = jnp.asarray(peak, jnp.float32)
    return jnp.where(step < warmup, rising, after)

  return rate


def report_warmup(settings: AdamWConfig, total: int, unit: str = 'step') -> None:
  """Prints it where a run ends before its learning rate has reached the peak.

  Args:
    total: steps of the run; unit: what one is called.
  """
  warmup = warmup_steps(settings, total)
  if not 0 < total <= warmup:
    return
  effect = f'the last one has {(total - 1) / warmup:.0%} of the learning rate'
  if total == 1:
    effect = 'it has rate 0, and nothing is learned'
  steps = f'{total} {unit}{"s" * (total > 1)}'
  console.say(
    f'  config.optim.warmup={settings.warmup:g}: the run has {steps}, no more than the '
    f'warm-up; {effect}; set it to 0 for none'
  )


def make_optimizer(
  settings: AdamWConfig, scales: dict[str, float] | None = None
) -> optax.GradientTransformation:
  """Returns AdamW in float32; `apply_gradients` multiplies by the learning rate.

  Gradients are clipped by their joint norm first; weight decay is decoupled.

  Args:
    scales: top-level name of the trainable tree -> factor of its learning rate.
  """
  chain = []
  if settings.clip_norm:
    chain.append(_clip_by_global_norm(settings.clip_norm))
  chain.append(
    optax.scale_by_adam(
      settings.beta1, settings.beta2, settings.eps, mu_dtype=jnp.float32
    )
  )
  if settings.weight_decay:
    chain.append(optax.add_decayed_weights(settings.weight_decay, mask=_is_matrix))
  if scales:
    chain.append(_scale_by_name(scales))
  return optax.chain(*chain)


def make_muon(settings: AdamWConfig) -> optax.GradientTransformation:
  """Returns Muon (Jordan et al. 2024): orthogonal updates of matrices.

  It is for matrices between hidden states. Embeddings, positions, the head, the probe
  of a picture's token and vectors get Adam. The root mean square of an update is 0.2,
  about Adam's (Liu et al. 2025, eq. 4), so one rate serves both.
  """

  def dimensions(params: Any) -> Any:
    def of_leaf(path: tuple, leaf: jax.Array) -> Any:
      names = {str(getattr(key, 'key', key)) for key in path}
      if leaf.ndim < 2 or 'w' not in names or names & NOT_HIDDEN:
        return None
      return contrib.MuonDimensionNumbers(leaf.ndim - 1, leaf.ndim - 2)

    return jax.tree.map_with_path(of_leaf, params)

  # apply_gradients subtracts, hence the sign.
  muon = contrib.muon(
    -1.0,
    eps=settings.eps,
    weight_decay=settings.weight_decay,
    adam_b1=settings.beta1,
    adam_b2=settings.beta2,
    muon_weight_dimension_numbers=dimensions,
    consistent_rms=0.2,
  )
  clip = [optax.clip_by_global_norm(settings.clip_norm)] if settings.clip_norm else []
  return optax.chain(*clip, muon)


def apply_gradients(
  optimizer: optax.GradientTransformation,
  gradients: Any,
  opt_state: Any,
  params: Any,
  rate: jax.Array | float,
  share: jax.Array | float = 1.0,
) -> tuple[Any, Any]:
  """Returns parameters and optimizer state after one update at learning rate `rate`.

  Arithmetic is in float32 whatever the dtype of the parameters. A bfloat16 parameter is
  rounded once, on writing: the reference's arithmetic (B11).

  Args:
    share: part of a whole step that this one is; it scales the rate, and the gradient
      after it was clipped. Adam divides by the size of a gradient, so the gradient
      alone would leave a step of full size; the rate alone would leave one row the
      weight of a batch in the moments.
  """
  gradients, master = _float32(gradients), _float32(params)
  gradients = jax.tree.map(lambda g: share * g, gradients)
  update = optax.with_extra_args_support(optimizer).update
  updates, opt_state = update(gradients, opt_state, master, share=share)
  rate = share * rate
  new = jax.tree.map(
    lambda old, m, u: (m - rate * u).astype(old.dtype), params, master, updates
  )
  return new, opt_state


def _clip_by_global_norm(norm: float) -> optax.GradientTransformationExtraArgs:
  """Returns the clip of gradients that `apply_gradients` has multiplied by a share.

  The limit is multiplied, too: the result is the share of the clipped gradient.
  """

  def update(
    updates: Any, state: Any, params: Any = None, *, share: Any = 1.0, **_: Any
  ) -> tuple[Any, Any]:
    return optax.clip_by_global_norm(norm * share).update(updates, state, params)

  return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def init_optimizer(optimizer: optax.GradientTransformation, params: Any) -> Any:
  """Returns the optimizer state of parameters, in float32 whatever their dtype."""
  return optimizer.init(_float32(params))


def add_weighted(total: Any, weight: jax.Array, tree: Any) -> Any:
  """Returns total + weight x tree, in the dtypes of the total."""
  return jax.tree.map(lambda t, x: t + (weight * x).astype(t.dtype), total, tree)


def _float32(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _is_matrix(params: Any) -> Any:
  """Returns which parameters are decayed: those that are not vectors."""
  return jax.tree.map(lambda x: x.ndim > 1, params)


def _scale_by_name(scales: dict[str, float]) -> optax.GradientTransformation:
  """Returns the multiplication of updates by a factor a top-level name."""

  def scale(name: str, tree: Any) -> Any:
    return jax.tree.map(lambda u: u * scales.get(name, 1.0), tree)

  def update(updates: dict[str, Any], params: Any) -> dict[str, Any]:
    del params
    return {name: scale(name, tree) for name, tree in updates.items()}

  return optax.stateless(update)  # type: ignore[arg-type]
