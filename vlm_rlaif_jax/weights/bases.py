"""The frozen networks: pretrained weights, and the tuned model that SFT makes of them.

A base folder holds `model.json` (sizes), `*.safetensors` (our names, layers stacked)
and a Hugging Face tokenizer. The tiny one comes with the package; `launch.convert`
makes others from released checkpoints.
"""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from vlm_rlaif_jax.core import hosts, trees
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.settings.build import flatten
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.stage import MERGED
from vlm_rlaif_jax.weights import artifacts, names, nf4_files
from vlm_rlaif_jax.weights.adapters import check_adapter, lora_of, merge
from vlm_rlaif_jax.weights.network_shapes import abstract_params
from vlm_rlaif_jax.weights.placement import is_quantized

TINY = pathlib.Path(__file__).parents[1] / 'data' / 'world' / 'base'


@dataclasses.dataclass(frozen=True)
class Base:
  """Frozen weights on the host, their tokenizer, and who they are.

  A base in NF4 has a fingerprint of its own, and so have the stages that stand on it:
  what was trained on the 16-bit base stays with that one, whatever its residency was.
  """

  params: dict[str, Any]
  tokenizer: tokens.Tokenizer
  fingerprint: str


def base_folder(base: str) -> pathlib.Path:
  return pathlib.Path(base) if base else TINY


def load(base: str, cfg: VlmConfig) -> Base:
  """Reads a base folder and checks every leaf against the sizes of the config."""
  return hosts.together(lambda: _load(base, cfg))


def _load(base: str, cfg: VlmConfig) -> Base:
  folder = base_folder(base)
  files = sorted(folder.glob('*.safetensors'))
  if not files:
    raise artifacts.ArtifactError(
      f'{folder}: no base weights; make them from a released checkpoint with '
      f'python -m launch.convert CHECKPOINT {folder}'
    )
  flat = {}
  for file in files:
    try:
      flat |= safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
      raise artifacts.ArtifactError(f'{file}: cannot be read ({error})') from None
  flat = {name: value for name, value in flat.items() if not name.startswith('text/')}
  expected = {
    name: leaf
    for name, leaf in trees.flatten(abstract_params(cfg)).items()
    if name in flat or not name.startswith(names.JOINT)  # LLaVA has no joint embedding
  }
  whole = {name: leaf.shape for name, leaf in expected.items()}
  through = nf4_files.dtype_of(files)
  if through:
    for name in filter(is_quantized, whole):
      parts = nf4_files.shapes(name, expected.pop(name).shape, f'{name}/scale' in flat)
      expected |= {n: jax.ShapeDtypeStruct(*what) for n, what in parts.items()}
  problems = trees.mismatches(flat, expected)
  if problems:
    raise artifacts.ArtifactError(
      f'{folder}: does not fit config.model ({cfg.name}): {"; ".join(problems[:5])}'
      + (f' and {len(problems) - 5} more' if len(problems) > 5 else '')
    )
  return Base(
    params=trees.unflatten(nf4_files.joined(flat, whole, through)),
    tokenizer=tokens.load_tokenizer(folder),
    fingerprint=fingerprint(folder),
  )


def fingerprint(folder: pathlib.Path) -> str:
  """Hash of the files of weights of a base folder."""
  digest = hashlib.sha256()
  for file in sorted(folder.glob('*.safetensors')):
    with file.open('rb') as stream:
      while chunk := stream.read(1 << 24):
        digest.update(chunk)
  return digest.hexdigest()[:16]


def tuned_fingerprint(base: str, sft: str) -> str:
  """Of a base with an SFT artifact merged into it, from the fingerprints of both."""
  return hashlib.sha256(f'{base}+{sft}'.encode()).hexdigest()[:16]


def origin(
  base: str, sft: str | pathlib.Path = MERGED, prefix: str = ''
) -> dict[str, str]:
  """What an artifact says of where its base was; fingerprints decide whether it is.

  Args:
    sft: the folder of the SFT stage merged into the base, `MERGED` if there is none.
    prefix: of the fields; 'critic_' for the base of value and reward.
  """
  place = MERGED if str(sft) == MERGED else str(pathlib.Path(sft).resolve())
  return {
    f'{prefix}base_folder': str(base_folder(base).resolve()),
    f'{prefix}sft_folder': place,
  }


def save(folder: pathlib.Path, params: dict, cfg: VlmConfig) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  flat = {name: np.asarray(value) for name, value in trees.flatten(params).items()}
  safetensors.numpy.save_file(flat, folder / 'model.safetensors')
  (folder / 'model.json').write_text(json.dumps(flatten(cfg), indent=1) + '\n')


def tuned(base: Base, folder: pathlib.Path, cfg: VlmConfig) -> Base:
  """The base with an SFT artifact merged into it: what later stages start from.

  Args:
    folder: of the SFT stage; `MERGED` for a base that was converted after its tuning.
  """
  if str(folder) == MERGED:
    return base
  artifact = artifacts.load(folder, 'sft', base.fingerprint)
  lora = lora_of(artifact)
  check_adapter(artifact.parts['lora'], cfg, lora, str(folder))
  params = merge(base.params, artifact.parts['lora'], lora)
  params['projector'] = artifact.parts['projector']
  return Base(
    params,
    base.tokenizer,
    tuned_fingerprint(base.fingerprint, artifact.fingerprint),
  )
