"""The vision tower that `config.json` of LLaVA's original layout names.

LLaVA loads it from there, whatever the checkpoint has: a name of the hub for the towers
that have one, else a folder beside the weights.
"""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from vlm_rlaif_jax.settings.models import ClipVisionConfig, VlmConfig
from vlm_rlaif_jax.weights import clip_config, names, preprocessor
from vlm_rlaif_jax.weights.checkpoint import Checkpoint
from vlm_rlaif_jax.weights.safetensors_files import Writer
from vlm_rlaif_jax.weights.weight_table import Weight

_FOLDER = 'vision_tower'
_START = 'model.vision_tower.vision_tower.'
_RELEASED = {  # by size, patch, width, layers, heads, mlp
  (336, 14, 1024, 24, 16, 4096): 'openai/clip-vit-large-patch14-336',
  (224, 14, 1024, 24, 16, 4096): 'openai/clip-vit-large-patch14',
  (224, 16, 768, 12, 12, 3072): 'openai/clip-vit-base-patch16',
  (224, 32, 768, 12, 12, 3072): 'openai/clip-vit-base-patch32',
}


def released_name(vision: ClipVisionConfig) -> str:
  """Returns the name of the CLIP that a tower has the sizes of; '' if there is none.

  Towers are frozen, here and in LLaVA, so the sizes tell which one it is, unless it is
  known to be another (`Checkpoint.own_tower`).
  """
  sizes = (
    vision.image_size,
    vision.patch_size,
    vision.width,
    vision.layers,
    vision.heads,
    vision.mlp,
  )
  return _RELEASED.get(sizes, '')


def place(folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder of the tower of an exported network."""
  return folder.resolve() / _FOLDER


def name_or_place(network: Checkpoint, folder: pathlib.Path) -> str:
  """Returns what `mm_vision_tower` has to be.

  Args:
    folder: of the exported network, which has the tower with it if it has no name.
  """
  name = '' if network.own_tower else released_name(network.cfg.vision)
  return name or str(place(folder))


class TowerWriter:
  """A tower as a folder that `CLIPVisionModel` loads, filled tensor by tensor."""

  def __init__(
    self,
    folder: pathlib.Path,
    cfg: VlmConfig,
    weights: Iterable[Weight],
    dtype: np.dtype,
  ):
    """Makes `vision_tower` in the folder of the network."""
    folder = folder / _FOLDER
    folder.mkdir()
    config: dict[str, Any] = {
      'architectures': ['CLIPVisionModel'],
      **clip_config.to_vision(cfg),
      'torch_dtype': dtype.name,
    }
    for name, value in (
      ('config.json', config),
      (preprocessor.FILE, preprocessor.to_json(cfg)),
    ):
      text = json.dumps({k: v for k, v in value.items() if k != 'processor_class'})
      (folder / name).write_text(text + '\n')
    shapes = {
      _name(source): (weight.foreign_shape, dtype)
      for weight in weights
      if weight.part == 'tower'
      for source in weight.sources
    }
    self._writer = Writer(folder / 'model.safetensors', shapes, {'format': 'pt'})

  def put(self, name: str, array: np.ndarray) -> None:
    """Writes a tensor by its name in LLaVA's layout; ignores those of other parts."""
    name = name.removeprefix(_START)
    if name in self._writer.shapes:
      self._writer.put(name, array)

  def close(self) -> None:
    self._writer.close()


def _name(source: str) -> str:
  return names.llava_name(source).removeprefix(_START)
