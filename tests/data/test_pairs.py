"""Pairs as token sequences: which say something, and where an answer ends."""

import json
import re

import numpy as np
import pytest

from vlm_rlaif_jax.data import examples, pairs, tokens
from vlm_rlaif_jax.data.examples import DataError, Example, Pair, Skipped
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.weights import bases

TOKENIZER = tokens.load_tokenizer(bases.TINY)
PROMPT, DATA = RewardPrompt(prompt='tiny_reward'), DataConfig(buckets=(256,))


def pair(*answers: str, stopped=(True, True)) -> Pair:
  return Pair(Example('7', None, (('What?', ''),), {}, 'f row 7'), answers, 0, stopped)


def test_a_cut_answer_has_an_end_only_if_the_settings_write_one():
  cut = pair('The red ring moves', 'Blue.', stopped=(False, True))
  closed = pairs.encode_pair(cut, TOKENIZER, PROMPT, DATA, 'close')
  left_open = pairs.encode_pair(cut, TOKENIZER, PROMPT, DATA, 'open')
  end = len(pairs.prompt_ids(TOKENIZER, PROMPT))
  ids = closed.ids[0].tolist()
  assert ids[-end - 1] == TOKENIZER.eos
  assert left_open.ids[0].tolist() == ids[: -end - 1] + ids[-end:]
  assert TOKENIZER.eos not in left_open.ids[0]
  np.testing.assert_array_equal(left_open.ids[1], closed.ids[1])


def encode(*items: Pair, cut_answers='open') -> tuple[list, list[str]]:
  skipped = Skipped('stop')
  samples = pairs.encode_pairs(
    items, TOKENIZER, PROMPT, DATA, skipped, False, cut_answers
  )
  return [sample.pair for sample in samples], skipped.reasons


def test_pairs_with_a_cut_answer_can_be_dropped():
  cut, whole = pair('Red', 'Blue.', stopped=(False, True)), pair('Red.', 'Blue.')
  assert encode(cut, whole)[0] == [cut, whole]
  kept, reasons = encode(cut, whole, cut_answers='drop')
  assert kept == [whole]
  assert reasons == ['f row 7: an answer is cut (reward.cut_answers=drop)']


def test_identical_answers_are_left_out_and_said():
  same, other = pair('Red.', 'Red.'), pair('Red.', 'Blue.')
  assert encode(same, other) == ([other], ['f row 7: two identical answers'])
  cut = pair('Red.', 'Red.', stopped=(True, False))  # only one of them ends
  assert encode(cut)[0] == [cut]
  assert encode(cut, cut_answers='close')[0] == []


ROW = {
  'id': 'a',
  'conversations': [{'from': 'human', 'value': 'What?'}],
  'output_1': {'value': 'Red.'},
  'output_2': {'value': 'Blue.'},
  'preference': 1,
}


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'output_1': {'value': ''}}, 'output_1: the answer is blank; if a model gave it'),
    ({'output_2': {'value': ' \n'}}, 'output_2: the answer is blank'),
    ({'output_1': {'value': None}}, "output_1: missing key 'value'"),
    (
      {'output_1': {'value': 'x', 'stopped': 1}},
      'stopped must be true or false',
    ),
    ({'output_1': {'value': 'A <video>'}}, 'output_1: the video mark <video>'),
    ({'output_1': {'value': 'A\ud83d'}}, 'output_1: character 1 is a lone surrogate'),
    ({'output_1': {'value': 'A</s>'}}, 'output_1: </s> in a text'),
    ({'output_2': {'value': 'A<|im_end|>'}}, 'output_2: <|im_end|> is a token of a'),
    ({'output_1': {'value': 'The <unk>'}}, 'output_1: <unk> is a token of a'),
    ({'preference': '1'}, 'preference must be a int, got str'),
    ({'preference': None}, "missing key 'preference'"),
    ({'preference': 1.5}, 'preference must be a int, got float'),
    ({'preference': True}, 'preference must be a int, got bool'),
    ({'narrative': '\ud83d'}, 'narrative: character 0'),
  ],
)
def test_pairs_that_teach_something_else_are_refused(change, message):
  with pytest.raises(DataError, match=re.escape(message)):
    examples.parse_pair({**ROW, **change}, 'f row 3')


def test_what_tables_make_of_pairs_is_read():
  nulls = {'preference': 2.0, 'narrative': None, 'margin': None, 'video': None}
  read = examples.parse_pair(json.loads(json.dumps({**ROW, **nulls})), 'f')
  assert read.preferred == 1 and read.example.video is None
  ended = {'output_1': {'value': '', 'stopped': True, 'from': None}}
  assert examples.parse_pair({**ROW, **ended}, 'f').answers == ('', 'Blue.')
  model = {'output_1': {'value': 'A <|im_end|>', 'stopped': True}}  # token by token
  assert examples.parse_pair({**ROW, **model}, 'f').answers[0] == 'A <|im_end|>'


def test_a_narrative_of_a_table_that_is_not_there_is_none():
  """Written as NaN, by Python's json as by pandas."""
  row = json.loads(json.dumps({**ROW, 'narrative': float('nan')}))
  read = examples.parse_pair(row, 'f row 3')
  sample = pairs.encode_pair(read, TOKENIZER, PROMPT, DATA)
  plain = pairs.encode_pair(examples.parse_pair(ROW, 'f'), TOKENIZER, PROMPT, DATA)
  np.testing.assert_array_equal(sample.ids[0], plain.ids[0])
  captions = RewardPrompt(prompt='tiny_reward', placeholder='captions')
  with pytest.raises(ValueError, match='no narrative, which'):
    pairs.encode_pair(read, TOKENIZER, captions, DATA)


def test_only_pairs_that_are_too_long_are_dropped_as_such():
  """One that lacks a narrative is an error, whatever happens to long ones."""
  settings = RewardPrompt(prompt='tiny_reward', placeholder='captions')
  with pytest.raises(DataError, match='f row 7: no narrative, which'):
    pairs.encode_pairs(
      [pair('Red.', 'Blue.')], TOKENIZER, settings, DATA, Skipped('stop'), True
    )
  skipped = Skipped('stop')
  long = pair('Red. ' * 200, 'Blue.')
  assert pairs.encode_pairs([long], TOKENIZER, PROMPT, DATA, skipped, True) == []
  assert 'tokens do not fit the longest bucket 256' in skipped.reasons[0]


@pytest.mark.parametrize(
  ('preferences', 'refused'),
  [([1, 0, 1], True), ([0.0, 1.0], True), ([1, 0, 2], False), ([1, 1], False)],
)
def test_a_file_that_counts_answers_from_0_is_refused(tmp_path, preferences, refused):
  """Its rows of 0 would be skipped; where there is a 2, a 0 may be a tie."""
  path = tmp_path / 'pairs.json'
  path.write_text(json.dumps([{**ROW, 'preference': one} for one in preferences]))
  if refused:
    where = f'row {preferences.index(0)}: preference is 0 here, 1 in others'
    with pytest.raises(DataError, match=where):
      list(examples.pairs(path))
    return
  assert len(list(examples.pairs(path))) == len(preferences)
