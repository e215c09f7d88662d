"""Where annotations and videos are, and what a wrong file is told."""

import pytest

from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals.benchmarks import registry, sources

FRAMES = ('frame10.jpg', 'frame2.jpg', 'frame1.jpg', 'notes.txt')


@pytest.fixture
def root(tmp_path):
  for path in (
    'videos/a.mp4', 'videos/a.old.mp4', 'videos/b.webm', 'videos/x[1].avi',
    'msvd/c.avi', *(f'frames/v_a/{name}' for name in FRAMES[:3]),
  ):  # fmt: skip
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_bytes(b'x')
  return tmp_path


@pytest.mark.parametrize(
  ('template', 'name', 'paths'),
  [
    ('videos/{name}.mp4', 'a', ('videos/a.mp4',)),
    ('videos/{name}.*', 'a', ('videos/a.mp4',)),
    ('videos/{name}.*', 'b.mp4', ('videos/b.webm',)),
    ('videos/{file}', 'b.webm', ('videos/b.webm',)),
    ('videos/{stem}.*', 'star/Charades/b.mp4', ('videos/b.webm',)),
    ('videos/{name}.*', 'x[1]', ('videos/x[1].avi',)),
    ('{dataset}/{name}.*', 'c', ('msvd/c.avi',)),
    ('videos/{name}.*', 'gone', ('videos/gone.*',)),
    (
      'frames/v_{name}/*',
      'a',
      ('frames/v_a/frame1.jpg', 'frames/v_a/frame2.jpg', 'frames/v_a/frame10.jpg'),
    ),
  ],
)
def test_a_template_says_where_a_video_is(root, template, name, paths):
  locate = sources.Locator(root, template, 'msvd_qa', 'msvd')
  assert locate(name) == Video(paths)


@pytest.mark.parametrize('template', ['videos/a.mp4', 'videos/{id}.mp4'])
def test_a_template_without_a_name_is_refused(root, template):
  with pytest.raises(DataError, match=r'config\.eval\.videos=.*must hold'):
    sources.Locator(root, template, 'msvd_qa', 'msvd')


def test_two_videos_of_one_name_are_refused(root):
  (root / 'videos' / 'b.mp4').write_bytes(b'x')
  locate = sources.Locator(root, 'videos/{name}.*', 'msvd_qa', 'msvd')
  with pytest.raises(DataError, match=r"2 files are of the video 'b' \(b\.mp4, b\.web"):
    locate('b')


def test_annotations_are_found_as_published(tmp_path):
  benchmark = registry.named('activitynet_qa')
  with pytest.raises(DataError, match=r'no annotations .* test_q\.json with test_a'):
    sources.find(benchmark, tmp_path)
  (tmp_path / 'activitynet_qa').mkdir()
  pair = [tmp_path / 'activitynet_qa' / name for name in ('test_q.json', 'test_a.json')]
  pair[0].write_text('[]')
  with pytest.raises(DataError, match='no annotations of activitynet_qa'):
    sources.find(benchmark, tmp_path)
  pair[1].write_text('[]')
  assert sources.find(benchmark, tmp_path) == tuple(pair)
  (tmp_path / 'anet_qa.json').write_text('[]')
  assert sources.find(benchmark, tmp_path / 'anet_qa.json') == (
    tmp_path / 'anet_qa.json',
  )


def test_an_unknown_benchmark_is_refused():
  with pytest.raises(ValueError, match="no benchmark 'msvd'; choose some of msvd_qa"):
    registry.named('msvd')


def test_a_table_with_a_row_of_another_length(tmp_path):
  path = tmp_path / 'test.csv'
  path.write_text('a,b\n1,2\n1\n')
  with pytest.raises(DataError, match=r'test\.csv line 3: 1 columns, but the header'):
    sources.read(path)
  path.write_text('a,b\n1,"x\n' + '2,y\n' * 50_000)
  with pytest.raises(DataError, match='is a quotation mark not closed'):
    sources.read(path)
  for end in ('', '4,"z"\n'):
    path.write_text(f'a,b\n1,"x\n2,y\n3,z\n{end}')
    with pytest.raises(DataError, match=r'line \d: a cell holds whole rows; is a quot'):
      sources.read(path)
  path.write_text('a,b\n1,"x,\ny"\n')
  assert sources.read(path) == [(f'{path} line 3', {'a': '1', 'b': 'x,\ny'})]


def test_a_column_or_a_key_that_is_there_twice_is_refused(tmp_path):
  path = tmp_path / 'test.csv'
  path.write_text('answer,b,answer\n1,2,3\n')
  with pytest.raises(
    DataError, match=r"test\.csv: two columns are 'answer'; leave one"
  ):
    sources.read(path)
  path.write_text(',b,\n1,2,3\n')  # without names, as of an index
  assert sources.read(path)[0][1]['b'] == '2'
  path = tmp_path / 'map_vid_vidorID.json'
  path.write_text('{"1": "a/1", "2": "a/2", "1": "b/1"}')
  with pytest.raises(DataError, match=r"json: the key '1' is there twice"):
    sources.read_object(path)
  path.write_text('[]')
  with pytest.raises(DataError, match='must be an object, got list'):
    sources.read_object(path)


def test_a_folder_in_place_of_a_file_has_the_pictures_of_its_frames(root):
  """Of one task of MVBench the videos are folders, among files of the others."""
  (root / 'frames' / 'v_b.mp4').write_bytes(b'x')
  locate = sources.Locator(root, 'frames/v_{name}.*', 'mvbench', 'mvbench')
  assert locate('b') == Video(('frames/v_b.mp4',))
  names = ('frame1.jpg', 'frame2.jpg', 'frame10.jpg')
  assert locate('a') == Video(tuple(f'frames/v_a/{name}' for name in names))


def test_a_preview_beside_videos_is_none(root):
  """A download that failed may have left the preview of its video alone."""
  for name in ('a.jpg', 'gone.jpg'):
    (root / 'videos' / name).write_bytes(b'x')
  locate = sources.Locator(root, 'videos/{name}.*', 'msvd_qa', 'msvd')
  assert locate('a') == Video(('videos/a.mp4',))
  assert locate('gone') == Video(('videos/gone.*',))
  for name in ('a.jpg', 'b.jpg', 'b.webp'):
    (root / 'msvd' / 'pictures').mkdir(exist_ok=True)
    (root / 'msvd' / 'pictures' / name).write_bytes(b'x')
  locate = sources.Locator(root, 'msvd/pictures/{name}.*', 'msvd_qa', 'msvd')
  assert locate('a') == Video(('msvd/pictures/a.jpg',))
  with pytest.raises(DataError, match=r"2 files are of the video 'b'"):
    locate('b')
