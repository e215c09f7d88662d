"""Says which run this is, and journals the rows of a long inference run.

The identity of a run is what decides its result: settings, the contents of what it
reads (weights, tokenizer, artifacts, data files) and the texts of its prompts. Work of
another identity is refused, finished or not.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import prompts, readers, tokenizer_files, video_keys
from vlm_rlaif_jax.settings import build, stages
from vlm_rlaif_jax.settings.build import UserError, flatten
from vlm_rlaif_jax.settings.stage import Run
from vlm_rlaif_jax.train import console
from vlm_rlaif_jax.weights import artifacts, bases

# What decides how a run goes, or whether it may start, and not what it computes.
IGNORED = (
  'log.', 'checkpoint.', 'mesh.', 'profile.', 'data.workers', 'ppo.sample_', 'gate.',
)  # fmt: skip
DATA = 'contents of the data files'  # in an identity; of the built-in world, none
VIDEOS = 'contents of the videos'  # likewise, whichever video has which
NAMED_VIDEOS = 'contents of the videos by name'  # likewise; with it VIDEOS says nothing
TRUTH = 'contents of truth.json'  # likewise, where it decides what is learned
DEVICES = 'devices that share a batch'  # likewise, where statistics are of one each
GROWN_FROM = 'grown_from'  # weights of a base, of a network that is grown from it
ENDS = 'ids that end an answer'  # in an identity, where a file of the base has them


class ResumeError(UserError):
  """Unfinished work of another run; the message names the fields that differ."""


def identity(settings: Run, fingerprint: str, **more: Any) -> dict:
  """Returns what has to be equal to resume, as JSON holds it.

  Args:
    fingerprint: of the weights below what is trained.
    more: by name, what else decides the result, as fingerprints of artifacts.
  """
  compared = {
    name: value
    for name, value in flatten(settings).items()
    if not name.startswith(IGNORED)
  }
  texts = {
    f'text of {name}': _digest(prompts.load(compared.pop(name)))
    for name in [name for name in compared if name.endswith('prompt')]
  }
  files = _data_files(settings)
  data = {DATA: hosts.files_fingerprint(files)} if files else {}
  return json.loads(
    json.dumps(
      {
        'weights': fingerprint,
        'tokenizer': tokenizer_files.fingerprint(bases.base_folder(settings.base)),
        **_ends(settings.base),
        **data,
        **more,
        **compared,
        **texts,
      }
    )
  )


def videos(
  settings: Run,
  contents: Mapping[tuple[str, ...], str],
  used: Iterable[tuple[str, ...]] | None = None,
) -> dict[str, str]:
  """Returns what an identity says of the videos; of the built-in world, nothing.

  Args:
    contents: of `VisualFeatures`, when all videos have been encoded.
    used: paths of the videos that decide the result; None: all of `contents`.
  """
  if not settings.data.root:
    return {}
  names = contents if used is None else used
  return {
    VIDEOS: video_keys.together(contents.values()),
    NAMED_VIDEOS: video_keys.by_name({paths: contents[paths] for paths in names}),
  }


def _digest(text: str) -> str:
  """Returns the beginning of the SHA-256 of a text."""
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _ends(base: str) -> dict[str, list[int]]:
  """Returns the ids that end an answer, if a file of a base names any."""
  _, ids = tokenizer_files.named_ends(bases.base_folder(base))
  return {ENDS: ids} if ids else {}


def _data_files(settings: Run) -> list[pathlib.Path]:
  """Returns the data files that a stage reads; none for the built-in world."""
  data = settings.data
  if not data.root:
    return []
  truth = dataclasses.replace(data, train='')  # a file of its own, always
  names = stages.of(settings).data_files(settings)
  files = [readers.locate(truth if name == 'truth' else data, name) for name in names]
  return list(dict.fromkeys(files))


def changes(old: dict, new: dict) -> list[str]:
  """Returns the fields that differ, each as `name: old -> new`.

  A setting that came after the old run was written is the same at its default.
  """
  old = {name: value for name, value in old.items() if not name.startswith(IGNORED)}
  # What is later than what was written: settings at the value that changes nothing
  defaults = _defaults()
  optional = (DATA, VIDEOS, NAMED_VIDEOS, TRUTH, DEVICES, GROWN_FROM, ENDS)
  later = {
    name
    for name in new.keys() - old.keys()
    if name in optional or new[name] in defaults.get(name, [])
  }
  if NAMED_VIDEOS in old and NAMED_VIDEOS in new:
    later.add(VIDEOS)
  return build.changes(
    *({k: v for k, v in one.items() if k not in later} for one in (old, new))
  )


def _defaults() -> dict[str, list[Any]]:
  """Returns the defaults of every setting, of all stages, as JSON holds them."""
  values: dict[str, list[Any]] = {}
  for spec in stages.every().values():
    for name, value in json.loads(json.dumps(flatten(spec.settings()))).items():
      values.setdefault(name, []).append(value)
  return values


def refusal(path: pathlib.Path, differing: list[str]) -> ResumeError:
  """Returns the error about unfinished work of another run."""
  return ResumeError(
    f'{path} was made with other settings: {"; ".join(differing)}. Use the same, '
    'or --config.checkpoint.on_change=restart to start anew'
  )


def forget(folder: pathlib.Path, work: str, differing: list[str]) -> None:
  """Says that a stage starts anew; its summary, if it was done, is no longer true.

  Args:
    work: what is dropped.
    differing: fields that changed; a restart needs none.
  """
  why = f', which differs in {"; ".join(differing)}' if differing else ''
  console.say(f'  {work} is dropped{why}: the stage starts anew (on_change=restart)')
  artifacts.drop_summary(folder)


def _object(line: str) -> dict | None:
  """Returns a line as a JSON object; None if it is none."""
  try:
    value = json.loads(line)
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None


class Journal:
  """JSON lines, appended in chunks; a line that a kill cut short is dropped.

  The first line is the identity of the run. Another run is refused, or starts again if
  the settings say so. Every host reads the file, the first one writes.
  """

  def __init__(self, path: pathlib.Path, identity: dict, on_change: str):
    self.path = path
    lines = self._lines(on_change != 'restart') if path.exists() else []
    saved = lines[0].get('identity') if lines else {}
    saved = saved if isinstance(saved, dict) else {}
    differing = changes(saved, identity) if lines else []
    if differing and on_change == 'stop':
      raise refusal(path, differing)
    if lines and on_change == 'restart':
      forget(path.parent, f'{path} ({len(lines) - 1} rows)', differing)
      lines = []
    if differing and on_change == 'ignore':
      console.say(f'  {path} is continued although {"; ".join(differing)}')
    hosts.barrier(f'read {path}')
    self._write([{'identity': identity}, *lines[1:]])
    # Storage may show other hosts an older file for a while.
    self._count = hosts.gather(max(len(lines) - 1, 0))[0]

  def __len__(self) -> int:
    return self._count

  def rows(self) -> list[dict]:
    """Returns all rows."""
    hosts.barrier(f'written {self.path}')
    return self._lines()[1:]

  def truncate(self, count: int) -> None:
    """Keeps the first `count` rows."""
    if count < self._count:
      lines = self._lines()
      hosts.barrier(f'truncate {self.path}')
      self._write(lines[: count + 1])
      self._count = count

  def extend(self, rows: list[dict]) -> None:
    """Appends rows and waits until they are on disk."""
    if hosts.is_first():
      with self.path.open('a', encoding='utf-8') as file:
        file.write(''.join(json.dumps(row) + '\n' for row in rows))
        file.flush()
        os.fsync(file.fileno())
    self._count += len(rows)

  def _lines(self, checks: bool = True) -> list[dict]:
    """Returns the identity and the rows, but for a last one that is not whole.

    Raises:
      ResumeError: another line is damaged, and the rows behind it would be lost. Not
        raised unless `checks`.
    """
    text = self.path.read_text(encoding='utf-8', errors='replace')
    lines = [_object(line) for line in text.split('\n')]
    damaged = lines.index(None) if None in lines else len(lines)
    lost = sum(line is not None for line in lines[damaged:])
    if checks and lost:
      raise ResumeError(
        f'{self.path}: line {damaged + 1} is damaged, expected a JSON object, and '
        f'{lost} rows are behind it; remove that line, or all from there on, or '
        '--config.checkpoint.on_change=restart to start anew'
      )
    return [line for line in lines[:damaged] if line is not None]

  def _write(self, lines: list[dict]) -> None:
    hosts.write_atomically(
      self.path, ''.join(json.dumps(line) + '\n' for line in lines)
    )
    hosts.barrier(f'wrote {self.path}')
