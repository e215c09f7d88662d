"""Answers on disk: nothing is lost to a kill, and nothing of another run is used."""

import dataclasses
import json

import pytest

from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import answers
from vlm_rlaif_jax.evals.answers import AnswerFile
from vlm_rlaif_jax.evals.judges import files
from vlm_rlaif_jax.evals.records import Item


def item(number, prompt='What?', video='v.mp4'):
  return Item(
    key=f'k{number}', video=Video((video,)), video_name='v', prompts=(prompt,),
    reference='dog', fields={'kind': 'what'}, location=f'f row {number}',
  )  # fmt: skip


ITEMS = [item(number) for number in range(3)]


def fill(path, items=ITEMS, identity='one', **options):
  file = AnswerFile(path, identity, ITEMS, **options)
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


def test_an_item_that_changed_has_one_row_for_who_judges_again(tmp_path):
  path = tmp_path / 'answers_sft.jsonl'
  fill(path)
  items = [ITEMS[0], item(1, prompt='Why?'), ITEMS[2]]
  AnswerFile(path, 'one', items).append(items[1], ['new'], [True])
  answered = {row['key']: row['answers'] for row in files.read_answers(path)}
  assert answered == {'k0': ['answer k0'], 'k1': ['new'], 'k2': ['answer k2']}


def test_an_answer_stands_with_the_reference_that_the_file_has_now(tmp_path):
  """It does not depend on it; but whoever judges the file again reads it there."""
  path = tmp_path / 'answers_sft.jsonl'
  fill(path)
  fields = {'kind': 'what', 'options': ('a cat', 'a dog')}  # a list, once in a file
  right = dataclasses.replace(ITEMS[1], reference='cat', fields=fields, location='g 1')
  items = [ITEMS[0], right, ITEMS[2]]
  file = AnswerFile(path, 'one', items)
  assert file.pending(items) == []
  assert [row['reference'] for row in file.in_order(items)] == ['dog', 'cat', 'dog']
  stored = files.read_answers(path)
  assert [row['reference'] for row in stored] == ['dog', 'cat', 'dog']
  assert stored[1]['answers'] == ['answer k1'] and stored[1]['location'] == 'g 1'
  before = path.stat()
  AnswerFile(path, 'one', items)
  assert path.stat().st_ino == before.st_ino, 'nothing to write'
  assert not path.with_name('former_answers_sft.jsonl').exists()


def test_what_a_replaced_video_shows_is_asked_again(tmp_path):
  """By the contents of its files, which the rows of earlier versions do not have."""
  path = tmp_path / 'answers_sft.jsonl'
  items = [item(number, video=f'{number}.mp4') for number in range(3)]

  def opened_with(a, b, c):
    contents = {'0.mp4': a, '1.mp4': b, '2.mp4': c}
    return AnswerFile(path, 'one', items, lambda video: contents[video.paths[0]])

  file = opened_with('a', 'b', 'c')
  for one in items:
    file.append(one, ['old'], [True])
  assert opened_with('a', 'b', 'c').pending(items) == []
  file = opened_with('a', 'x', 'c')
  assert file.pending(items) == [1]
  file.append(items[1], ['new'], [True])
  assert [row['answers'] for row in file.in_order(items)] == [['old'], ['new'], ['old']]
  assert opened_with('a', 'b', 'c').pending(items) == []  # back as it was
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  for row in rows:
    del row['contents']
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  assert opened_with('d', 'e', 'f').pending(items) == []


def test_answers_of_another_split_wait_beside_and_are_not_judged(tmp_path):
  """A file holds what its run asks; settings chosen on one split do not leak into the
  numbers of the other."""
  path = tmp_path / 'answers_sft.jsonl'
  dev, test = ITEMS[:1], ITEMS[1:]
  file = AnswerFile(path, 'one', dev)
  file.append(dev[0], ['of dev'], [True])
  file = AnswerFile(path, 'one', test)
  for one in test:
    file.append(one, ['of test'], [True])
  keys = [row['key'] for row in files.read_answers(path)]
  assert keys == ['k1', 'k2']
  former = path.with_name('former_answers_sft.jsonl')
  assert [row['key'] for row in answers.read_rows(former)] == ['k0']
  assert AnswerFile(path, 'one', dev).pending(dev) == []  # nothing is asked twice
  assert [row['key'] for row in files.read_answers(path)] == ['k0']
  assert AnswerFile(path, 'one', ITEMS).pending(ITEMS) == []
  assert not former.exists()


def test_a_restart_drops_answers_though_nothing_changed(tmp_path):
  path = tmp_path / 'answers_sft.jsonl'
  fill(path)
  AnswerFile(path, 'two', ITEMS).append(ITEMS[0], ['other'], [True])
  file = AnswerFile(path, 'two', ITEMS, reuses=False)
  assert file.pending(ITEMS) == [0, 1, 2]
  assert AnswerFile(path, 'two', ITEMS).pending(ITEMS) == [0, 1, 2]
  assert AnswerFile(path, 'one', ITEMS).pending(ITEMS) == []  # of other settings


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
