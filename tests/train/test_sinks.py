"""Numbers, texts, pictures and histograms are in the files of TensorBoard and W&B."""

import importlib.util
import struct

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from vlm_rlaif_jax.data import decoder_pool
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.settings.sections import DataConfig, LogConfig
from vlm_rlaif_jax.train import sinks
from vlm_rlaif_jax.train.metrics import Metrics
from vlm_rlaif_jax.train.sinks import Media

MEDIA = Media(
  texts={'answers': '| a | b |'},
  pictures={'strip': np.full((4, 12, 3), 200, np.uint8)},
  histograms={'rewards': np.array([[1.0, 2.0], [3.0, 6.0]])},
)


def events(folder):
  """Returns step, name and value of everything in event files."""
  values = []
  for path in sorted((folder / 'tensorboard').iterdir()):
    data, place = path.read_bytes(), 0
    while place < len(data):
      (length,) = struct.unpack_from('<Q', data, place)
      event = event_pb2.Event.FromString(data[place + 12 : place + 12 + length])
      values += [(event.step, value.tag, value) for value in event.summary.value]
      place += length + 16
  return values


def test_tensorboard_has_all_of_it(tmp_path):
  metrics = Metrics(tmp_path, LogConfig())
  metrics.write(3, {'loss': 0.5})
  metrics.write_media(3, lambda: MEDIA)
  metrics.close()
  found = {tag.split('/')[0]: (step, value) for step, tag, value in events(tmp_path)}
  assert found['loss'][0] == 3 and found['loss'][1].simple_value == 0.5
  assert found['answers'][1].tensor.string_val[0].decode() == '| a | b |'
  picture = found['strip'][1].image
  assert (picture.height, picture.width) == (4, 12)
  assert picture.encoded_image_string.startswith(b'\x89PNG')
  counts = found['rewards'][1].histo
  assert (counts.num, counts.min, counts.max, counts.sum) == (4, 1, 6, 12)


def test_a_kill_after_a_checkpoint_loses_no_row_of_before_it(tmp_path):
  """tensorboardX writes every two minutes; a killed process never comes to it."""
  killed = Metrics(tmp_path, LogConfig())
  for step in (1, 2):
    killed.write(step, {'loss': step})
  killed.flush()  # the checkpoint of step 2
  killed.flush()
  assert [step for step, _, _ in events(tmp_path)] == [1, 2]
  killed.write(3, {'loss': 3})
  again = Metrics(tmp_path, LogConfig(), resumed_at=2)
  again.write(3, {'loss': 3})
  again.close()
  paths = sorted((tmp_path / 'tensorboard').iterdir())
  assert len({path.name for path in paths}) == len(paths) == 3
  last = [step for step, tag, _ in events(tmp_path) if tag == 'loss']
  assert last[:2] == [1, 2] and last[-1] == 3
  killed.close()


def test_media_are_not_made_where_nobody_reads_them(tmp_path):
  metrics = Metrics(tmp_path, LogConfig(tensorboard=False))
  metrics.write_media(1, lambda: pytest.fail('made'))
  metrics.close()
  assert not (tmp_path / 'tensorboard').exists()


def test_wandb_that_is_not_installed_is_one_line(monkeypatch):
  sinks.check(LogConfig())
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ConfigError, match=r"wandb=p: .*pip install -e '\.\[wandb\]'"):
    sinks.check(LogConfig(wandb='p'))


def test_wandb_offline_has_all_of_it(tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  folder = tmp_path / 'tiny' / 'ppo'
  folder.mkdir(parents=True)
  log = LogConfig(tensorboard=False, wandb='project')
  metrics = Metrics(folder, log, settings={'optim.learning_rate': 1e-4})
  metrics.write(3, {'loss': 0.5})
  metrics.write_media(3, lambda: MEDIA)
  metrics.close()
  number = (folder / sinks.RUN_ID).read_text().strip()
  (stored,) = folder.glob(f'wandb/offline-run-*/run-{number}.wandb')
  data = stored.read_bytes()
  for part in (b'project', b'optim.learning_rate', b'loss', b'strip', b'rewards'):
    assert part in data, part
  names = [path.name for path in folder.rglob('media/**/*') if path.is_file()]
  assert any(name.startswith('strip') for name in names)
  assert any(name.startswith('answers') for name in names)
  # A resumed run is the same one in the project.
  again = Metrics(folder, log, resumed_at=3)
  again.close()
  assert (folder / sinks.RUN_ID).read_text().strip() == number


def test_a_table_keeps_its_cells():
  table = sinks.markdown(('a', 'b'), [('x|y\nz', 0.25), ('<b>', 3)])
  assert table.splitlines() == [
    '| a | b |', '| --- | --- |', '| x\\|y z | 0.250 |', '| &lt;b&gt; | 3 |'
  ]  # fmt: skip


def test_a_video_that_crashes_its_decoder_is_no_picture(tmp_path, monkeypatch):
  monkeypatch.setattr(decoder_pool, 'MODULE', 'tests.data.bad_decoder')
  (tmp_path / 'crash.mp4').write_bytes(b'x')
  assert sinks.film_strips([Video(('crash.mp4',))], DataConfig(root=str(tmp_path))) == [
    None
  ]


def test_a_video_that_is_gone_is_no_picture(tmp_path):
  data = DataConfig(root=str(tmp_path))
  assert sinks.film_strips([None, Video(('gone.mp4',))], data) == [None, None]


def test_frames_of_a_part_are_of_that_part(tmp_path):
  for number in range(6):
    frame = np.full((8, 8, 3), 40 * number, np.uint8)
    Image.fromarray(frame).save(tmp_path / f'{number}.png')
  paths = tuple(f'{number}.png' for number in range(6))
  data = DataConfig(root=str(tmp_path), frames=6)
  (strip,) = sinks.film_strips([Video(paths, (2, 5))], data)
  height = strip.shape[0]
  shades = [int(strip[:, i * height : (i + 1) * height].mean()) for i in range(3)]
  assert strip.shape[1] == 3 * height
  assert shades == [80, 120, 160]
