"""Describes settings: every field with its type, default and meaning.

The meaning of a field is the comment on its own line, or the comment directly above it:

    kl_coef: float = 0.1  # weight of the KL penalty

The documentation's page of settings and `launch.train --print_config` are written from
these. Nothing here loads JAX.
"""

import ast
import dataclasses
import functools
import inspect
import io
import tokenize
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class Setting:
  """One field.

  Attributes:
    name: as after `--config.`, for instance `ppo.kl_coef`.
    type: in words: `float`, `true or false`, `one of eos, question_last`.
    default: of the dataclass; the files in `configs/` set others for each size.
    meaning: its comment; '' where it has none.
  """

  name: str
  type: str
  default: Any
  meaning: str


@dataclasses.dataclass(frozen=True)
class Section:
  """The fields of one dataclass that have no fields of their own.

  Attributes:
    name: dotted; '' for the settings of the stage itself.
    kind: the dataclass.
    meaning: the comment on the section, else the summary of its docstring.
    settings: its fields in the order of the source.
  """

  name: str
  kind: type
  meaning: str
  settings: tuple[Setting, ...]


def sections(kind: type, name: str = '', meaning: str = '') -> Iterator[Section]:
  """Yields a settings class and, after it, each section inside, in source order."""
  hints, meanings = typing.get_type_hints(kind), _inherited_comments(kind)
  settings, inner = [], []
  for field in dataclasses.fields(kind):
    dotted = f'{name}.{field.name}' if name else field.name
    hint, comment = hints[field.name], meanings.get(field.name, '')
    if dataclasses.is_dataclass(hint):
      inner.append((typing.cast(type, hint), dotted, comment))
    else:
      settings.append(Setting(dotted, type_in_words(hint), field.default, comment))
  yield Section(name, kind, meaning or summary(kind), tuple(settings))
  for section in inner:
    yield from sections(*section)


def settings(kind: type) -> list[Setting]:
  """Returns every field of a settings class, those of its sections included."""
  return [setting for section in sections(kind) for setting in section.settings]


def text(run: Any) -> str:
  """Returns all settings of a run with values and meanings, a line each."""
  rows = []
  for section in sections(type(run)):
    heading = f'config.{section.name}' if section.name else f'config: stage {run.stage}'
    rows.append(f'\n# {heading}: {section.meaning}')
    for setting in section.settings:
      value = functools.reduce(getattr, setting.name.split('.'), run)
      assigned = f'config.{setting.name} = {value!r}'
      rows.append(f'{assigned:<48}  # {setting.meaning} ({setting.type})')
  return '\n'.join(rows).lstrip() + '\n'


def summary(kind: type) -> str:
  """Returns the first sentence of a class's own docstring; '' where it has none."""
  own = vars(kind).get('__doc__') or ''
  if own.startswith(f'{kind.__name__}('):  # the signature that dataclasses put there
    return ''
  return inspect.cleandoc(own).partition('\n\n')[0].replace('\n', ' ').removesuffix('.')


def type_in_words(hint: Any) -> str:
  """Returns what a command line may give for an annotation."""
  origin, inner = typing.get_origin(hint), typing.get_args(hint)
  if origin is Literal:
    return f'one of {", ".join(map(str, inner))}'
  if origin is tuple:
    return f'list of {type_in_words(inner[0])}'
  if origin in (typing.Union, types.UnionType):
    return ' or '.join(type_in_words(option) for option in inner)
  if hint is type(None):
    return 'None'
  return {bool: 'true or false', str: 'text'}.get(hint) or hint.__name__


def _inherited_comments(kind: type) -> dict[str, str]:
  """Returns the comments of a class's fields, those of its parents included."""
  comments = {}
  for parent in reversed(kind.__mro__):
    if dataclasses.is_dataclass(parent):
      own = _comments(parent)
      comments |= {name: comment for name, comment in own.items() if comment}
  return comments


@functools.cache
def _comments(kind: type) -> dict[str, str]:
  """Returns the comments of the fields that a class itself declares."""
  source = inspect.cleandoc(f'\n{inspect.getsource(kind)}')
  lines: dict[int, tuple[str, bool]] = {}  # number -> comment, whether it stands alone
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    if token.type == tokenize.COMMENT:
      alone = not token.line[: token.start[1]].strip()
      lines[token.start[0]] = token.string.lstrip('#').strip(), alone
  comments = {}
  for node in typing.cast(ast.ClassDef, ast.parse(source).body[0]).body:
    if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
      continue
    last = typing.cast(int, node.end_lineno)
    same_line = [
      lines[n][0]
      for n in range(node.lineno, last + 1)
      if n in lines and not lines[n][0].startswith(('type:', 'fmt:'))
    ]
    above, number = [], node.lineno - 1
    while not same_line and number in lines and lines[number][1]:
      above.insert(0, lines[number][0])
      number -= 1
    comments[node.target.id] = ' '.join(above + same_line)
  return comments
