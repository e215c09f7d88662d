"""What is held out: about the share that was asked for, and whole videos."""

import hashlib
import json

import pytest

from vlm_rlaif_jax.data import holdout, readers
from vlm_rlaif_jax.data.examples import Skipped
from vlm_rlaif_jax.data.files import DataFiles
from vlm_rlaif_jax.data.holdout import Holdout, in_share, name_of
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.settings.sections import DataConfig


def test_the_held_out_share_is_a_property_of_the_video():
  names = [f'{i}.mp4' for i in range(2000)]
  videos = [Video((name,)) for name in names]
  share = Holdout(videos, 0.1)
  held_out = [video in share for video in videos]
  assert 0.07 < sum(held_out) / len(held_out) < 0.13
  assert held_out == [in_share(name, 0.1) for name in names]
  assert held_out == [Video(v.paths, (0, 4)) in share for v in videos]
  reverse = Holdout(videos[::-1], 0.1)
  assert held_out == [video in reverse for video in videos]


def test_a_split_does_not_move_with_a_version():
  """By the hash of the path, as in 0.1.0: what was held out stays so."""
  digest = hashlib.sha256(b'videos/rl/00012.mp4').digest()
  share = int.from_bytes(digest[:8], 'big') / 2**64
  assert in_share('videos/rl/00012.mp4', share + 1e-9)
  assert not in_share('videos/rl/00012.mp4', share - 1e-9)


def test_a_second_share_is_independent_of_the_first():
  names = [f'{i}.mp4' for i in range(4000)]
  rest = [name for name in names if not in_share(name, 0.1)]
  again = [in_share(name, 0.1, 'pairs') for name in rest]
  assert 0.07 < sum(again) / len(again) < 0.13


@pytest.mark.parametrize('folder', ['images', 'set15'])
def test_single_pictures_of_one_folder_are_held_out_one_by_one(folder):
  videos = [Video((f'{folder}/{i:06}.jpg',)) for i in range(100)]
  share = Holdout(videos, 0.1)
  assert 2 <= sum(video in share for video in videos) <= 25


def test_frames_of_a_video_stay_together_and_those_of_several_in_a_folder_do_not():
  def frames(stem: str, numbers=range(10)) -> Video:
    return Video(tuple(f'{stem}{i:04}.jpg' for i in numbers))

  assert name_of(frames('x/')) == name_of(frames('x/', range(3, 30, 3))) == 'x'
  assert name_of(frames('x/frame_')) == 'x'
  videos = [frames(f'all/video{i}_') for i in range(300)]
  assert name_of(videos[12]) == name_of(frames('all/video12_', range(0, 900, 50)))
  share = Holdout(videos, 0.1)
  assert 15 <= sum(video in share for video in videos) <= 50


def test_rows_without_a_video_are_never_held_out():
  assert None not in Holdout([], 0.999)
  assert None not in Holdout([Video(('a.mp4',)), Video(('1.mp4',))], 0.999)


def test_two_names_of_one_file_have_one_side(tmp_path):
  """Names that differ in spelling, links, and copies."""
  (tmp_path / 'copies').mkdir()
  originals, names = [], {}
  for i in range(40):
    (tmp_path / f'{i}.mp4').write_bytes(b'%d' % i)
    (tmp_path / f'link{i}.mp4').symlink_to(f'{i}.mp4')
    (tmp_path / 'copies' / f'{i}.mp4').write_bytes(b'%d' % i)
    names[i] = [
      f'{i}.mp4', f'./{i}.mp4', f'copies/../{i}.mp4', str(tmp_path / f'{i}.mp4'),
      f'link{i}.mp4', f'copies/{i}.mp4',
    ]  # fmt: skip
    originals += names[i]
  share = Holdout([Video((name,)) for name in originals], 0.3, DataFiles(tmp_path, 2))
  sides = [{Video((name,)) in share for name in names[i]} for i in range(40)]
  assert all(len(side) == 1 for side in sides)
  assert sides.count({True}) not in (0, 40)


def test_a_name_does_not_depend_on_where_the_data_are(tmp_path):
  inside = Video((str(tmp_path / 'clips' / 'a.mp4'),))
  assert name_of(inside, tmp_path) == name_of(Video(('clips/a.mp4',))) == 'clips/a.mp4'
  outside = Video(('/elsewhere/a.mp4',))
  assert name_of(outside, tmp_path) == '/elsewhere/a.mp4'


def row(video: str | None, number: int = 0) -> dict:
  human = {'from': 'human', 'value': '<video>\nWhat?' if video else 'What?'}
  conversation = [human, {'from': 'gpt', 'value': f'{number}.'}]
  return {'id': str(number), 'video': video, 'conversations': conversation}


def read(root, rows, side, share=0.1, policy='stop'):
  for one in rows:
    if one.get('video'):
      (root / one['video']).parent.mkdir(exist_ok=True)
      (root / one['video']).write_bytes(one['video'].encode())
  (root / 'my.json').write_text(json.dumps(rows))
  lines: list[str] = []
  skipped = Skipped(policy, say=lines.append)
  data = DataConfig(root=str(root), train='my.json', holdout=share, workers=2)
  items = readers.read(data, 'short', skipped, held_out=side)
  return items, skipped.files['my.json'], lines[0]


def test_one_video_trains_though_it_would_be_held_out(tmp_path):
  """The example of the README."""
  assert in_share('clips/kitchen.mp4', 0.1)
  items, counts, line = read(tmp_path, [row('clips/kitchen.mp4')], False)
  assert len(items) == 1
  assert counts == {'rows': 1, 'held_out': 0, 'bad': 0}
  assert '1 rows; none held out: data.holdout=0.1 would leave no video to' in line
  assert not read(tmp_path, [row('clips/kitchen.mp4')], True)[0]


def test_nothing_is_held_out_with_a_share_of_zero(tmp_path):
  rows = [row(f'{i}.mp4', i) for i in range(40)]
  items, _, line = read(tmp_path, rows, False, 0.0)
  assert len(items) == 40 and '40 rows; none held out' in line


def test_how_much_is_held_out_is_said(tmp_path):
  rows = [row(f'{i % 40}.mp4', i) for i in range(80)] + [row(None), {'id': 'bad'}]
  train, counts, line = read(tmp_path, rows, False, policy='skip')
  held_out, *_ = read(tmp_path, rows, True, policy='skip')
  assert len(train) + len(held_out) == 81
  assert counts == {'rows': 82, 'held_out': len(held_out), 'bad': 1}
  videos = len(held_out) // 2
  assert (
    f'{len(held_out)} held out, about {videos} of 40 videos (data.holdout=0' in line
  )
  assert '1 without a video; 1 bad, left out' in line


def test_stages_agree_though_they_demand_different_things(tmp_path):
  """A copy is on the side of the first of its names, also if that row is bad."""
  rows = [row(f'z{i}.mp4', i) for i in range(40)]
  for i in range(40):
    unanswered = row(f'{i}.mp4', i)
    unanswered['conversations'] = unanswered['conversations'][:1]
    rows.append(unanswered)
    for name in (f'{i}.mp4', f'z{i}.mp4'):
      (tmp_path / name).write_bytes(b'%d' % i)
  (tmp_path / 'my.json').write_text(json.dumps(rows))
  data = DataConfig(root=str(tmp_path), train='my.json', workers=2)
  learned = readers.read(data, 'short', Skipped('skip'), held_out=False)
  labeled = readers.read(data, 'preference', Skipped('skip'), held_out=False)
  copies = {item.video for item in labeled if item.video.paths[0][0] == 'z'}
  assert {item.video for item in learned} == copies and len(copies) < 40


def test_missing_files_are_named_first_also_of_held_out_videos(tmp_path):
  rows = [row(f'{i}.mp4', i) for i in range(40)]
  data = DataConfig(root=str(tmp_path), train='my.json', workers=2)
  read(tmp_path, rows, None)
  aside = next(i for i in range(40) if holdout.in_share(f'{i}.mp4', 0.1))
  (tmp_path / f'{aside}.mp4').unlink()
  skipped = Skipped('skip')
  assert len(readers.read(data, 'short', skipped, held_out=False)) < 40
  expected = f'my.json row {aside}: {tmp_path}/{aside}.mp4: no such file'
  assert skipped.reasons == [f'{tmp_path}/{expected}']
  with pytest.raises(readers.examples.DataError, match=f'{aside}.mp4: no such file'):
    readers.read(data, 'short', Skipped('stop'), held_out=False)


def test_a_missing_frame_is_named(tmp_path):
  (tmp_path / 'v').mkdir()
  frames = [f'v/{i:04}.jpg' for i in range(50)]
  for frame in frames[:-1]:
    (tmp_path / frame).write_bytes(b'x')
  (tmp_path / 'my.json').write_text(json.dumps([{**row(None), 'images': frames}]))
  data = DataConfig(root=str(tmp_path), train='my.json', workers=2)
  with pytest.raises(readers.examples.DataError, match=r'row 0: .*0049.jpg: no such'):
    readers.read(data, 'short', Skipped('stop'))


def test_fields_that_are_not_read_are_said_once(tmp_path):
  rows = [{**row(f'{i}.mp4', i), 'source': 'web', 'license': 'cc'} for i in range(3)]
  *_, line = read(tmp_path, rows, False)
  assert line.count('source') == 1
  assert line.endswith('fields that are not read: license, source')


# -------------------------------------------------------- no more than is evaluated

# Samples as (video, number): five clips of a.mp4, and one sample of each other.
ITEMS = [(Video(('a.mp4',), (i, i + 1)), i) for i in range(5)]
ITEMS += [(Video((f'{name}.mp4',)), 9) for name in 'bcdefg']


def names(items) -> str:
  return ''.join(video.paths[0][0] for video, _ in items)


def split(count, candidates='abcdefg', reserved=''):
  return holdout.split(
    ITEMS,
    lambda item: name_of(item[0]),
    lambda item: item[0].paths[0][0] in candidates,
    count,
    lambda item: item[0].paths[0][0] in reserved,
  )


def test_no_more_is_held_out_than_is_evaluated():
  train, held_out = split(2, 'bdf')
  assert (names(train), names(held_out)) == ('aaaaacefg', 'bd')
  train, held_out = split(9, 'bdf')
  assert (names(train), names(held_out)) == ('aaaaaceg', 'bdf')
  assert split(9, '') == (ITEMS, [])


def test_clips_of_one_video_are_on_one_side():
  train, held_out = split(2)
  assert (names(train), names(held_out)) == ('bcdefg', 'aa')


def test_what_evaluation_asks_about_is_neither_trained_on_nor_chosen_by():
  train, held_out = split(1, '', reserved='cd')
  assert (names(train), names(held_out)) == ('aaaaabefg', '')
  train, held_out = split(9, 'abc', reserved='acd')
  assert (names(train), names(held_out)) == ('efg', 'b')


def test_the_other_share_is_independent_of_that_of_evaluation():
  everything = {f'{i}.mp4' for i in range(2000)}
  others = holdout.held_out_of(everything, 0.1, holdout.OTHER_SHARE)
  both = {name for name in others if in_share(name, 0.1)}
  assert 150 < len(others) < 250 and 5 < len(both) < 40
  assert holdout.held_out_of(others, 0.1, holdout.OTHER_SHARE) == set()  # all would be


def test_the_sizes_of_the_released_runs():
  """99,000 prompts give 386 iterations of 256, 39,000 pairs 2,406 steps of 16."""
  for total, a_video, count, batch, steps in (
    (99_000, 10, 64, 256, 386),
    (39_000, 4, 500, 16, 2406),
  ):
    items = [f'{i // a_video}.mp4' for i in range(total)]
    train, held_out = holdout.split(
      items, lambda name: name, lambda name: in_share(name, 0.1), count
    )
    assert len(held_out) == count
    assert len(train) // batch == steps
