"""Named sizes: `tiny`, `small` for the built-in world, `7b`, `13b` with Vicuna v1.5."""

import dataclasses
from typing import Any, Literal

from vlm_rlaif_jax.settings import constants, models
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.settings.sections import CheckpointConfig, DataConfig, QuantConfig

BITS = ('4', '16')


def quantization(bits: str) -> QuantConfig:
  """Returns NF4 with double quantization for '4', none for '16', as the reference."""
  return QuantConfig(residency='nf4') if bits == '4' else QuantConfig()


def named(size: str) -> models.VlmConfig:
  """Returns the network of a named size."""
  networks = {'tiny': tiny, 'small': small, '7b': vicuna_7b, '13b': vicuna_13b}
  return networks[size]()


def tiny() -> models.VlmConfig:
  """Returns every part of the real model, at a laptop's scale.

  About 2.1 M parameters, 1.8 M without CLIP's text tower.
  """
  return models.VlmConfig(
    name='tiny',
    vision=models.ClipVisionConfig(
      image_size=64, patch_size=16, width=128, mlp=384, layers=4, heads=4
    ),
    text=models.ClipTextConfig(
      vocab=768, context=64, width=96, mlp=256, layers=2, heads=4, eos_id=2
    ),
    joint=64,
    llama=models.LlamaConfig(
      vocab=768,
      width=128,
      mlp=352,
      layers=4,
      heads=4,
      kv_heads=4,
      head_dim=32,
      max_positions=1024,
    ),
    dtype='float32',
    remat='none',
  )


def small() -> models.VlmConfig:
  """Returns a decoder four times the tiny one's: a reward model over a tiny policy.

  About 8 M parameters. Its base does not come with the package: `configs/pretrain.py`.
  """
  base = tiny()
  llama = dataclasses.replace(
    base.llama, width=256, mlp=704, layers=8, heads=8, kv_heads=8
  )
  return dataclasses.replace(base, name='small', llama=llama)


def vicuna_7b() -> models.VlmConfig:
  """Returns CLIP ViT-L/14-336 + projector + Vicuna 7B v1.5."""
  return models.VlmConfig(name='7b')


def vicuna_13b() -> models.VlmConfig:
  """Returns CLIP ViT-L/14-336 + projector + Vicuna 13B v1.5."""
  return models.VlmConfig(
    name='13b',
    llama=models.LlamaConfig(width=5120, mlp=13824, layers=40, heads=40, kv_heads=40),
  )


def world_run(size: str, save_every: int = 200) -> dict[str, Any]:
  """Returns what the stages of a size of the built-in world share.

  Args:
    size: 'tiny', whose base comes with the package; or 'small', whose base is where
      stage pretrain leaves it.
  """
  return {
    'size': size,
    'base': '' if size == 'tiny' else f'runs/{size}/pretrain/artifact',
    'model': named(size),
    'data': DataConfig(frames=12, buckets=(48, 128, 192, 256, 384), workers=2),
    'checkpoint': CheckpointConfig(every=save_every),
  }


# What may follow `preset=` in the stages that minimize a cross-entropy.
LOSS_PRESETS = ('', ('parity', 'masked'))


def loss_mean(size: str, preset: str) -> Literal['step', 'micro_batch']:
  """Returns `optim.loss_mean` of a preset, which is parity for the real sizes."""
  preset = preset or ('masked' if size in constants.WORLD_SIZES else 'parity')
  return 'micro_batch' if preset == 'parity' else 'step'


def tiny_judge() -> LabelConfig:
  """Returns how the tiny size labels, and judges held-out answers of PPO."""
  return LabelConfig(
    answers=4,  # six pairs a question
    response_tokens=32,  # its kinds of answers have 25 tokens at most
    clip_frames=4,
    caption_tokens=40,
    caption_prompt='tiny_caption',
    options_prompt='tiny_judge_options',
    claims_prompt='tiny_judge_claims',
    judge='claims',
    claims_score='mean',
    min_margin=0.8,  # from 64 % right to 73 %
    batch=64,
  )
