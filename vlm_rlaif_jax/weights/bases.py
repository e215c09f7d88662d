"""Base networks: pretrained weights, and the tuned model that SFT makes of them.

A base folder has `model.json` (sizes), `*.safetensors` (our names, layers stacked) and
a Hugging Face tokenizer. The tiny one comes with the package; `launch.convert` makes
others from released checkpoints.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from vlm_rlaif_jax.core import hosts, trees
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.settings.constants import WORLD_SIZES
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.stage import MERGED, RANDOM
from vlm_rlaif_jax.weights import (
  artifacts,
  model_config,
  nf4_files,
  random_base,
  weight_table,
)
from vlm_rlaif_jax.weights.adapters import check_adapter, lora_of, merge
from vlm_rlaif_jax.weights.network_shapes import abstract_params
from vlm_rlaif_jax.weights.placement import is_quantized

POSITIONS = 'llama.max_positions'  # of which a run may use fewer
TINY = pathlib.Path(__file__).parents[1] / 'data' / 'world' / 'base'


@dataclasses.dataclass(frozen=True)
class Base:
  """Frozen weights on the host, with their tokenizer and fingerprint.

  A base in NF4 has a fingerprint of its own, and so have the stages that are trained on
  it: what was trained on the 16-bit base stays with that one, whatever its residency.
  """

  params: dict[str, Any]
  tokenizer: tokens.Tokenizer
  fingerprint: str
  aspect: str = ''  # how frames became squares in training; '': not recorded


def base_folder(base: str) -> pathlib.Path:
  """Returns the folder of a base; '' is the one of the package."""
  return pathlib.Path(base) if base else TINY


def load(base: str, cfg: VlmConfig) -> Base:
  """Reads a base folder and checks every leaf against the sizes of the config.

  Args:
    base: the folder; '' for the base of the package, `RANDOM` for random weights with
      its tokenizer.

  Raises:
    ArtifactError: weights are missing, damaged or of another size.
  """
  if base == RANDOM:
    params, tokenizer = random_base.params(cfg), tokens.load_tokenizer(TINY)
    return Base(params, tokenizer, random_base.fingerprint(cfg))
  return hosts.together(lambda: _load(base, cfg))


def weight_files(base: str, cfg: VlmConfig) -> list[pathlib.Path]:
  """Returns the files of a base's weights.

  Raises:
    ArtifactError: there are none.
  """
  folder = base_folder(base)
  files = sorted(folder.glob('*.safetensors'))
  if not files and base != RANDOM:
    way = f'from a checkpoint with python -m launch.convert CHECKPOINT {folder}'
    if cfg.name in WORLD_SIZES:
      way = f'with python -m launch.train --config configs/pretrain.py:{cfg.name}'
    raise artifacts.ArtifactError(f'{folder}: no base weights; make them {way}')
  return files


def read_arrays(files: Sequence[pathlib.Path]) -> dict[str, np.ndarray]:
  """Returns the arrays of a base's files by name, those of a text tower among them.

  Raises:
    ArtifactError: a file is damaged, or repeats an array of another.
  """
  flat: dict[str, np.ndarray] = {}
  for file in files:
    try:
      arrays = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
      raise artifacts.ArtifactError(f'{file}: cannot be read ({error})') from None
    if repeated := sorted(flat.keys() & arrays.keys()):
      raise artifacts.ArtifactError(
        f'{file}: repeats {repeated[0]} of another file of the folder; remove the file '
        'that is not of this base'
      )
    flat |= arrays
  return flat


def _load(base: str, cfg: VlmConfig) -> Base:
  folder, files = base_folder(base), weight_files(base, cfg)
  flat = read_arrays(files)
  flat = {name: value for name, value in flat.items() if not name.startswith('text/')}
  expected = {
    name: leaf
    for name, leaf in trees.flatten(abstract_params(cfg)).items()
    # LLaVA has no joint embedding
    if name in flat or not name.startswith(weight_table.JOINT)
  }
  shapes = {name: leaf.shape for name, leaf in expected.items()}
  through = nf4_files.quantized_dtype(files)
  if through:
    for name in filter(is_quantized, shapes):
      expected.pop(name)
      double = f'{name}/scale' in flat
      parts = nf4_files.part_shapes(name, shapes[name], double)
      expected |= {
        part: jax.ShapeDtypeStruct(shape, dtype)
        for part, (shape, dtype) in parts.items()
      }
  problems = trees.mismatches(flat, expected)
  if problems:
    raise artifacts.ArtifactError(
      f'{folder}: does not fit config.model ({cfg.name}): {"; ".join(problems[:5])}'
      + (f' and {len(problems) - 5} more' if len(problems) > 5 else '')
    )
  _check_meaning(folder, cfg)
  return Base(
    params=trees.unflatten(nf4_files.join_parts(flat, shapes, through)),
    tokenizer=tokens.load_tokenizer(folder, cfg.llama.vocab),
    fingerprint=fingerprint(folder),
    aspect=model_config.read_origin(folder / 'model.json')[0],
  )


def _check_meaning(folder: pathlib.Path, cfg: VlmConfig) -> None:
  """Raises ArtifactError if `model.json` says what no shape tells otherwise than cfg.

  As heads, epsilons, the rotary base, or the hidden state that the projector reads:
  with others the same weights are another network.
  """
  path = folder / 'model.json'
  if not path.is_file():
    return
  own, expected = model_config.read_model_json(path).identity, cfg.identity
  differing = [
    f'{name}={own[name]} (this run has {value})'
    for name, value in expected.items()
    if name.startswith(('llama.', 'vision.', 'projector'))
    and (own[name] < value if name == POSITIONS else own[name] != value)
  ]
  if differing:
    raise artifacts.ArtifactError(
      f'{path}: the weights are those of a network with {", ".join(differing)}; give '
      'it to the run as --config.model.<name>=<value>'
    )


def fingerprint(folder: pathlib.Path) -> str:
  """Returns a hash of the files of weights of a base folder."""
  digest = hashlib.sha256()
  for file in sorted(folder.glob('*.safetensors')):
    with file.open('rb') as stream:
      while chunk := stream.read(1 << 24):
        digest.update(chunk)
  return digest.hexdigest()[:16]


def tuned_fingerprint(base: str, sft: str) -> str:
  """Returns the fingerprint of a base with an SFT artifact merged into it.

  Args:
    base: fingerprint of the base.
    sft: fingerprint of the artifact.
  """
  return hashlib.sha256(f'{base}+{sft}'.encode()).hexdigest()[:16]


def origin(
  base: str, sft: str | pathlib.Path = MERGED, prefix: str = ''
) -> dict[str, str]:
  """Returns what an artifact records of the place of its base.

  Places are hints: fingerprints decide whether a base is the one.

  Args:
    sft: the folder of the SFT stage merged into the base, `MERGED` if there is none.
    prefix: of the fields; 'critic_' for the base of value and reward.
  """
  place = MERGED if str(sft) == MERGED else str(pathlib.Path(sft).resolve())
  return {
    f'{prefix}base_folder': str(base_folder(base).resolve()),
    f'{prefix}sft_folder': place,
  }


def save(
  folder: pathlib.Path,
  params: dict[str, Any],
  cfg: VlmConfig,
  aspect: str = '',
  own_tower: bool = False,
) -> None:
  """Writes weights and sizes of a base folder; the tokenizer is the caller's.

  Args:
    aspect, own_tower: see `model_config.read_origin`.
  """
  folder.mkdir(parents=True, exist_ok=True)
  flat = {name: np.asarray(value) for name, value in trees.flatten(params).items()}
  safetensors.numpy.save_file(flat, folder / 'model.safetensors')
  text = model_config.to_model_json(cfg, aspect, own_tower)
  (folder / 'model.json').write_text(text)


def tuned(base: Base, folder: str | pathlib.Path, cfg: VlmConfig) -> Base:
  """Returns the base with an SFT artifact merged into it, which later stages train.

  Args:
    folder: of the SFT stage; `MERGED` for a base that was converted after its tuning.
  """
  if str(folder) == MERGED:
    return base
  folder = pathlib.Path(folder)
  artifact = artifacts.load(folder, 'sft', base.fingerprint)
  lora = lora_of(artifact)
  check_adapter(artifact.parts['lora'], cfg, lora, str(folder))
  params = merge(base.params, artifact.parts['lora'], lora)
  params['projector'] = artifact.parts['projector']
  return Base(
    params,
    base.tokenizer,
    tuned_fingerprint(base.fingerprint, artifact.fingerprint),
    artifact.info.get('aspect') or base.aspect,
  )
