"""Files of scalar heads, as the reference writes them: weight [1, D], bias [1].

<folder>/reward_head, value_head.pt
"""

import pathlib
from typing import Any

import numpy as np

from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.weights import peft_files, tensor_files, torch_files
from vlm_rlaif_jax.weights.errors import ConvertError
from vlm_rlaif_jax.weights.tensors import check_finite


def find(folder: pathlib.Path, name: str) -> pathlib.Path | None:
  """Returns the path of a checkpoint's head; None where it has none.

  Args:
    folder: of the checkpoint, or of an adapter within it.
  """
  path = peft_files.checkpoint_folders(folder)[-1] / name
  return path if path.is_file() else None


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns `{'w': float32[D], 'b': float32[]}`; raises on values not finite."""
  tensors = tensor_files.read_file(path)
  shapes = {name: tensor.shape for name, tensor in tensors.items()}
  weight = shapes.get('weight', ())
  if (
    set(shapes) != {'weight', 'bias'}
    or len(weight) != 2
    or weight[0] != 1
    or shapes['bias'] != (1,)
  ):
    raise ConvertError(f'{path}: expected weight (1, D) and bias (1,), found {shapes}')
  values = {
    name: check_finite(path, name, tensor.read()).astype(np.float32)
    for name, tensor in tensors.items()
  }
  return {'w': values['weight'][0], 'b': values['bias'][0]}


def check_fits(head: dict[str, Any], cfg: VlmConfig, path: pathlib.Path) -> None:
  """Raises ConvertError if a head is for a decoder of another width."""
  if head['w'].shape != (cfg.llama.width,):
    raise ConvertError(
      f'{path}: is for width {head["w"].shape[0]}, the decoder has width '
      f'{cfg.llama.width} ({cfg.name})'
    )


def write(path: pathlib.Path, head: dict[str, Any]) -> None:
  torch_files.write(
    path,
    {
      'weight': np.asarray(head['w'], np.float32)[None],
      'bias': np.asarray(head['b'], np.float32).reshape(1),
    },
  )
