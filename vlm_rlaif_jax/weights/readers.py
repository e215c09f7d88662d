"""A checkpoint, wherever it comes from, as neutral names and sizes; still unread.

folder with config.json      LLaVA (both layouts), LLaMA, CLIP
folder with model.json       one of our bases
file                         mm_projector.bin, non_lora_trainables.bin
"""

import dataclasses
import pathlib
from collections.abc import Iterable

import numpy as np

from vlm_rlaif_jax.settings.models import LoraConfig, VlmConfig
from vlm_rlaif_jax.weights import model_config, names, nf4_files, tensor_files
from vlm_rlaif_jax.weights.nf4_files import Packed
from vlm_rlaif_jax.weights.tensor_files import (
  ConvertError,
  Held,
  Stored,
  Tensor,
  Tensors,
)

TOKENIZER = (
  'tokenizer.model',
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
)
TRAVELS = (*TOKENIZER, 'generation_config.json')
_CHUNK = 1 << 21  # elements that are merged at a time


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A network on disk.

  Attributes:
    folder: where its tokenizer and generation settings are.
    tensors: by neutral name.
    parts: of `names.PARTS`, that it holds.
    clip: folder that the tower came from, where it was another one.
  """

  folder: pathlib.Path
  cfg: VlmConfig
  tensors: dict[str, Tensor]
  clip: pathlib.Path | None = None

  @property
  def parts(self) -> tuple[str, ...]:
    start = {'llama': ('model.', 'lm_head.'), 'tower': ('vision.',)}
    return tuple(
      part
      for part in names.PARTS
      if any(n.startswith(start.get(part, f'{part}.')) for n in self.tensors)
    )

  @property
  def dtype(self) -> str:
    """Of most of its weights that are not in NF4."""
    total: dict[str, int] = {}
    for tensor in self.tensors.values():
      if not isinstance(tensor, Packed):
        kind = tensor.dtype.name
        total[kind] = total.get(kind, 0) + int(np.prod(tensor.shape))
    return max(total, key=lambda kind: total[kind], default='float32')

  @property
  def linears(self) -> list[Tensor]:
    """Of the decoder's layers: what may be in NF4."""
    known = {
      s for leaf in names.leaves(self.cfg) if leaf.is_linear for s in leaf.sources
    }
    return [tensor for name, tensor in self.tensors.items() if name in known]

  @property
  def bits(self) -> int:
    linears = self.linears
    return 4 if linears and all(isinstance(x, Packed) for x in linears) else 16

  def leaves(self, parts: Iterable[str] = ('llama', 'projector', 'tower')):
    return names.chosen(self.tensors, self.cfg, parts, self.folder)

  def describe(self) -> str:
    llama, vision = self.cfg.llama, self.cfg.vision
    words = {
      'llama': f'decoder of {llama.layers} layers and width {llama.width}',
      'tower': f'tower of {vision.layers} layers and width {vision.width}',
      'projector': 'two-layer projector',
      'text': 'text tower',
    }
    found = ', '.join(words[part] for part in self.parts)
    shards = len({t.place[0] for t in self.tensors.values() if t.place[0]})
    kind = f'{self.dtype}, linears in NF4' if self.bits == 4 else self.dtype
    return f'{self.cfg.name}: {found}; {kind}, {shards} file(s)'


def has_tokenizer(folder: pathlib.Path) -> bool:
  return any((folder / name).is_file() for name in TOKENIZER[:2])


def is_ours(folder: pathlib.Path) -> bool:
  return (folder / 'model.json').is_file()


def open_checkpoint(
  folder: pathlib.Path,
  vision: pathlib.Path | None = None,
  projector: pathlib.Path | None = None,
) -> Checkpoint:
  """Finds out what a folder holds.

  Args:
    vision: a CLIP folder; gives what the checkpoint itself lacks of the towers.
    projector: a file; replaces the checkpoint's projector.
  """
  if not folder.is_dir():
    raise ConvertError(f'{folder}: no such folder')
  if is_ours(folder):
    if vision is not None:
      raise ConvertError(
        f'vision: {vision} completes a foreign network; {folder} is a base of ours'
      )
    found = _open_ours(folder)
  else:
    found = _open_foreign(folder, vision)
  if projector is not None:
    theirs = read_projector(projector)
    found = with_projector(found, theirs, projector)
  return found


def _open_ours(folder: pathlib.Path) -> Checkpoint:
  cfg = model_config.of_model_json(folder / 'model.json')
  paths = sorted(folder.glob('*.safetensors'))
  stored: dict[str, Stored] = {}
  for file in paths:
    stored |= tensor_files.read_file(file)
  if 'text/logit_scale' in stored:  # as the base of the package has it
    stored['text/logit_scale/w'] = stored.pop('text/logit_scale')
  through = nf4_files.dtype_of(paths)
  tensors: dict[str, Tensor] = {}
  problems = []
  for leaf in names.leaves(cfg):
    parts = {leaf.name: leaf.whole}
    double = f'{leaf.name}/scale' in stored
    if through and leaf.is_linear:
      made = nf4_files.shapes(leaf.name, leaf.whole, double)
      parts = {name: shape for name, (shape, _) in made.items()}
    found = {name: stored.pop(name) for name in parts if name in stored}
    for name, tensor in found.items():
      if tensor.shape != parts[name]:
        problems.append(f'{name} has shape {tensor.shape}, expected {parts[name]}')
    if len(found) < len(parts):
      problems += [f'missing {name}' for name in parts if found and name not in found]
    elif not problems:
      tensors |= _layers(leaf, found, through, double)
  problems += [f'left over {name} {tensor.shape}' for name, tensor in stored.items()]
  if problems:
    raise ConvertError(f'{folder}: {tensor_files.listed(problems)}')
  if not tensors:
    raise ConvertError(f'{folder}: has model.json but no *.safetensors')
  return Checkpoint(folder, cfg, tensors)


def _layers(
  leaf: names.Leaf, found: dict[str, Stored], through: str, double: bool
) -> dict[str, Tensor]:
  """The neutral tensors of one weight of ours."""
  made: dict[str, Tensor] = {}
  for index, source in enumerate(leaf.sources):
    piece = {
      name: tensor.layer(index) if leaf.stacked else tensor
      for name, tensor in found.items()
    }
    if leaf.name in piece:
      made[source] = dataclasses.replace(piece[leaf.name], shape=leaf.theirs)
    else:
      parts = {name.rpartition('/')[2]: tensor for name, tensor in piece.items()}
      made[source] = Packed(leaf.theirs, nf4_files.numpy_dtype(through), double, parts)
  return made


def _open_foreign(folder: pathlib.Path, vision: pathlib.Path | None) -> Checkpoint:
  config = _config(folder)
  stored = tensor_files.read_shards(folder, 'model')
  if stored is None:
    raise ConvertError(
      f'{folder}: no model.safetensors, pytorch_model.bin or index of shards'
    )
  if not stored:
    raise ConvertError(f'{folder}: its files hold no tensors')
  tensors = nf4_files.of_bitsandbytes(names.neutral(stored))
  if any('multi_modal_projector' in name for name in stored):
    tensors = _without_added_rows(tensors, config)
  table = tensors.get('model.embed_tokens.weight')
  if (
    table is not None
    and 'lm_head.weight' not in tensors
    and model_config.of_text(config).one_of('tie_word_embeddings', (False, True))
  ):
    tensors['lm_head.weight'] = table
  clip = model_config.Section({}, config.path)
  if vision is not None:
    clip = _config(vision)
    more = tensor_files.read_shards(vision, 'model')
    if more is None:
      raise ConvertError(f'{vision}: no model.safetensors or pytorch_model.bin')
    towers = names.neutral(more)
    if not any(name.startswith('vision.') for name in towers):
      raise ConvertError(f'{vision}: not a CLIP checkpoint with a vision tower')
    tensors = towers | tensors
  kind = next((t.dtype.name for t in tensors.values()), 'float32')
  cfg = model_config.of_foreign(tensors, config, clip, _float(kind))
  return Checkpoint(folder, cfg, tensors, vision)


def _config(folder: pathlib.Path) -> model_config.Section:
  path = folder / 'config.json'
  return model_config.Section(tensor_files.read_json(path), f'{path}: ')


def _float(name: str) -> str:
  return name if name in ('float32', 'bfloat16', 'float16') else 'float32'


def _without_added_rows(tensors: dict, config: model_config.Section) -> dict:
  """The vocabulary without <image>, <pad> and the padding after them.

  The embeddings of our networks are looked up by text ids alone. A token that cannot be
  the first of such rows would take the text's own rows away, and is refused.
  """
  field = config.named('image_token_index', 'image_token_id')
  if field not in config.values:
    return tensors
  image_token, out = config.count(field), dict(tensors)
  for name in ('model.embed_tokens.weight', 'lm_head.weight'):
    table = out.get(name)
    if isinstance(table, Stored) and table.shape and image_token < table.shape[0]:
      if table.shape[0] - image_token not in (1, 2, model_config.padding(image_token)):
        raise config.wrong(
          field, f'the first id after the text, of {table.shape[0]} in {name}'
        )
      out[name] = dataclasses.replace(
        table, shape=(image_token, *table.shape[1:]), crc=None
      )
  return out


def read_projector(path: pathlib.Path) -> Tensors:
  """mm_projector.bin or non_lora_trainables.bin: `projector.*`, perhaps nothing."""
  if not path.is_file():
    raise ConvertError(f'{path}: no such file')
  found = {}
  for name, tensor in tensor_files.read_file(path).items():
    new = names.rename(
      name.removeprefix('base_model.').replace('model.model.', 'model.')
    )
    if not new.startswith('projector.'):
      raise ConvertError(f'{path}: left over {name} {tensor.shape}')
    if new in found:
      raise ConvertError(f'{path}: two tensors mean {new}, one of them {name}')
    found[new] = tensor
  return found


def with_projector(
  checkpoint: Checkpoint, projector: Tensors, where: pathlib.Path
) -> Checkpoint:
  if not projector:
    raise ConvertError(f'{where}: holds no projector')
  tensors = {
    name: tensor
    for name, tensor in checkpoint.tensors.items()
    if not name.startswith('projector.')
  }
  return dataclasses.replace(checkpoint, tensors=tensors | dict(projector))


# ---------------------------------------------------------------- merging


@dataclasses.dataclass(frozen=True)
class Merged:
  """W + alpha / rank B A, made when it is read."""

  base: Tensor
  a: np.ndarray
  b: np.ndarray
  scale: float

  @property
  def shape(self) -> tuple[int, ...]:
    return self.base.shape

  @property
  def dtype(self) -> np.dtype:
    return self.base.dtype

  @property
  def place(self) -> tuple[str, int]:
    return self.base.place

  def read(self) -> np.ndarray:
    return merged(self.base.read(), self.a, self.b, self.scale)


def merged(w: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
  """W + scale B A of one layer, in float64 and then in the dtype of W."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  out = np.empty_like(w)
  step = max(1, _CHUNK // w.shape[1])
  for first in range(0, w.shape[0], step):  # some outputs at a time: copies stay small
    rows = slice(first, first + step)
    out[rows] = (w[rows].astype(np.float64) + scale * (b[rows] @ a)).astype(w.dtype)
  return out


def with_adapter(checkpoint: Checkpoint, flat: dict, lora: LoraConfig) -> Checkpoint:
  """The checkpoint with an adapter merged into it.

  Args:
    flat: `llama/layers/q/a` `[L, rank, in]` and so on, that fits the checkpoint.
  """
  tensors = dict(checkpoint.tensors)
  for linear, module in names.MODULES.items():
    if f'llama/layers/{linear}/a' not in flat:
      continue
    a, b = (flat[f'llama/layers/{linear}/{side}'] for side in 'ab')
    for layer in range(a.shape[0]):
      name = f'model.layers.{layer}.{module}.weight'
      scale = lora.alpha / lora.rank
      tensors[name] = Merged(tensors[name], a[layer], b[layer], scale)
  return dataclasses.replace(checkpoint, tensors=tensors)


def projector_of(tree: dict) -> dict[str, Tensor]:
  """`{'in': {'w', 'bias'}, 'out': ...}` of one of our artifacts, by neutral name."""
  return {
    f'projector.{number}.{theirs}': Held(np.asarray(tree[mine][own]))
    for mine, number in (('in', 0), ('out', 2))
    for own, theirs in (('w', 'weight'), ('bias', 'bias'))
  }
