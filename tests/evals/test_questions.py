"""Which questions are for choosing settings, and which for reporting."""

import json

import pytest

from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.data.examples import DataError, Skipped
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import questions
from vlm_rlaif_jax.settings.build import ConfigError, from_config_dict, to_config_dict
from vlm_rlaif_jax.settings.eval import EvalConfig
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.weights import bases


@pytest.fixture
def data(tmp_path):
  """A benchmark of 200 videos with three questions each."""
  (tmp_path / 'eval').mkdir()
  rows = [
    {'video_name': f'v{i}.mp4', 'question_id': f'{i}_{j}', 'question': 'What?',
     'answer': 'Red.'}
    for i in range(200) for j in range(3)
  ]  # fmt: skip
  (tmp_path / 'eval' / 'qa.json').write_text(json.dumps(rows))
  for i in range(200):
    (tmp_path / f'v{i}.mp4').write_bytes(b'a video')
  return DataConfig(root=str(tmp_path))


def read(data, **settings):
  rows = questions.read_questions(data, 'qa', Skipped('stop'), EvalConfig(**settings))
  return [one.row['question_id'] for one in rows]


def test_a_video_is_in_one_split_with_all_its_questions(data):
  whole = read(data)
  assert len(whole) == 600
  dev = read(data, split='dev', dev_share=0.25)
  test = read(data, dev_share=0.25)
  assert sorted(dev + test) == sorted(whole)
  videos = {name: {key.split('_')[0] for key in keys} for name, keys in
            (('dev', dev), ('test', test))}  # fmt: skip
  assert not videos['dev'] & videos['test']
  assert 30 < len(videos['dev']) < 70
  assert dev == read(data, split='dev', dev_share=0.25)
  assert len({key.split('_')[0] for key in read(data, dev_share=0.25, clips=9)}) == 9


def test_what_has_no_split_is_refused(data):
  with pytest.raises(ConfigError, match=r"split: 'dev' needs eval\.dev_share"):
    edited = to_config_dict(EvalConfig())
    edited.split = 'dev'
    from_config_dict(EvalConfig, edited)
  own = DataConfig(root=data.root, train='my.json')
  with pytest.raises(DataError, match=r'held-out videos of my\.json are not split'):
    read(own, split='dev', dev_share=0.25)


def test_a_question_that_leaves_no_room_for_its_answer_is_found_first():
  """A long one is padded to a longer bucket; the shortest alone had been checked."""
  tokenizer = tokens.load_tokenizer(bases.TINY)
  video = Video(('v.mp4',))
  short, long = (
    questions.Question({'question': text}, video, f'qa.json row {i}')
    for i, text in enumerate(('Red?', 'Red? ' * 40))
  )
  read = (tokenizer, (64, 256), 'vicuna_v1')
  assert questions.drop_long([short, long], *read, Skipped('stop')) == [short, long]
  skipped = Skipped('skip')
  assert questions.drop_long([short, long], *read, skipped, room=200) == [short]
  (reason,) = skipped.reasons
  assert reason.startswith('qa.json row 1: the prompt, in a bucket of 256, has 200 pos')
  with pytest.raises(DataError, match='row 1: the prompt, in a bucket of 256'):
    questions.drop_long([short, long], *read, Skipped('stop'), room=200)


def test_parts_and_copies_of_a_video_of_ones_own_are_one_video(tmp_path):
  rows = []
  for video in range(12):
    folder = tmp_path / f'frames/v{video}'
    folder.mkdir(parents=True)
    names = [f'frames/v{video}/{frame}.jpg' for frame in range(4)]
    for name in names:
      (tmp_path / name).write_bytes(b'%d %s' % (video, name.encode()))
    turns = [{'from': 'human', 'value': 'W?'}, {'from': 'gpt', 'value': 'A dog.'}]
    parts = (names[:2], names[2:])
    rows += [{'images': part, 'conversations': turns} for part in parts]
  (tmp_path / 'my.json').write_text(json.dumps(rows))
  data = DataConfig(root=str(tmp_path), train='my.json', holdout=0.5)
  asked = questions.read_questions(data, 'qa', Skipped('stop'))
  names = [one.row['video_name'] for one in asked]
  assert names and all(names.count(name) == 2 for name in names)
  assert all(
    one.video.paths[0].startswith(f'{one.row["video_name"]}/') for one in asked
  )
