"""AdamW with the reference's schedules, one chain for all trainable leaves."""

import math

import jax
import jax.numpy as jnp
import optax

from vlm_rlaif_jax.config.sections import Optim


def warmup_steps(settings: Optim, total: int) -> int:
  """A share of the steps is rounded up, as the reference does; else it is a count."""
  if settings.warmup < 1:
    return math.ceil(settings.warmup * total)
  return int(settings.warmup)


def learning_rate(settings: Optim, total: int):
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
  settings: Optim, scales: dict[str, float] | None = None
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


def apply_gradients(optimizer, gradients, opt_state, params, rate):
  """One update at learning rate `rate`; arithmetic in float32 whatever the dtype.

  A bfloat16 parameter is rounded once, on writing: the reference's arithmetic (B11).
  """
  wide = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
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
