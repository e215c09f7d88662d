"""Sizes of the networks; the numbers of each named size are in `configs/models.py`."""

import dataclasses
from typing import Any, Literal

from vlm_rlaif_jax.settings.build import flatten
from vlm_rlaif_jax.settings.checks import within

# Keys and values of decoding: in the model's dtype, or 8 bits (`nn/cache_int8.py`)
CacheKind = Literal['native', 'int8']


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipVisionConfig:
  """CLIP vision transformer (Radford et al. 2021); pre-LN, quick-GELU."""

  image_size: int = 336  # pixels of a side; frames are resized to it
  patch_size: int = 14  # pixels of a side of a patch
  width: int = 1024  # width of the residual stream
  mlp: int = 4096  # hidden units of an MLP block
  layers: int = 24  # transformer blocks
  heads: int = 16  # attention heads; they share `width`
  feature_layer: int = -2  # hidden state that the projector reads; class token dropped
  eps: float = 1e-5  # added to the variance in layer norms

  def __post_init__(self):
    within(self, '>= 1', 'image_size', 'patch_size', 'width', 'mlp', 'layers', 'heads')
    within(self, '> 0', 'eps')
    if self.image_size % self.patch_size:
      raise ValueError(
        f'image_size: must be a multiple of patch_size {self.patch_size}, '
        f'got {self.image_size}'
      )
    if self.width % self.heads:
      raise ValueError(f'width: {self.width} is not a multiple of heads {self.heads}')
    if not -self.layers <= self.feature_layer < 0:
      raise ValueError(
        f'feature_layer: must be in [-{self.layers}, -1], got {self.feature_layer}'
      )

  @property
  def patches(self) -> int:
    return (self.image_size // self.patch_size) ** 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipTextConfig:
  """CLIP text transformer: causal, pooled at the end-of-text token."""

  vocab: int = 49408  # size of the vocabulary
  context: int = 77  # longest text, in tokens
  width: int = 768  # width of the residual stream
  mlp: int = 3072  # hidden units of an MLP block
  layers: int = 12  # transformer blocks
  heads: int = 12  # attention heads; they share `width`
  eps: float = 1e-5  # added to the variance in layer norms
  eos_id: int = 49407  # token whose position is pooled

  def __post_init__(self):
    within(self, '>= 1', 'vocab', 'context', 'width', 'mlp', 'layers', 'heads')
    within(self, '> 0', 'eps')
    within(self, '>= 0', 'eos_id')
    if self.width % self.heads:
      raise ValueError(f'width: {self.width} is not a multiple of heads {self.heads}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig:
  """LLaMA decoder (Touvron et al. 2023); Vicuna v1.5 has the shape of Llama 2."""

  vocab: int = 32000  # size of the vocabulary
  width: int = 4096  # width of the residual stream
  mlp: int = 11008  # hidden units of the gated MLP
  layers: int = 32  # transformer blocks
  heads: int = 32  # query heads
  kv_heads: int = 32  # key and value heads; fewer than `heads`: grouped queries
  head_dim: int = 128  # width of a head
  max_positions: int = 4096  # visual and text tokens that a sequence may have
  rope_theta: float = 10000.0  # base of the rotary frequencies
  eps: float = 1e-5  # added to the mean of squares in RMS norms

  def __post_init__(self):
    within(
      self, '>= 1', 'vocab', 'width', 'mlp', 'layers', 'heads', 'kv_heads',
      'head_dim', 'max_positions',
    )  # fmt: skip
    within(self, '> 0', 'rope_theta', 'eps')
    if self.head_dim % 2:
      raise ValueError(f'head_dim: must be even, got {self.head_dim}')
    if self.heads % self.kv_heads:
      raise ValueError(
        f'heads: {self.heads} is not a multiple of kv_heads {self.kv_heads}'
      )


LINEARS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
  """Low-rank adapters on the decoder's linears (Hu et al. 2021); never on CLIP."""

  rank: int = 64  # inner width of an adapter
  alpha: float = 16.0  # scale: the product is multiplied by alpha / rank
  dropout: float = 0.0  # share of an adapter's inputs that is dropped in training
  targets: tuple[str, ...] = LINEARS  # linears that have an adapter

  def __post_init__(self):
    within(self, '>= 1', 'rank')
    within(self, 'finite', 'alpha')
    within(self, '[0, 1)', 'dropout')
    unknown = set(self.targets) - set(LINEARS)
    if unknown or not self.targets:
      raise ValueError(
        f'targets: choose some of {", ".join(LINEARS)}; got {self.targets}'
      )


COMPUTED = ('dtype', 'remat')  # how a network is computed, whichever it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class VlmConfig:
  """The video-language model: CLIP -> projector -> pooling -> LLaMA."""

  name: str = '7b'  # name of the size; '7b' and '13b' must match `size`
  vision: ClipVisionConfig = ClipVisionConfig()
  text: ClipTextConfig = ClipTextConfig()
  joint: int = 768  # width of CLIP's joint image-text space
  # activation of the projector: 'gelu' as released, 'relu' as printed
  projector: Literal['gelu', 'relu'] = 'gelu'
  llama: LlamaConfig = LlamaConfig()
  dtype: Literal['float32', 'bfloat16', 'float16'] = 'bfloat16'  # dtype of activations
  # activations that the backward pass computes again; 'names': all but those of base
  # products
  remat: Literal['none', 'full', 'dots', 'names'] = 'full'

  def __post_init__(self):
    within(self, '>= 1', 'joint')

  @property
  def identity(self) -> dict[str, Any]:
    """Which network this is, by dotted name; not how it is computed."""
    flat = flatten(self)
    return {name: value for name, value in flat.items() if name not in COMPUTED}
