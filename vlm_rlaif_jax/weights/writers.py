"""Writing a checkpoint: our stacked base, or one of the two LLaVA layouts.

Tensors are read in the order in which they lie on disk, cast, and put where they
belong; one is in memory at a time.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np

from vlm_rlaif_jax.core.quant import nf4
from vlm_rlaif_jax.data import image, tokens
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.weights import (
  file_writer,
  model_config,
  names,
  nf4_files,
  readers,
  tensor_files,
)
from vlm_rlaif_jax.weights.names import Leaf
from vlm_rlaif_jax.weights.nf4_files import Packed
from vlm_rlaif_jax.weights.readers import Checkpoint
from vlm_rlaif_jax.weights.tensor_files import ConvertError, Tensor

DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'float16': np.dtype(np.float16),
}
Progress = Callable[[Iterable], Iterable]
_CHUNK = 1 << 22  # elements that are cast at a time
_INFINITE = {  # bits of the exponent: all set in what is not finite
  'float32': (np.uint32, 0x7F800000),
  'bfloat16': (np.uint16, 0x7F80),
  'float16': (np.uint16, 0x7C00),
}


@dataclasses.dataclass(frozen=True)
class Form:
  """What weights become.

  Attributes:
    dtype: of arrays; norms stay in float32, as they are computed.
    through: '', or the dtype by way of which the decoder's linears are in NF4.
    double: NF4's scales in 8 bits.
  """

  dtype: str
  through: str = ''
  double: bool = True


def form_of(checkpoint: Checkpoint, dtype: str, bits: int) -> Form:
  """NF4 as the checkpoint has it, else as `config.quant` makes it by default."""
  if bits != 4:
    return Form(dtype)
  held = (t for t in checkpoint.linears if isinstance(t, Packed))
  found = {(tensor.dtype.name, tensor.double) for tensor in held}
  if len(found) > 1:
    raise ConvertError(
      f'{checkpoint.folder}: linears in NF4 of several kinds (dtype, double): '
      f'{sorted(found)}; one is expected'
    )
  made = QuantConfig()
  return Form(dtype, *next(iter(found), (made.through, made.double)))


def stored(leaf: Leaf, form: Form) -> file_writer.Shapes:
  """Names, shapes and dtypes of what one of our weights becomes in the file."""
  if form.through and leaf.is_linear:
    return nf4_files.shapes(leaf.name, leaf.whole, form.double)
  return {leaf.name: (leaf.whole, _dtype(leaf, form.dtype))}


def store(leaf: Leaf, tensor: Tensor, form: Form) -> dict[str, np.ndarray]:
  """One layer of a weight -> what goes into the file, by name.

  A linear in NF4 stays as it is; others are quantized from the checkpoint's own
  numbers, whatever the dtype of the rest.
  """
  if not (form.through and leaf.is_linear):
    array = tensor.read().reshape(leaf.shape)
    return {leaf.name: cast(array, _dtype(leaf, form.dtype), leaf.name)}
  if isinstance(tensor, Packed):
    made = tensor.leaf()
  else:
    array = cast(tensor.read(), DTYPES[form.through], leaf.name)
    made = nf4.quantize(array, form.double)
  return nf4_files.parts_of(leaf.name, made)


def _dtype(leaf: Leaf, dtype: str) -> np.dtype:
  return DTYPES['float32' if leaf.name.endswith('norm/scale') else dtype]


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  """To another dtype; what does not fit into it, or was not finite, is refused."""
  kind, mask = _INFINITE[dtype.name]
  flat = np.ascontiguousarray(array).reshape(-1)
  same = array.dtype == dtype
  out = flat if same else np.empty(flat.shape, dtype)
  for start in range(0, flat.size, _CHUNK):
    piece = slice(start, start + _CHUNK)
    if not same:
      with np.errstate(over='ignore'):
        out[piece] = flat[piece].astype(np.float32).astype(dtype)
    if np.max(out[piece].view(kind) & kind(mask)) == mask:
      raise ConvertError(f'{name}: has values that are not finite as {dtype.name}')
  return out.reshape(array.shape)


def in_order(leaves: Iterable[Leaf], tensors) -> list[tuple[Leaf, int | None, str]]:
  """(leaf, layer, neutral name), as the tensors lie in their files."""
  pieces = [
    (leaf, index if leaf.stacked else None, source)
    for leaf in leaves
    for index, source in enumerate(leaf.sources)
  ]
  return sorted(pieces, key=lambda piece: tensors[piece[2]].place)


def fill(
  sink, checkpoint: Checkpoint, leaves: list[Leaf], form: Form, progress: Progress
) -> None:
  """Reads every tensor once, into a `Writer` or into `Memory`."""
  for leaf, index, source in progress(in_order(leaves, checkpoint.tensors)):
    for name, value in store(leaf, checkpoint.tensors[source], form).items():
      sink.put(name, value, index)
  sink.close()


def shapes_of(leaves: Iterable[Leaf], form: Form) -> file_writer.Shapes:
  return {name: what for leaf in leaves for name, what in stored(leaf, form).items()}


def nbytes(shapes: file_writer.Shapes) -> int:
  return sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes.values())


def in_memory(
  checkpoint: Checkpoint, form: Form, progress: Progress = lambda items: items
) -> dict[str, np.ndarray | nf4.Nf4]:
  """Our weights by name, without the text tower."""
  leaves = [leaf for leaf in checkpoint.leaves() if leaf.part != 'text']
  sink = file_writer.Memory(shapes_of(leaves, form))
  fill(sink, checkpoint, leaves, form, progress)
  whole = {leaf.name: leaf.whole for leaf in leaves}
  return nf4_files.joined(sink.arrays, whole, form.through)


def write_ours(
  folder: pathlib.Path,
  checkpoint: Checkpoint,
  form: Form,
  parts: Iterable[str],
  progress: Progress,
  *,
  replace: bool = False,
) -> None:
  """One of our base folders: model.json, model.safetensors, the tokenizer."""
  leaves = checkpoint.leaves(parts)
  shapes = shapes_of(leaves, form)
  with file_writer.whole_folder(folder, replace=replace, need=nbytes(shapes)) as part:
    fill(
      file_writer.Writer(
        part / 'model.safetensors', shapes, nf4_files.metadata(form.through)
      ),
      checkpoint,
      leaves,
      form,
      progress,
    )
    cfg = model_config.with_dtype(checkpoint.cfg, form.dtype)
    (part / 'model.json').write_text(model_config.to_model_json(cfg))
    file_writer.copy_files(checkpoint.folder, part, readers.TRAVELS)
    if 'text' in checkpoint.parts and checkpoint.clip is not None:
      (part / 'text').mkdir()
      file_writer.copy_files(
        checkpoint.clip, part / 'text', (*readers.TOKENIZER, 'vocab.json', 'merges.txt')
      )


def write_foreign(
  folder: pathlib.Path,
  checkpoint: Checkpoint,
  layout: str,
  dtype: str,
  progress: Progress,
  *,
  replace: bool = False,
  shard: int = file_writer.SHARD,
) -> None:
  """A folder of Hugging Face files, 'llava' (original) or 'hf' layout.

  Neither layout has a place for CLIP's joint embedding, so it stays behind.
  """
  cfg, rename, kind = checkpoint.cfg, names.LAYOUTS[layout], DTYPES[dtype]
  leaves = [
    leaf
    for leaf in checkpoint.leaves()
    if leaf.part != 'text' and leaf.name != 'tower/projection/w'
  ]
  if layout == 'hf':
    _check_whole_tower(checkpoint, leaves)
  added = model_config.padding(cfg.llama.vocab) if layout == 'hf' else 0
  grown = {'llama/tokens/w', 'llama/head/w'} if added else set()
  shapes = {
    rename(source): (
      (leaf.theirs[0] + added, *leaf.theirs[1:]) if leaf.name in grown else leaf.theirs,
      kind,
    )
    for leaf in leaves
    for source in leaf.sources
  }
  with file_writer.whole_folder(folder, replace=replace, need=nbytes(shapes)) as part:
    shards = file_writer.Shards(part, shapes, shard)
    for leaf, _, source in progress(in_order(leaves, checkpoint.tensors)):
      array = checkpoint.tensors[source].read()
      if leaf.name in grown:  # no text id reaches these rows; <image> is replaced
        mean = np.mean(array, axis=0, keepdims=True, dtype=np.float32)
        rows = np.repeat(mean.astype(array.dtype), added, axis=0)
        array = np.concatenate([array, rows])
      shards.put(rename(source), cast(array, kind, source))
    shards.close()
    config = model_config.to_config_json(cfg, layout, dtype, cfg.llama.vocab)
    (part / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
    file_writer.copy_files(checkpoint.folder, part, readers.TRAVELS)
    if layout == 'hf':
      _write_processor(part, cfg)


def _check_whole_tower(checkpoint: Checkpoint, leaves: list[Leaf]) -> None:
  """Hugging Face's CLIP draws at random what its file lacks, read or not."""
  here = {leaf.name for leaf in leaves}
  lacks = [
    source
    for leaf in names.leaves(checkpoint.cfg)
    if leaf.part == 'tower' and leaf.group != 'tower/projection/'
    for source in leaf.sources
    if leaf.name not in here
  ]
  if lacks:
    raise ConvertError(
      f'{checkpoint.folder}: lacks {tensor_files.listed(lacks, 2)}, which the hf layout '
      'needs; take them from CLIP (--vision), or write --to=llava'
    )


def _write_processor(part: pathlib.Path, cfg) -> None:
  """What `AutoProcessor` needs, and the two added tokens."""
  size = cfg.vision.image_size
  pixels = {
    'image_processor_type': 'CLIPImageProcessor',
    'do_resize': True,
    'size': {'shortest_edge': size},
    'resample': 3,
    'do_center_crop': True,
    'crop_size': {'height': size, 'width': size},
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': [float(x) for x in image.MEAN],
    'image_std': [float(x) for x in image.STD],
    'do_convert_rgb': True,
    'processor_class': 'LlavaProcessor',
  }
  processor = {
    'processor_class': 'LlavaProcessor',
    'image_token': '<image>',
    'num_additional_image_tokens': 1,
    'patch_size': cfg.vision.patch_size,
    'vision_feature_select_strategy': 'default',
  }
  for name, value in (('preprocessor', pixels), ('processor', processor)):
    (part / f'{name}_config.json').write_text(json.dumps(value, indent=2) + '\n')
  if not readers.has_tokenizer(part):
    return
  tokenizer: Any = tokens.load_tokenizer(part).backend
  if len(tokenizer) == cfg.llama.vocab:
    tokenizer.add_special_tokens({'additional_special_tokens': ['<image>', '<pad>']})
    tokenizer.save_pretrained(part)
