"""Every setting says what it means; the pages and `--print_config` are made of that."""

import dataclasses
from typing import Literal

import pytest

from vlm_rlaif_jax.settings import describe, stages


@dataclasses.dataclass(frozen=True)
class Inner:
  """The inner section, in a sentence.

  And more.
  """

  # A comment above,
  # of two lines.
  above: int = 1

  # A heading of several fields.

  beside: float = 0.5  # a comment beside
  nothing: str = 'x'


@dataclasses.dataclass(frozen=True)
class Outer(Inner):
  choice: Literal['a', 'b'] = 'a'  # one of two
  several: tuple[str, ...] = (
    'a long',
    'default',
  )  # after the value
  inner: Inner = Inner()  # the section


def test_comments_become_meanings():
  meanings = {setting.name: setting.meaning for setting in describe.settings(Outer)}
  assert meanings == {
    'above': 'A comment above, of two lines.',
    'beside': 'a comment beside',
    'nothing': '',
    'choice': 'one of two',
    'several': 'after the value',
    'inner.above': 'A comment above, of two lines.',
    'inner.beside': 'a comment beside',
    'inner.nothing': '',
  }


def test_types_are_words():
  types = {setting.name: setting.type for setting in describe.settings(Outer)}
  assert types['choice'] == 'one of a, b'
  assert types['several'] == 'list of text'
  assert types['above'] == 'int'
  assert describe.type_in_words(bool) == 'true or false'


def test_sections_have_the_comment_or_the_docstring():
  outer, inner = describe.sections(Outer)
  assert (outer.name, outer.meaning) == ('', '')
  assert (inner.name, inner.meaning) == ('inner', 'the section')
  assert describe.summary(Inner) == 'The inner section, in a sentence'


@pytest.mark.parametrize('stage', stages.every())
def test_every_setting_of_a_stage_has_a_meaning(stage):
  kind = stages.every()[stage].settings
  missing = [s.name for s in describe.settings(kind) if not s.meaning]
  assert not missing, 'add a comment to these fields in vlm_rlaif_jax/settings'
  unnamed = [s.kind.__name__ for s in describe.sections(kind) if not s.meaning]
  assert not unnamed, 'give these classes a docstring'


def test_a_printed_configuration_has_every_setting_once():
  run = stages.every()['ppo'].settings()
  lines = describe.text(run).splitlines()
  names = [line.split(' = ')[0] for line in lines if line and line[0] != '#']
  assert names == [f'config.{s.name}' for s in describe.settings(type(run))]
  assert len(names) == len(set(names))
  assert any(line.startswith('config.ppo.kl_coef = 0.1 ') for line in lines)
