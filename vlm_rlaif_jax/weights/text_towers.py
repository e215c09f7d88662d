"""CLIP's text tower: of a base, or of a CLIP checkpoint; it maps texts to embeddings.

base         `text/` among its weights; made by `stages/pretrain.py`, or converted with
             `--vision` from a CLIP that has one
checkpoint   CLIPModel, CLIPTextModelWithProjection (transformers)

LLaVA's checkpoints have no text tower.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from vlm_rlaif_jax.core import hosts, trees
from vlm_rlaif_jax.data import text_tokens, tokens
from vlm_rlaif_jax.data.text_tokens import TextTokenizer
from vlm_rlaif_jax.settings.models import ClipTextConfig, VlmConfig
from vlm_rlaif_jax.settings.stage import RANDOM
from vlm_rlaif_jax.weights import (
  bases,
  network_files,
  network_shapes,
  random_base,
  tensor_files,
  weight_forms,
  writers,
)
from vlm_rlaif_jax.weights.artifacts import ArtifactError
from vlm_rlaif_jax.weights.tensors import ArrayTensor, Tensor

_TEMPERATURE = 'text.logit_scale'  # of CLIP's loss


@dataclasses.dataclass(frozen=True)
class TextTower:
  """A text tower on the host, with its tokenizer.

  Attributes:
    joint: width of the embeddings.
    params: of `nn.clip.ClipText`, float32.
    place: the folder that it was read from.
  """

  cfg: ClipTextConfig
  joint: int
  params: dict[str, Any]
  tokenizer: TextTokenizer
  place: str

  @functools.cached_property
  def fingerprint(self) -> str:
    """Returns a hash of the weights."""
    return trees.fingerprint(self.params)


def load(folder: str, base: str, cfg: VlmConfig) -> TextTower:
  """Reads the text tower that `text_scores.text_encoder` names, or that of the base.

  Args:
    folder: of a CLIP checkpoint; '': the base.
    base: folder of the base; '': the one of the package, `RANDOM`: random weights.
    cfg: sizes of the base; only random weights need them.

  Raises:
    UserError: there is no text tower, or its files are damaged.
  """
  if not folder and base == RANDOM:
    return _random(cfg)
  place = pathlib.Path(folder) if folder else bases.base_folder(base)
  return hosts.together(lambda: _read(place, is_base=not folder))


def _random(cfg: VlmConfig) -> TextTower:
  """Returns random weights, for rehearsals, with the tokenizer of the package."""
  shapes = network_shapes.abstract_text(cfg.text, cfg.joint)
  tokenizer = tokens.load_tokenizer(bases.TINY)
  return TextTower(
    cfg.text,
    cfg.joint,
    random_base.fill(shapes, cfg.text.layers, np.dtype(np.float32)),
    text_tokens.of_base(tokenizer, cfg.text.eos_id),
    RANDOM,
  )


def _read(folder: pathlib.Path, is_base: bool) -> TextTower:
  """Returns the tower of a folder, which may be one of our bases in either case."""
  network = network_files.read_network(folder)
  tensors: dict[str, Tensor] = {
    name: tensor for name, tensor in network.tensors.items() if name.startswith('text.')
  }
  if not tensors:
    option = 'with --config.text_scores.text_encoder' if is_base else 'that has one'
    hint = f'name the folder of a CLIP checkpoint {option}'
    raise ArtifactError(
      f'{folder}: has no text tower, by which retrieval and action recognition compare '
      f'texts; {hint}'
    )
  # No embedding depends on the temperature, and some files leave it out.
  tensors.setdefault(_TEMPERATURE, ArrayTensor(np.zeros((), np.float32)))
  joint = network.cfg.joint
  if 'text.projection.weight' in tensors:  # a default is left out of config.json
    joint = tensors['text.projection.weight'].shape[0]
  cfg = dataclasses.replace(network.cfg, joint=joint)
  network = dataclasses.replace(network, cfg=cfg, tensors=tensors)
  weights = network.weights(('text',))
  form = weight_forms.Form('float32')
  writer = tensor_files.MemoryWriter(writers.shapes_of(weights, form))
  writers.write_weights(writer, network, weights, form, writers.without_progress)
  params = trees.unflatten(writer.arrays)['text']
  params.pop('logit_scale')
  tokenizer = _tokenizer(folder, cfg.text)
  return TextTower(cfg.text, joint, params, tokenizer, str(folder))


def _tokenizer(folder: pathlib.Path, cfg: ClipTextConfig) -> TextTokenizer:
  """Returns the tokenizer of a tower.

  A converted base has CLIP's files in `text/`; the base of the package has one
  tokenizer for both networks.
  """
  if not network_files.is_base(folder):
    return text_tokens.load_clip(folder, cfg.vocab, cfg.eos_id)
  own = folder / 'text'
  if own.is_dir():
    return text_tokens.load_clip(own, cfg.vocab, cfg.eos_id)
  tokenizer = tokens.load_tokenizer(folder, cfg.vocab)
  return text_tokens.of_base(tokenizer, cfg.eos_id)
