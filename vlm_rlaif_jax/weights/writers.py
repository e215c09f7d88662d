"""Networks out: one of our bases with stacked layers, or one of the two LLaVA layouts.

Tensors are read in the order in which they lie on disk, cast, and put where they
belong; one is in memory at a time.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vlm_rlaif_jax.core.quant import nf4
from vlm_rlaif_jax.weights import (
  folders,
  model_config,
  names,
  network_files,
  nf4_files,
  processor_files,
  tensor_files,
  tower_files,
  weight_forms,
  weight_table,
)
from vlm_rlaif_jax.weights.checkpoint import Checkpoint
from vlm_rlaif_jax.weights.errors import ConvertError, join_names
from vlm_rlaif_jax.weights.safetensors_files import Shapes, Writer
from vlm_rlaif_jax.weights.tensors import Tensors
from vlm_rlaif_jax.weights.weight_forms import DTYPES, Form
from vlm_rlaif_jax.weights.weight_table import Weight

Progress = Callable[[Iterable[Any]], Iterable[Any]]  # wraps an iteration with a bar


def without_progress(items: Iterable[Any]) -> Iterable[Any]:
  return items


def in_file_order(
  weights: Iterable[Weight], tensors: Tensors
) -> list[tuple[Weight, int | None, str]]:
  """Returns (weight, layer, neutral name) in the order of the tensors on disk."""
  pieces = [
    (weight, index if weight.is_stacked else None, source)
    for weight in weights
    for index, source in enumerate(weight.sources)
  ]
  return sorted(pieces, key=lambda piece: tensors[piece[2]].location)


def write_weights(
  writer: Writer | tensor_files.MemoryWriter,
  checkpoint: Checkpoint,
  weights: list[Weight],
  form: Form,
  progress: Progress,
) -> None:
  """Reads every tensor once and puts it in its form into a file or into memory."""
  for weight, index, source in progress(in_file_order(weights, checkpoint.tensors)):
    arrays = weight_forms.stored_arrays(weight, checkpoint.tensors[source], form)
    for name, value in arrays.items():
      writer.put(name, value, index)
  writer.close()


def shapes_of(weights: Iterable[Weight], form: Form) -> Shapes:
  return {
    name: shape
    for weight in weights
    for name, shape in weight_forms.stored_shapes(weight, form).items()
  }


def total_bytes(shapes: Shapes) -> int:
  return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())


def in_memory(
  checkpoint: Checkpoint, form: Form, progress: Progress = without_progress
) -> dict[str, np.ndarray | nf4.Nf4]:
  """Returns our weights by name, without the text tower."""
  weights = [weight for weight in checkpoint.weights() if weight.part != 'text']
  writer = tensor_files.MemoryWriter(shapes_of(weights, form))
  write_weights(writer, checkpoint, weights, form, progress)
  shapes = {weight.name: weight.full_shape for weight in weights}
  return nf4_files.join_parts(writer.arrays, shapes, form.through)


# ---------------------------------------------------------------- our bases


def write_base(
  folder: pathlib.Path,
  checkpoint: Checkpoint,
  form: Form,
  parts: Iterable[str],
  progress: Progress,
  *,
  replace: bool = False,
) -> None:
  """Writes one of our base folders: model.json, model.safetensors, the tokenizer."""
  weights = checkpoint.weights(parts)
  shapes = shapes_of(weights, form)
  with folders.atomic_folder(
    folder, replace=replace, nbytes=total_bytes(shapes)
  ) as part:
    metadata = nf4_files.metadata(form.through)
    writer = Writer(part / 'model.safetensors', shapes, metadata)
    write_weights(writer, checkpoint, weights, form, progress)
    cfg = model_config.with_dtype(checkpoint.cfg, form.dtype)
    text = model_config.to_model_json(cfg, checkpoint.aspect, checkpoint.own_tower)
    (part / 'model.json').write_text(text)
    network_files.copy_companions(checkpoint.folder, part)
    if 'text' in checkpoint.parts and checkpoint.clip is not None:
      (part / 'text').mkdir()
      tokenizer = (*network_files.TOKENIZER, 'vocab.json', 'merges.txt')
      folders.copy_files(checkpoint.clip, part / 'text', tokenizer)


# ---------------------------------------------------------------- foreign networks


def write_foreign(
  folder: pathlib.Path,
  checkpoint: Checkpoint,
  layout: str,
  dtype: str,
  progress: Progress,
  *,
  replace: bool = False,
  shard: int = tensor_files.SHARD,
) -> None:
  """Writes a folder of Hugging Face files in the 'llava' (original) or 'hf' layout.

  Neither layout has a place for CLIP's joint embedding, so it is left out.

  Args:
    shard: bytes of a file at most.
  """
  cfg, rename, to = checkpoint.cfg, names.LAYOUTS[layout], DTYPES[dtype]
  weights = [
    weight
    for weight in checkpoint.weights()
    if weight.part != 'text' and weight.name != 'tower/projection/w'
  ]
  config = _foreign_config(folder, checkpoint, layout, dtype)
  has_tower = config.get('mm_vision_tower') == str(tower_files.place(folder))
  if layout == 'hf':
    _check_complete_tower(checkpoint, weights)
  rows = config.get('text_config', config)['vocab_size']
  added = rows - cfg.llama.vocab
  padded = {'llama/tokens/w', 'llama/head/w'} if added else set()

  def shape(weight: Weight) -> tuple[int, ...]:
    _, *rest = weight.foreign_shape or (0,)
    return (rows, *rest) if weight.name in padded else weight.foreign_shape

  shapes = {rename(s): (shape(w), to) for w in weights for s in w.sources}
  with folders.atomic_folder(
    folder, replace=replace, nbytes=total_bytes(shapes)
  ) as part:
    outputs: list[Any] = [tensor_files.ShardWriter(part, shapes, shard)]
    if has_tower:
      outputs.append(tower_files.TowerWriter(part, cfg, weights, to))
    for weight, _, source in progress(in_file_order(weights, checkpoint.tensors)):
      array = checkpoint.tensors[source].read()
      if weight.name in padded:
        array = _with_mean_rows(array, added)
      array = weight_forms.cast(array, to, source)
      for output in outputs:
        output.put(rename(source), array)
    for output in outputs:
      output.close()
    (part / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
    network_files.copy_companions(checkpoint.folder, part)
    if layout == 'hf':
      image = config['image_token_index']
      processor_files.write(part, cfg, image, checkpoint.aspect or 'pad')


def _foreign_config(
  folder: pathlib.Path, checkpoint: Checkpoint, layout: str, dtype: str
) -> dict[str, Any]:
  """Returns `config.json` of a folder that will have the whole network."""
  cfg, image = checkpoint.cfg, checkpoint.cfg.llama.vocab
  if layout == 'hf':
    image = processor_files.image_token(checkpoint.folder, image)
  return model_config.to_config_json(
    cfg,
    layout,
    dtype,
    image,
    tower=tower_files.name_or_place(checkpoint, folder),
    aspect=checkpoint.aspect or 'pad',
    ids=dataclasses.asdict(processor_files.text_ids(checkpoint.folder)),
  )


def _with_mean_rows(array: np.ndarray, count: int) -> np.ndarray:
  """Appends rows to a vocabulary; no text id reaches them, and <image> is replaced."""
  mean = np.mean(array, axis=0, keepdims=True, dtype=np.float32)
  rows = np.repeat(mean.astype(array.dtype), count, axis=0)
  return np.concatenate([array, rows])


def _check_complete_tower(checkpoint: Checkpoint, weights: Iterable[Weight]) -> None:
  """Raises ConvertError for a tower with layers missing.

  Hugging Face's CLIP draws at random what its file lacks, read or not.
  """
  present = {weight.name for weight in weights}
  missing = [
    source
    for weight in weight_table.weights(checkpoint.cfg)
    if weight.part == 'tower' and weight.group != 'tower/projection/'
    for source in weight.sources
    if weight.name not in present
  ]
  if missing:
    raise ConvertError(
      f'{checkpoint.folder}: lacks {join_names(missing, 2)}, which the hf layout '
      'needs; take them from CLIP (--vision), or write --to=llava'
    )
