import json

import pytest

from vlm_rlaif_jax.config.sections import Data
from vlm_rlaif_jax.data import examples, sources
from vlm_rlaif_jax.data.examples import DataError, Skipped
from vlm_rlaif_jax.data.video import Video

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


def test_the_first_samples_of_a_file(tmp_path):
  """Register B34."""
  (tmp_path / 'my.json').write_text(json.dumps([{**GOOD, 'id': x} for x in 'abc']))
  data = Data(root=str(tmp_path), train='my.json', max_samples=2)
  found = sources.read(data, 'sft', Skipped(data.on_bad_sample))
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
    ({'conversations': None}, r'row 3: conversations must be a list, got NoneType'),
    ({'conversations': []}, r'row 3: conversations is empty'),
    (
      {'conversations': [{'from': 'robot', 'value': 'x'}]},
      r"row 3: conversations\[0\]: from must be 'human' or 'gpt', got 'robot'",
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
    ({'video': None, 'images': 3}, r'video must be a str, got NoneType'),
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


def test_bad_samples_stop_or_are_counted(tmp_path):
  path = tmp_path / 'x.json'
  path.write_text(json.dumps([GOOD, {'id': 'b'}, {**GOOD, 'id': 'c'}]))
  stop, skip = Skipped('stop'), Skipped('skip')
  with pytest.raises(DataError, match=r'row 1.*on_bad_sample=skip'):
    [stop.attempt(parse) for _, parse in examples.examples(path)]
  read = [skip.attempt(parse) for _, parse in examples.examples(path)]
  assert [e.key if e else None for e in read] == ['a', None, 'c']
  assert len(skip.reasons) == 1 and 'row 1' in skip.reasons[0]


def test_the_held_out_share_is_a_property_of_the_video():
  videos = [Video((f'{i}.mp4',)) for i in range(2000)]
  held = [examples.is_held_out(v, 0.1) for v in videos]
  assert 0.07 < sum(held) / len(held) < 0.13
  assert held == [examples.is_held_out(v, 0.1) for v in videos]
  frames = [Video((f'x/{i}.jpg',)) for i in range(9)]
  assert len({examples.is_held_out(v, 0.5) for v in frames}) == 1
