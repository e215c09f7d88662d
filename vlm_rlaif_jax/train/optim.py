"""AdamW with the reference's schedules, and Muon to pretrain the tiny base."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from vlm_rlaif_jax.settings.sections import AdamWConfig

NOT_HIDDEN = {'tokens', 'positions', 'head', 'probe'}  # matrices that Muon is not for


def warmup_steps(settings: AdamWConfig, total: int) -> int:
  """Returns the steps of warm-up; a share of all steps is rounded up."""
  if settings.warmup < 1:
    return math.ceil(settings.warmup * total)
  return int(settings.warmup)


def learning_rate(settings: AdamWConfig, total: int):
  """step -> rate; step 0 has rate 0 where there is a warm-up (register B13).

  s < w:  peak s / w;    else  peak (1 + cos(π (s - w) / (T - w))) / 2, or peak
  """
  warmup = warmup_steps(settings, total)
  peak = settings.learning_rate

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    rising = peak * step / max(warmup, 1)
    if settings.schedule == 'cosine':
      share = (step - warmup) / max(total - warmup, 1)
      after = peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(share, 0, 1)))
    else:
      after = jnp.asarray(peak, jnp.float32)
    return jnp.where(step < warmup, rising, after)

  return rate


def make_optimizer(
  settings: AdamWConfig, scales: dict[str, float] | None = None
) -> optax.GradientTransformation:
  """Clip by the joint norm, Adam in float32, decoupled decay; the rate comes at use.

  Args:
    scales: top-level name of the trainable tree -> factor of its learning rate.
  """
  chain = []
  if settings.clip_norm:
    chain.append(optax.clip_by_global_norm(settings.clip_norm))
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
  """Muon (Jordan et al. 2024): orthogonal updates of matrices between hidden states.

  Embeddings, positions, the head, the probe of a picture's token and vectors get Adam.
  The root mean square of an update is 0.2, about Adam's (Liu et al. 2025, eq. 4), so
  one rate serves both.
  """

  def dimensions(params):
    def of(path, leaf):
      names = {str(getattr(key, 'key', key)) for key in path}
      if leaf.ndim < 2 or 'w' not in names or names & NOT_HIDDEN:
        return None
      return contrib.MuonDimensionNumbers(leaf.ndim - 1, leaf.ndim - 2)

    return jax.tree.map_with_path(of, params)

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


def apply_gradients(optimizer, gradients, opt_state, params, rate):
  """One update at learning rate `rate`; arithmetic in float32 whatever the dtype.

  A bfloat16 parameter is rounded once, on writing: the reference's arithmetic (B11).
  """

  def wide(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

  gradients, master = wide(gradients), wide(params)
  updates, opt_state = optimizer.update(gradients, opt_state, master)
  new = jax.tree.map(
    lambda old, m, u: (m - rate * u).astype(old.dtype), params, master, updates
  )
  return new, opt_state


def init_optimizer(optimizer, params):
  return optimizer.init(jax.tree.map(lambda x: x.astype(jnp.float32), params))


def _is_matrix(params):
  return jax.tree.map(lambda x: x.ndim > 1, params)


def _scale_by_name(scales: dict[str, float]) -> optax.GradientTransformation:
  def scale(name, tree):
    return jax.tree.map(lambda u: u * scales.get(name, 1.0), tree)

  def update(updates, params):
    del params
    return {name: scale(name, tree) for name, tree in updates.items()}

  return optax.stateless(update)  # type: ignore[arg-type]
