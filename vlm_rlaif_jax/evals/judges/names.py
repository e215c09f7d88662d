"""What a judge is called in the names of files.

That is its name; but two judges can have one name: the same model behind another
address, at another temperature, or with another prompt. The first that leaves verdicts
in a folder has the name, and others have a hash of what they are behind it.
`<run>/eval/judges.jsonl` says which is which.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from vlm_rlaif_jax.evals.judges.cache import locked

REGISTRY = 'judges.jsonl'
# What a judge is. The version is of the weights for a model of the run; an endpoint
# reports it after it was asked, and it is in the verdicts that it gave.
_FIELDS = (
  *('name', 'kind', 'prompt', 'base_url', 'temperature', 'reply_tokens'),
  *('by', 'rounding', 'answer_words'),
  *('quant', 'dtype', 'frames', 'aspect', 'buckets'),
)


def safe_name(name: str) -> str:
  """Returns a name that a file can have: 'org/model:7b' -> 'org-model-7b'."""
  return re.sub(r'[^A-Za-z0-9.-]+', '-', name).strip('-.') or 'judge'


def identity_of(judge: Mapping[str, Any]) -> dict[str, str]:
  """Returns what decides whether two judges are one.

  Args:
    judge: its identity, as a summary has it.
  """
  names = (*_FIELDS, 'version') if judge.get('kind') == 'model' else _FIELDS
  return {name: str(judge[name]) for name in names if judge.get(name)}


def file_name(folder: pathlib.Path, judge: Mapping[str, Any]) -> str:
  """Returns what a judge is called in the files of a folder, and keeps it.

  Args:
    folder: of the evaluation.
    judge: its identity.
  """
  plain, own = safe_name(judge['name']), identity_of(judge)
  text = json.dumps(own, sort_keys=True)
  distinct = f'{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}'
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / REGISTRY).open('a+b') as file, locked(file):
    file.seek(0)
    lines = file.read()
    registered = _parsed(lines)
    if plain not in registered:
      registered |= _recorded(folder, plain)
    name = plain if _is_same(registered.get(plain, own), own) else distinct
    if name not in _parsed(lines):
      cut = b'' if lines.endswith(b'\n') or not lines else b'\n'
      row = json.dumps({'file': name, **own}).encode()
      file.write(cut + row + b'\n')
  return name


def read(folder: pathlib.Path) -> dict[str, dict[str, str]]:
  """Returns the identities of judges by what they are called in files."""
  path = folder / REGISTRY
  return _parsed(path.read_bytes()) if path.is_file() else {}


def _parsed(lines: bytes) -> dict[str, dict[str, str]]:
  """Returns the rows of a registry; a line that a kill cut short is left out."""
  result: dict[str, dict[str, str]] = {}
  for line in lines.splitlines():
    try:
      row = json.loads(line)
      name = row.pop('file')
    except (ValueError, KeyError, AttributeError, TypeError):
      continue
    if isinstance(name, str):
      result.setdefault(name, row)
  return result


def _is_same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
  """Returns whether two identities agree in all that both record."""
  return all(one[name] == other[name] for name in one.keys() & other.keys())


def _recorded(folder: pathlib.Path, plain: str) -> dict[str, dict[str, str]]:
  """Returns who has a name in a folder of before there was a registry.

  Nobody has, where there are no verdicts or no summary says whose they are.
  """
  if not list(folder.glob(f'*/verdicts_*_{plain}.jsonl')):
    return {}
  for path in (folder / f'summary_{plain}.json', folder / 'summary.json'):
    try:
      summary = json.loads(path.read_text(encoding='utf-8'))
      judges = [entry.get('judge') for entry in summary['benchmarks'].values()]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
      continue
    for judge in judges:
      is_dict = isinstance(judge, dict)
      if is_dict and safe_name(str(judge.get('name'))) == plain:
        return {plain: identity_of(judge)}
  return {}
