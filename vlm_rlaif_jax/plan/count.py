"""Work counted from shapes: floating-point operations, bytes, and what a program does.

The formulas count what the mathematics needs: causal attention as half a square, the
vocabulary head where a token is read, no recomputation.

    forward   2 N S + 2 L S² H K + 2 D V (tokens read)         N with the adapter's
    training  forward + the same for dX + adapter gradients     "4N", a frozen base
              and the forward again where it is recomputed      "6N"

`executed` counts what a program does instead, product by product.
"""

import dataclasses
import math

import jax

from vlm_rlaif_jax.config.models import ClipVisionConfig, LlamaConfig, LoraConfig


@dataclasses.dataclass(frozen=True)
class Work:
  """A part of a phase. flops: over all devices; moved: least bytes of one device."""

  name: str
  flops: float
  moved: float = 0.0
  again: float = 0.0  # flops of recomputation, beside `flops`

  def seconds(self, target, recompute: bool = False) -> float:
    """At the chip's full rates: the slower of arithmetic and memory."""
    flops = self.flops + (self.again if recompute else 0)
    return max(flops / (target.count * target.flops), self.moved / target.bandwidth)


def linear_weights(cfg: LlamaConfig) -> int:
  """Of the decoder's seven linears, all layers."""
  inner, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
  return cfg.layers * cfg.width * (2 * inner + 2 * kv + 3 * cfg.mlp)


def adapter_weights(cfg: LlamaConfig, lora: LoraConfig | None) -> int:
  if lora is None:
    return 0
  inner, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
  sides = {
    'q': cfg.width + inner, 'k': cfg.width + kv, 'v': cfg.width + kv,
    'o': inner + cfg.width, 'gate': cfg.width + cfg.mlp, 'up': cfg.width + cfg.mlp,
    'down': cfg.mlp + cfg.width,
  }  # fmt: skip
  return cfg.layers * lora.rank * sum(sides[name] for name in lora.targets)


def forward(
  cfg: LlamaConfig, lora: LoraConfig | None, length: int, read: int = 0
) -> float:
  """One sequence; read: positions whose logits are computed."""
  weights = linear_weights(cfg) + adapter_weights(cfg, lora)
  attention = 2 * cfg.layers * length**2 * cfg.heads * cfg.head_dim
  return 2.0 * weights * length + attention + 2 * cfg.width * cfg.vocab * read


def training(
  cfg: LlamaConfig, lora: LoraConfig, length: int, read: int = 0
) -> tuple[float, float]:
  """One sequence, frozen base: what is needed, and what full remat adds."""
  once = forward(cfg, lora, length, read)
  return 2 * once + 2 * adapter_weights(cfg, lora) * length, once


def decode(
  cfg: LlamaConfig, lora: LoraConfig | None, prompt: int, answer: int
) -> float:
  """All steps of one answer, over a growing cache."""
  weights = linear_weights(cfg) + adapter_weights(cfg, lora) + cfg.width * cfg.vocab
  seen = prompt + answer / 2
  attention = 4 * cfg.layers * seen * cfg.heads * cfg.head_dim
  return answer * (2.0 * weights + attention)


def cache_bytes(cfg: LlamaConfig, itemsize: int = 2) -> int:
  """Keys and values of one token."""
  return 2 * cfg.layers * cfg.kv_heads * cfg.head_dim * itemsize


def tower(cfg: ClipVisionConfig) -> float:
  """One frame, up to the feature layer."""
  layers, tokens = cfg.layers + 1 + cfg.feature_layer, cfg.patches + 1
  weights = 4 * cfg.width**2 + 2 * cfg.width * cfg.mlp
  each = 2.0 * weights * tokens + 4 * tokens**2 * cfg.width
  return layers * each + 2 * 3 * cfg.patch_size**2 * cfg.width * cfg.patches


def projector(cfg: ClipVisionConfig, width: int, frames: int) -> float:
  """One video: every patch of every frame, before pooling."""
  return 2.0 * frames * cfg.patches * (cfg.width * width + width**2)


def executed(jaxpr, trips: int, once: bool = False) -> float:
  """Products and sums in the matrix products of a traced program, over all devices.

  Args:
    trips: of a loop whose end depends on the data.
    once: count the body of every loop once, as a compiler's own count does.
  """
  total = 0.0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (contract, _), _ = eqn.params['dimension_numbers']
      size = math.prod(eqn.invars[0].aval.shape[i] for i in contract)
      total += 2.0 * size * math.prod(eqn.outvars[0].aval.shape)
    times = 1
    if not once and eqn.primitive.name == 'scan':
      times = eqn.params['length']
    if not once and eqn.primitive.name == 'while':
      times = trips
    for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
      if _is_jaxpr(inner):
        total += times * executed(getattr(inner, 'jaxpr', inner), trips, once)
  return total


def _is_jaxpr(x) -> bool:
  return hasattr(x, 'eqns') or hasattr(getattr(x, 'jaxpr', None), 'eqns')


def used(jaxpr) -> list[bool]:
  """Which arguments a program reads; the others are not passed to the device."""
  seen = {id(v) for v in jaxpr.outvars} | {
    id(v) for eqn in jaxpr.eqns for v in eqn.invars
  }
  return [id(v) in seen for v in jaxpr.invars]
