import dataclasses
import json

import pytest

from vlm_rlaif_jax.data import examples, readers, tokens
from vlm_rlaif_jax.data.examples import DataError, Skipped
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.weights import bases

GOOD = {
  'id': 'a',
  'video': 'v.mp4',
  'conversations': [
    {'from': 'human', 'value': '<image>\nWhat?'},
    {'from': 'gpt', 'value': 'Red.'},
  ],
}


def test_a_row_becomes_an_example():
  example = examples.parse_example(GOOD, 'f row 0')
  assert example.turns == (('What?', 'Red.'),)
  assert example.video == Video(('v.mp4',))


@pytest.mark.parametrize('mark', ['<image>', '<video>'])
def test_either_mark_is_no_part_of_the_question(mark):
  """`<video>` is that of the README."""
  messages = [{'from': 'human', 'value': f'{mark}\nWhat happens?'}]
  row = {'video': 'v.mp4', 'conversations': messages}
  example = examples.parse_example(row, 'f row 0')
  assert example.question == 'What happens?'


def write_rows(root, rows, text=None):
  """Writes my.json and the videos that its rows name; returns the settings."""
  for row in rows:
    if isinstance(row, dict) and isinstance(row.get('video'), str):
      (root / row['video']).write_bytes(row['video'].encode())
  (root / 'my.json').write_text(text or json.dumps(rows))
  return DataConfig(root=str(root), train='my.json')


def test_the_first_samples_of_a_file(tmp_path):
  """Register B34."""
  data = write_rows(tmp_path, [{**GOOD, 'id': x} for x in 'abc'])
  data = dataclasses.replace(data, max_samples=2)
  found = readers.read(data, 'sft', Skipped(data.on_bad_sample))
  assert [example.key for example in found] == ['a', 'b']


def test_frames_and_both_names_of_the_role_key():
  """Register B30: the documentation says `role`, the code reads `from`."""
  row = {
    'uid': 7,
    'images': ['a/1.jpg', 'a/2.jpg'],
    'conversations': [
      {'role': 'human', 'value': 'What?'},
      {'role': 'gpt', 'value': ''},
    ],
  }
  example = examples.parse_example(row, 'f row 0')
  assert example.key == '7'
  assert example.video == Video(('a/1.jpg', 'a/2.jpg'))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'conversations': None}, r"row 3: missing key 'conversations'"),
    ({'conversations': 'x'}, r'row 3: conversations must be a list, got str'),
    ({'conversations': []}, r'row 3: conversations is empty'),
    (
      {'conversations': [{'from': 'robot', 'value': 'x'}]},
      r"row 3: conversations\[0\]: from must be 'human' or 'gpt', got 'robot'",
    ),
    (
      {'conversations': [{'from': ['human'], 'value': 'x'}]},
      r"row 3: conversations\[0\]: from must be .* got \['human'\]",
    ),
    ({'conversations': [{'value': 'x'}]}, r"conversations\[0\]: missing key 'from'"),
    (
      {'conversations': [{'from': 'human'}]},
      r"conversations\[0\]: missing key 'value'",
    ),
    (
      {'conversations': [{'from': 'gpt', 'value': 'x'}]},
      r'must take turns, human first',
    ),
    ({'clip': [4, 2]}, r'clip must be \[first, stop\] frames, got \[4, 2\]'),
    ({'video': None, 'images': 3}, r'images must be a list of paths, got 3'),
  ],
)
def test_bad_rows_are_named(change, message):
  with pytest.raises(DataError, match=message):
    examples.parse_example({**GOOD, **change}, 'f.json row 3')


def test_pairs():
  row = {
    **GOOD,
    'output_1': {'value': 'a'},
    'output_2': {'value': 'b'},
    'preference': 2,
  }
  assert examples.parse_pair(row, 'f').preferred == 1
  with pytest.raises(DataError, match='preference must be 1 or 2, got 0'):
    examples.parse_pair({**row, 'preference': 0}, 'f')
  with pytest.raises(DataError, match='narrative must be a str, got list'):
    examples.parse_pair({**row, 'narrative': []}, 'f')
  with pytest.raises(DataError, match="missing key 'output_2'"):
    examples.parse_pair({k: v for k, v in row.items() if k != 'output_2'}, 'f')


def test_files_that_are_not_lists_of_objects(tmp_path):
  path = tmp_path / 'x.json'
  path.write_text('{"a": ')
  with pytest.raises(DataError, match=r'x\.json: not JSON'):
    examples.read_rows(path)
  path.write_text('{"a": 1}')
  with pytest.raises(DataError, match='must be a list of objects'):
    examples.read_rows(path)
  with pytest.raises(DataError, match='no such file'):
    examples.read_rows(tmp_path / 'y.json')


def test_a_row_that_is_no_object_is_a_bad_sample(tmp_path):
  data = write_rows(tmp_path, [GOOD, 7])
  with pytest.raises(DataError, match=r'my\.json row 1: must be an object, got int'):
    readers.read(data, 'short', Skipped('stop'))
  skipped = Skipped('skip')
  assert len(readers.read(data, 'short', skipped)) == 1
  assert 'row 1' in skipped.reasons[0]


def test_a_broken_line_is_named_by_its_number(tmp_path):
  path = tmp_path / 'my.jsonl'
  write_rows(tmp_path, [GOOD])
  odd = {**GOOD, 'id': 'b\u2028c'}  # a line end to str.splitlines, not to JSON
  good = json.dumps(odd, ensure_ascii=False)
  path.write_text(f'{good}\n\n{{"id": \n', encoding='utf-8')
  data = DataConfig(root=str(tmp_path), train='my.jsonl')
  with pytest.raises(DataError, match=r'my\.jsonl line 3: not JSON'):
    readers.read(data, 'short', Skipped('stop'))
  assert [e.key for e in readers.read(data, 'short', Skipped('skip'))] == ['b\u2028c']


def test_a_clip_is_within_the_sampled_frames(tmp_path):
  rows = [{**GOOD, 'clip': [0, 12]}, {**GOOD, 'clip': [0, 50]}]
  data = dataclasses.replace(write_rows(tmp_path, rows), frames=12)
  expected = r'my\.json row 1: clip must be within \[0, 12\].*got \[0, 50\]'
  with pytest.raises(DataError, match=expected):
    readers.read(data, 'short', Skipped('stop'))
  skipped = Skipped('skip')
  assert len(readers.read(data, 'short', skipped)) == len(skipped.reasons) == 1


def test_file_and_row_are_said_of_whatever_is_wrong(tmp_path):
  tokenizer = tokens.load_tokenizer(bases.TINY)
  turn = {'from': 'gpt', 'value': 'Red ASSISTANT: red.'}  # looks like another question
  odd = [GOOD['conversations'][0], turn]
  long = [{'from': 'human', 'value': 'Red? ' * 300}, GOOD['conversations'][1]]
  rows = [GOOD, {**GOOD, 'conversations': odd}, {**GOOD, 'conversations': long}]
  data = dataclasses.replace(write_rows(tmp_path, rows), buckets=(256,))
  skipped = Skipped('skip')
  items = readers.read(data, 'short', skipped)
  assert len(readers.tokenize_examples(items, tokenizer, data, skipped)) == 1
  assert not readers.drop_unreadable(items, {items[0].video: 'broken'}, skipped)
  named = [reason.split(': ')[0].split('my.json ')[1] for reason in skipped.reasons]
  assert named == ['row 1', 'row 2', 'row 0', 'row 1', 'row 2']


def test_repeated_ids_are_refused_where_something_is_joined_by_them():
  named = [('a', 'f row 0'), ('b', 'f row 1'), ('a', 'f row 2')]
  with pytest.raises(DataError, match="f row 2: id 'a' is also that of f row 0"):
    examples.check_distinct('id', named)
  items = [examples.parse_example(GOOD, where) for where in ('f row 0', 'f row 1')]
  readers.check_joined(items, None)
  readers.check_joined(items, {'b'})
  with pytest.raises(DataError, match='f row 1'):
    readers.check_joined(items, {'a'})


def test_bad_samples_stop_or_are_counted(tmp_path):
  path = tmp_path / 'x.json'
  path.write_text(json.dumps([GOOD, {'id': 'b'}, {**GOOD, 'id': 'c'}]))
  stop, skip = Skipped('stop'), Skipped('skip')
  with pytest.raises(DataError, match=r'row 1.*on_bad_sample=skip'):
    [stop.attempt(parse) for _, parse in examples.examples(path)]
  read = [skip.attempt(parse) for _, parse in examples.examples(path)]
  assert [e.key if e else None for e in read] == ['a', None, 'c']
  assert len(skip.reasons) == 1 and 'row 1' in skip.reasons[0]
