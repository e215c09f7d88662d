"""Counts operations from shapes: what the mathematics needs, whatever a program does.

Causal attention is half a square, the vocabulary head is where a token is read, nothing
is recomputed.

    forward   2 N S + 2 L S² H K + 2 D V (tokens read)         N with the adapter's
    training  forward + the same for dX + adapter gradients     "4N", a frozen base
              and the forward again where it is recomputed      "6N"
              (`remat=names`: attention and A of the adapter alone)

Attention's own way back costs twice its forward, not once; at 1,649 tokens of the 7B
size that is 1.5 % more than this count, which is kept for comparison with others.
"""

import dataclasses

from vlm_rlaif_jax.core import chips
from vlm_rlaif_jax.settings.models import (
  CacheKind,
  ClipTextConfig,
  ClipVisionConfig,
  LlamaConfig,
  LoraConfig,
)


def linear_weights(cfg: LlamaConfig) -> int:
  """Returns the weights of the decoder's seven linears, all layers."""
  inner, kv = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
  return cfg.layers * cfg.width * (2 * inner + 2 * kv + 3 * cfg.mlp)


def adapter_weights(cfg: LlamaConfig, lora: LoraConfig | None) -> int:
  """Returns the weights of an adapter."""
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
  cfg: LlamaConfig, lora: LoraConfig | None, length: float, read: float = 0
) -> float:
  """Returns operations of the forward pass of one sequence.

  Args:
    read: positions whose logits are computed.
  """
  weights = linear_weights(cfg) + adapter_weights(cfg, lora)
  attention = 2 * cfg.layers * length**2 * cfg.heads * cfg.head_dim
  return 2.0 * weights * length + attention + 2 * cfg.width * cfg.vocab * read


def training(
  cfg: LlamaConfig, lora: LoraConfig, length: float, read: float = 0
) -> tuple[float, float]:
  """Returns operations of training on one sequence, and what full remat adds."""
  once = forward(cfg, lora, length, read)
  return 2 * once + 2 * adapter_weights(cfg, lora) * length, once


def recomputed_by_names(
  cfg: LlamaConfig, lora: LoraConfig | None, length: int
) -> float:
  """Returns what `remat=names` adds to training on one sequence.

  It is attention, and the products with A of the adapter.
  """
  inner = cfg.heads * cfg.head_dim
  width_in = {'o': inner, 'down': cfg.mlp}
  targets = lora.targets if lora else ()
  rank = lora.rank if lora else 0
  a = cfg.layers * rank * sum(width_in.get(name, cfg.width) for name in targets)
  return 2.0 * a * length + 2 * cfg.layers * length**2 * inner


def decode(
  cfg: LlamaConfig, lora: LoraConfig | None, prompt: int, answer: float
) -> float:
  """Returns operations of all steps of one response, over a growing cache."""
  weights = linear_weights(cfg) + adapter_weights(cfg, lora) + cfg.width * cfg.vocab
  cached = prompt + answer / 2
  attention = 4 * cfg.layers * cached * cfg.heads * cfg.head_dim
  return answer * (2.0 * weights + attention)


def cache_bytes(cfg: LlamaConfig, kind: CacheKind = 'native', itemsize: int = 2) -> int:
  """Returns the bytes of keys and values of one token; in 8 bits, with their scales."""
  head = cfg.head_dim + 4 if kind == 'int8' else cfg.head_dim * itemsize
  return 2 * cfg.layers * cfg.kv_heads * head


def tower(cfg: ClipVisionConfig) -> float:
  """Returns operations of the tower on one frame, up to the feature layer."""
  layers, tokens = cfg.layers + 1 + cfg.feature_layer, cfg.patches + 1
  weights = 4 * cfg.width**2 + 2 * cfg.width * cfg.mlp
  each = 2.0 * weights * tokens + 4 * tokens**2 * cfg.width
  return layers * each + 2 * 3 * cfg.patch_size**2 * cfg.width * cfg.patches


def text_tower(cfg: ClipTextConfig, tokens: int) -> float:
  """Returns operations of CLIP's text tower on one text."""
  weights = 4 * cfg.width**2 + 2 * cfg.width * cfg.mlp
  return cfg.layers * (2.0 * weights * tokens + 4 * tokens**2 * cfg.width)


def projector(cfg: ClipVisionConfig, width: int, frames: int) -> float:
  """Returns operations of the projector on every patch of one video."""
  return 2.0 * frames * cfg.patches * (cfg.width * width + width**2)


def supervised_step(
  llama: LlamaConfig,
  lora: LoraConfig,
  vision: ClipVisionConfig,
  rows: int,
  text: int,
  frames: int,
  projects: bool,
) -> tuple[float, float, float]:
  """Returns positions, needed and recomputed operations of a supervised step.

  Args:
    rows: samples of the step; text: their tokens.
    projects: whether the projector trains, too.
  """
  length = text + frames + vision.patches - 1
  needed, recomputed = training(llama, lora, length, text)
  if projects:
    needed += 3 * projector(vision, llama.width, frames)
  return rows * length, rows * needed, rows * recomputed


def pair_step(
  llama: LlamaConfig, lora: LoraConfig, pairs: int, text: int, visual: int
) -> tuple[float, float, float]:
  """Returns positions, needed and recomputed operations of a step on pairs."""
  length = text + visual - 1
  needed, recomputed = training(llama, lora, length)
  return 2 * pairs * length, 2 * pairs * needed, 2 * pairs * recomputed


@dataclasses.dataclass
class Meter:
  """Sums work as it is done, and turns it into rates.

  Utilization is of the devices' bf16 peak: `mfu_4n` counts what training an adapter on
  a frozen base needs, `mfu_6n` counts the forward pass once more, as papers on full
  fine-tuning with recomputation do. Left out where the chip is not known.
  """

  tokens: float = 0.0
  flops: float = 0.0
  recomputed: float = 0.0
  peak: float = dataclasses.field(default_factory=chips.peak_flops)

  def add(self, tokens: float, flops: float, recomputed: float) -> None:
    """Adds positions and operations of one step."""
    self.tokens += tokens
    self.flops += flops
    self.recomputed += recomputed

  def add_generation(
    self,
    cfg: LlamaConfig,
    lora: LoraConfig | None,
    rows: int,
    prompt: int,
    answers: int,
    tokens: float,
  ) -> None:
    """Adds the work of reading `rows` prompts and answering each `answers` times."""
    work = forward(cfg, lora, prompt, 1) + answers * decode(cfg, lora, prompt, tokens)
    self.add(rows * (prompt + answers * tokens), rows * work, 0.0)

  def rates(self, seconds: float) -> dict[str, float]:
    """Returns rates since the last call; tokens are positions, over all devices."""
    row = {'tokens_per_second': self.tokens / seconds}
    if self.peak:
      row['mfu_4n'] = self.flops / seconds / self.peak
      row['mfu_6n'] = (self.flops + self.recomputed) / seconds / self.peak
    self.tokens = self.flops = self.recomputed = 0.0
    return row
