"""Artifacts that stages leave for one another: small folders of safetensors and JSON.

    <workdir>/<size>/sft/artifact/      artifact.json, lora.safetensors, projector...
    <workdir>/<size>/reward/artifact/   artifact.json, lora.safetensors, head...

An artifact records the fingerprint of the weights that it was trained on and is refused
on others. Folders appear complete or not at all.
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

from vlm_rlaif_jax.core import environment, hosts, trees
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.weights.artifact_paths import artifact_json


class ArtifactError(UserError):
  """An artifact that is missing, damaged, or made for other weights."""


@dataclasses.dataclass(frozen=True)
class Artifact:
  """Trees by name, and what is recorded about them.

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
  """Writes an artifact on the first host; the others wait for it."""
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
    'lora_fingerprint': lora_fingerprint(artifact.info),
  }
  (part / 'artifact.json').write_text(json.dumps(info, indent=2) + '\n')
  shutil.rmtree(folder, ignore_errors=True)
  os.replace(part, folder)


def load(folder: pathlib.Path, stage: str, base: str | None = None) -> Artifact:
  """Reads an artifact and checks its stage, its weights and its fingerprint.

  Args:
    folder: of the stage, as in `runs/tiny/sft`.
    stage: that must have made it.
    base: fingerprint of the weights that it will be used with; None: not checked.

  Raises:
    ArtifactError: it is missing, damaged, of another stage or for other weights.
  """
  return hosts.together(lambda: _load(folder, stage, base))


def _load(folder: pathlib.Path, stage: str, base: str | None) -> Artifact:
  path = artifact_json(folder)
  info = _read_object(path)
  if info.get('stage') != stage:
    raise ArtifactError(
      f'{path}: made by stage {info.get("stage")!r}, expected one of stage {stage!r}'
    )
  if base is not None and info.get('base') != base:
    raise ArtifactError(
      f'{path}: trained on weights {info.get("base")}, expected {base}; name the base '
      'that it was trained on, or train it again'
    )
  names = info.get('parts')
  if not isinstance(names, list) or not all(
    isinstance(name, str) and name.isidentifier() for name in names
  ):
    raise ArtifactError(f'{path}: parts is {names!r}, expected a list of names')
  if not isinstance(info.get('fingerprint'), str):
    raise ArtifactError(f'{path}: fingerprint is missing or not a text')
  parts = {}
  for name in names:
    file = path.with_name(f'{name}.safetensors')
    try:
      parts[name] = trees.unflatten(safetensors.numpy.load_file(file))
    except (OSError, safetensors.SafetensorError) as error:
      raise ArtifactError(f'{file}: cannot be read ({error})') from None
  artifact = Artifact(parts, info)
  if artifact.fingerprint != info['fingerprint']:
    raise ArtifactError(
      f'{path.parent}: contents have fingerprint {artifact.fingerprint}, '
      f'{path.name} records {info["fingerprint"]}'
    )
  return artifact


def lora_fingerprint(info: dict[str, Any]) -> str:
  """Returns the fingerprint of what, beside weights, decides what adapters do."""
  settings = {name: info.get(name) for name in ('lora', 'critic_lora')}
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def info(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what is recorded of an artifact, without its weights."""
  return _read_object(artifact_json(folder))


def _read_object(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text())
  except FileNotFoundError:
    raise ArtifactError(f'{path}: no such file') from None
  except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
    raise ArtifactError(f'{path}: not JSON ({error})') from None
  if not isinstance(value, dict):
    raise ArtifactError(f'{path}: contains a {type(value).__name__}, expected a dict')
  return value


def write_summary(folder: pathlib.Path, summary: dict[str, Any]) -> None:
  """Writes `summary.json`, last of all: its presence means that the stage is done.

  The file also says what the stage ran on.
  """
  if hosts.is_first():
    folder.mkdir(parents=True, exist_ok=True)
    summary = {**summary, 'environment': environment.record()}
    hosts.write_atomically(
      folder / 'summary.json', json.dumps(summary, indent=2) + '\n'
    )
  hosts.barrier(f'summary {folder}')


def drop_summary(folder: pathlib.Path) -> None:
  """Removes the summary of a stage, before what it is about is replaced.

  A kill between the two would leave the numbers and settings of one run beside the
  weights of another.
  """
  if hosts.is_first():
    (folder / 'summary.json').unlink(missing_ok=True)


def read_summary(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns the summary of a stage; None where it is not done."""
  path = folder / 'summary.json'
  try:
    summary = json.loads(path.read_text()) if path.exists() else None
  except (ValueError, RecursionError, OSError) as error:
    raise ArtifactError(f'{path}: cannot be read ({error})') from None
  if summary is not None and not isinstance(summary, dict):
    raise ArtifactError(f'{path}: contains a {type(summary).__name__}, expected a dict')
  return summary
