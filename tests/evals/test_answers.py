"""Answers on disk: nothing is lost to a kill, and nothing of another run is used."""

import json

import pytest

from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import answers
from vlm_rlaif_jax.evals.answers import AnswerFile
from vlm_rlaif_jax.evals.records import Item


def item(number, prompt='What?', video='v.mp4'):
  return Item(
    key=f'k{number}', video=Video((video,)), video_name='v', prompts=(prompt,),
    reference='dog', fields={'kind': 'what'}, location=f'f row {number}',
  )  # fmt: skip


ITEMS = [item(number) for number in range(3)]


def fill(path, items=ITEMS, identity='one'):
  file = AnswerFile(path, identity, ITEMS)
  for one in items:
    file.append(one, [f'answer {one.key}'], [True])
  return file


def test_a_cut_last_line_is_dropped_and_the_rest_is_used(tmp_path):
  path = tmp_path / 'b' / 'answers_sft.jsonl'
  fill(path)
  whole = path.read_bytes()
  for cut in range(1, 60):
    path.write_bytes(whole[:-cut])
    file = AnswerFile(path, 'one', ITEMS)
    assert file.pending(ITEMS) == [2]
    file.append(ITEMS[2], ['answer k2'], [True])
    assert path.read_bytes() == whole


def test_rows_come_in_the_order_of_the_items(tmp_path):
  path = tmp_path / 'answers_sft.jsonl'
  fill(path, ITEMS[::-1])
  file = AnswerFile(path, 'one', ITEMS)
  assert [row['answers'] for row in file.in_order(ITEMS)] == [
    [f'answer k{number}'] for number in range(3)
  ]
  rows = answers.read_rows(path)
  assert [row['key'] for row in rows] == ['k2', 'k1', 'k0']
  assert rows[0]['ended'] == [True] and rows[0]['video_name'] == 'v'


def test_another_run_uses_none_and_keeps_what_was_there(tmp_path):
  path = tmp_path / 'answers_sft.jsonl'
  fill(path)
  file = AnswerFile(path, 'two', ITEMS)
  assert file.pending(ITEMS) == [0, 1, 2] and not path.exists()
  former = tmp_path / 'former_answers_sft.jsonl'
  assert len(former.read_text().splitlines()) == 3


@pytest.mark.parametrize('other', [item(1, prompt='Why?'), item(1, video='w.mp4')])
def test_an_item_that_changed_is_asked_again(tmp_path, other):
  path = tmp_path / 'answers_sft.jsonl'
  fill(path)
  items = [ITEMS[0], other, ITEMS[2]]
  file = AnswerFile(path, 'one', items)
  assert file.pending(items) == [1]
  file.append(other, ['new'], [False])
  assert AnswerFile(path, 'one', items).in_order(items)[1]['answers'] == ['new']


def test_a_damaged_row_is_one_line(tmp_path):
  path = tmp_path / 'answers_sft.jsonl'
  fill(path)
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(lines[0] + 'oops\n' + lines[2])
  with pytest.raises(DataError, match=r'answers_sft\.jsonl line 2: no row with a key'):
    AnswerFile(path, 'one', ITEMS)
  path.write_text('{"answers": []}\n')
  with pytest.raises(DataError, match=r'line 1: no row with a key \(no object with'):
    AnswerFile(path, 'one', ITEMS)


def test_the_identity_holds_every_value():
  one = answers.identity_of({'a': 1, 'b': {'c': 2}})
  assert one == answers.identity_of(json.loads('{"b": {"c": 2}, "a": 1}'))
  assert one != answers.identity_of({'a': 1, 'b': {'c': 3}})
