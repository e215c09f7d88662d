"""Which items of a benchmark are asked, and what part of a video."""

import json

import pytest

from tests.data import clips
from vlm_rlaif_jax.data import packets
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals.benchmarks import preparation, registry
from vlm_rlaif_jax.evals.records import Item
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.settings.sections import DataConfig


def data(root, **more):
  return DataConfig(root=str(root), frames=10, workers=2, **more)


def run(root, **more):
  settings = EvalConfig(videos='videos/{name}.mp4', **more)
  return EvalRun(size='7b', data=data(root), eval=settings)


@pytest.fixture
def root(tmp_path):
  (tmp_path / 'eval').mkdir()
  (tmp_path / 'videos').mkdir()
  rows = [
    {'id': i, 'video_id': i // 2, 'question': 'what?', 'answer': 'dog'}
    for i in range(40)
  ]
  (tmp_path / 'eval' / 'test_qa.json').write_text(json.dumps(rows))
  for video in range(17):
    (tmp_path / 'videos' / f'{video}.mp4').write_bytes(b'x')
  return tmp_path


def prepare(root, **more):
  settings = run(root, **more)
  return preparation.prepare(registry.named('msvd_qa'), settings, settings.data)


def test_missing_videos_are_counted_and_listed(root):
  prepared = prepare(root)
  assert (len(prepared.items), prepared.of, prepared.rows) == (34, 40, 40)
  assert list(prepared.missing) == ['17', '18', '19']
  assert prepared.describe() == (
    'msvd_qa: 34 of 40 items; 3 videos missing: 17, 18, 19'
  )
  (root / 'videos' / '16.mp4').unlink()
  assert prepare(root).describe().endswith('4 videos missing: 16, 17, 18, ...')


def test_splits_share_no_video_and_miss_none(root):
  test = prepare(root, dev_share=0.3)
  dev = prepare(root, dev_share=0.3, split='dev')
  names = [{item.video_name for item in part.items} for part in (test, dev)]
  assert names[0] and names[1] and not names[0] & names[1]
  assert len(test.items) + len(dev.items) == 34
  few = prepare(root, clips=2)
  assert {item.video_name for item in few.items} == {'0', '1'}


def test_a_video_that_cannot_be_decoded(root):
  prepared = prepare(root)
  bad = {Video(('videos/3.mp4',)): '3.mp4: cannot be decoded'}
  with pytest.raises(DataError, match=r'row 6: 3\.mp4: .*skip counts such videos'):
    preparation.readable(prepared, bad, data(root))
  left = preparation.readable(prepared, bad, data(root, on_bad_sample='skip'))
  assert len(left.items) == 32 and '3' in left.missing and left.of == 40


def span_item(video, span):
  return Item(
    key='k', video=video, video_name='v', prompts=('W?',),
    fields={'span': span, 'pictures_per_second': 3.0},
  )  # fmt: skip


@pytest.mark.parametrize(
  ('span', 'numbers'), [((1.0, 2.0), (3, 6)), ((0, 0.1), (0, 1)), ((9, 99), (11, 12))]
)
def test_a_span_of_pictures_is_these_pictures(tmp_path, span, numbers):
  paths = tuple(f'{i}.jpg' for i in range(12))
  item = preparation.cut_to_span(span_item(Video(paths), span), data(tmp_path))
  assert item.video == Video(paths[slice(*numbers)])


@pytest.mark.parametrize(
  ('span', 'clip'),
  [
    ((1.0, 2.0), (2, 6)),  # of ten frames of 4 s, up to an even number of them
    ((3.9, 4.0), (8, 10)),
    ((0.0, 4.0), None),
    ((6.0, 9.0), (8, 10)),  # after the end of a file that is cut
  ],
)
def test_a_span_of_a_file_is_a_clip_of_the_sampled_frames(tmp_path, span, clip):
  clips.write(tmp_path / 'v.mp4', 100)
  assert packets.duration(tmp_path / 'v.mp4') == pytest.approx(4.0, abs=0.1)
  item = preparation.cut_to_span(span_item(Video(('v.mp4',)), span), data(tmp_path))
  assert item.video == Video(('v.mp4',), clip)


def test_a_span_of_a_file_that_cannot_be_opened_is_left_to_the_decoder(tmp_path):
  (tmp_path / 'v.mp4').write_bytes(b'x' * 100)
  with pytest.raises(packets.VideoError, match=r'v\.mp4: cannot be opened'):
    packets.duration(tmp_path / 'v.mp4')
  item = span_item(Video(('v.mp4',)), (1.0, 2.0))
  assert preparation.cut_to_span(item, data(tmp_path)) == item


def test_a_span_of_a_file_without_times_is_refused_and_not_left_out(tmp_path):
  clips.write(tmp_path / 'v.h264', 50)
  item = span_item(Video(('v.h264',)), (1.0, 2.0))
  with pytest.raises(
    DataError, match=r'does not say how long .* about 1 to 2 s; write'
  ):
    preparation.cut_to_span(item, data(tmp_path))


def test_two_benchmarks_do_not_read_one_file(root):
  one, two = (
    preparation.prepare(registry.named(name), run(root), data(root))
    for name in ('msvd_qa', 'msrvtt_qa')
  )
  with pytest.raises(
    DataError, match=r'test_qa\.json: is read for msvd_qa and for msr'
  ):
    preparation.check_files([one, two])
  preparation.check_files([one])


def tasks_of(root, *tasks):
  """A run by some tasks of MVBench, each with a video v.mp4."""
  for task in tasks:
    row = {'video': 'v.mp4', 'question': 'W?', 'candidates': ['x', 'y'], 'answer': 'x'}
    (root / 'eval' / f'{task}.json').write_text(json.dumps([row]))
  (root / 'videos' / 'v.mp4').write_bytes(b'x')
  settings = EvalRun(size='7b', data=data(root), eval=EvalConfig(videos=STEM))
  return preparation.prepare(registry.named('mvbench'), settings, settings.data)


STEM = 'videos/{stem}.mp4'


def test_a_place_of_two_videos_is_refused(root):
  with pytest.raises(DataError, match=r"v\.mp4 is the video of '.*' and of '.*{name}"):
    tasks_of(root, 'object_shuffle', 'moving_count')


def test_tasks_that_are_not_there_are_counted(root):
  same_folder = tasks_of(root, 'object_shuffle', 'action_count')
  assert same_folder.describe() == 'mvbench: 2 of 2 items (2 of 20 tasks)'
