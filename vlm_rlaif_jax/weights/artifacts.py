"""What stages leave for one another: small folders of safetensors and JSON.

    <workdir>/<size>/sft/artifact/      artifact.json, lora.safetensors, projector...
    <workdir>/<size>/reward/artifact/   artifact.json, lora.safetensors, head...

An adapter knows the fingerprint of the weights that it was trained on and is refused on
others. Folders are written whole or not at all.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import safetensors.numpy

from vlm_rlaif_jax.core import hosts, trees
from vlm_rlaif_jax.settings.build import UserError


class ArtifactError(UserError):
  """An artifact that is missing, damaged, or made for other weights."""


@dataclasses.dataclass(frozen=True)
class Artifact:
  """Trees by name, and what is known about them.

  Attributes:
    parts: for instance `{'lora': ..., 'projector': ...}` of numpy arrays.
    info: stage, base fingerprint, LoRA settings, template, metrics, ...
  """

  parts: dict[str, Any]
  info: dict[str, Any]

  @property
  def fingerprint(self) -> str:
    text = ''.join(
      f'{name}={trees.fingerprint(part)};' for name, part in sorted(self.parts.items())
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save(folder: pathlib.Path, artifact: Artifact) -> None:
  """The first host writes; the others wait until it is there."""
  if hosts.is_first():
    _write(folder, artifact)
  hosts.barrier(f'artifact {folder}')


def _write(folder: pathlib.Path, artifact: Artifact) -> None:
  part = folder.with_name(folder.name + '.part')
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir(parents=True)
  for name, tree in artifact.parts.items():
    flat = {k: np.asarray(v) for k, v in trees.flatten(tree).items()}
    safetensors.numpy.save_file(flat, part / f'{name}.safetensors')
  info = {
    **artifact.info,
    'parts': sorted(artifact.parts),
    'fingerprint': artifact.fingerprint,
  }
  (part / 'artifact.json').write_text(json.dumps(info, indent=2) + '\n')
  shutil.rmtree(folder, ignore_errors=True)
  os.replace(part, folder)


def load(folder: pathlib.Path, stage: str, base: str | None = None) -> Artifact:
  """Reads an artifact and checks that it is what it should be.

  Args:
    folder: of the stage, as in `runs/tiny/sft`.
    stage: which stage must have made it.
    base: fingerprint of the weights that it will be put on; None: not checked.
  """
  return hosts.together(lambda: _load(folder, stage, base))


def _load(folder: pathlib.Path, stage: str, base: str | None) -> Artifact:
  path = folder / 'artifact' / 'artifact.json'
  try:
    info = json.loads(path.read_text())
  except FileNotFoundError:
    raise ArtifactError(f'{path}: no such file') from None
  except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
    raise ArtifactError(f'{path}: not JSON ({error})') from None
  if not isinstance(info, dict):
    raise ArtifactError(f'{path}: holds a {type(info).__name__}, a dict was expected')
  if info.get('stage') != stage:
    raise ArtifactError(f'{path}: made by stage {info.get("stage")!r}, not {stage!r}')
  if base is not None and info.get('base') != base:
    raise ArtifactError(
      f'{path}: trained on weights {info.get("base")}, these are {base}'
    )
  parts, named = {}, info.get('parts')
  if not isinstance(named, list) or not all(
    isinstance(name, str) and name.isidentifier() for name in named
  ):
    raise ArtifactError(f'{path}: parts is {named!r}, expected a list of their names')
  if not isinstance(info.get('fingerprint'), str):
    raise ArtifactError(f'{path}: fingerprint is missing or not a text')
  for name in named:
    file = path.with_name(f'{name}.safetensors')
    try:
      parts[name] = trees.unflatten(safetensors.numpy.load_file(file))
    except (OSError, safetensors.SafetensorError) as error:
      raise ArtifactError(f'{file}: cannot be read ({error})') from None
  artifact = Artifact(parts, info)
  if artifact.fingerprint != info['fingerprint']:
    raise ArtifactError(
      f'{path.parent}: contents have fingerprint {artifact.fingerprint}, '
      f'{path.name} says {info["fingerprint"]}'
    )
  return artifact


def write_summary(folder: pathlib.Path, summary: dict) -> None:
  """`summary.json`: written last, so its presence says that the stage is done."""
  if hosts.is_first():
    folder.mkdir(parents=True, exist_ok=True)
    hosts.write_whole(folder / 'summary.json', json.dumps(summary, indent=2) + '\n')
  hosts.barrier(f'summary {folder}')


def read_summary(folder: pathlib.Path) -> dict | None:
  """What a stage said when it was done; None where it is not."""
  path = folder / 'summary.json'
  try:
    summary = json.loads(path.read_text()) if path.exists() else None
  except (ValueError, RecursionError, OSError) as error:
    raise ArtifactError(f'{path}: cannot be read ({error})') from None
  if summary is not None and not isinstance(summary, dict):
    raise ArtifactError(
      f'{path}: holds a {type(summary).__name__}, a dict was expected'
    )
  return summary
