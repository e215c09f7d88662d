"""docs/departures.md says what the code does: its rows, fields and tests exist."""

import pathlib
import re

import pytest

from vlm_rlaif_jax.data import examples, pairs, tokens
from vlm_rlaif_jax.data.examples import Example, Pair, Skipped
from vlm_rlaif_jax.settings import describe, stages
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.weights import bases

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'departures.md').read_text()
ROWS = re.findall(r'^\| (B\d\d) \|.*\|.*\|(.*)\|$', PAGE, re.MULTILINE)


def test_every_row_of_the_register_is_there_once():
  assert [name for name, _ in ROWS] == [f'B{number:02}' for number in range(1, 45)]


def test_every_test_that_is_named_exists():
  source = '\n'.join(path.read_text() for path in (ROOT / 'tests').rglob('test_*.py'))
  for row, named in ROWS:
    for name in re.findall(r'`([^`]+)`', named):
      if name.endswith('.py'):
        assert (ROOT / name).is_file(), (row, name)
      else:
        assert f'def {name}(' in source, (row, name)


def test_every_field_that_is_named_exists():
  known = {
    setting.name
    for spec in stages.every().values()
    for setting in describe.settings(spec.settings)
  }
  named = set(re.findall(r'`([a-z]+\.[a-z_]+)`', PAGE)) - {'configs.py'}
  assert len(named) > 20
  assert named <= known, named - known


def test_too_long_pairs_are_dropped_or_are_bad_samples():
  """Register B39."""
  tokenizer = tokens.load_tokenizer(bases.TINY)
  example = Example('7', None, (('What?', ''),), {}, 'f row 7')
  long = Pair(example, ('Red. ' * 200, 'Blue.'), 0)
  short = Pair(example, ('Red.', 'Blue.'), 0)
  prompt, data = RewardPrompt(prompt='tiny_reward'), DataConfig(buckets=(256,))

  def encode(policy: str, drop: bool):
    skipped = Skipped(policy)
    kept = pairs.encode_pairs([long, short], tokenizer, prompt, data, skipped, drop)
    return kept, skipped.reasons

  for policy, drop in (('stop', True), ('skip', False)):
    kept, reasons = encode(policy, drop)
    assert [sample.pair for sample in kept] == [short]
    assert len(reasons) == 1 and 'f row 7: ' in reasons[0]
  with pytest.raises(examples.DataError, match='f row 7: '):
    encode('stop', False)
