"""What is stored of videos, what is computed again, and messages about bad ones."""

import collections
import dataclasses
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from tests.tiny import CFG, random_params
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.decoder_pool import DecoderPool
from vlm_rlaif_jax.data.video import Video, VideoError
from vlm_rlaif_jax.inference import encoder, features
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig
from vlm_rlaif_jax.weights import placement

WEIGHTS = {'tower': 'tower weights', 'projector': 'projector weights'}
HALF = dataclasses.replace(CFG, dtype='bfloat16')
A, B, CLIP = Video(('a.png',)), Video(('b.png',)), Video(('a.png',), (1, 3))


@pytest.fixture
def videos(tmp_path, rng):
  """Two videos of one picture each, which decode fast."""
  root = tmp_path / 'data'
  root.mkdir()
  for name in 'ab':
    pixels = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(root / f'{name}.png')
  return root


def make(
  root, cfg=CFG, weights=WEIGHTS, say=lambda text: None, **data
) -> VisualFeatures:
  params = random_params(cfg=cfg)
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  tower = random_params() if cfg.vision == CFG.vision else params
  parts = {'tower': tower['tower'], 'projector': params['projector']}
  settings = DataConfig(root=str(root), **{'frames': 4, 'workers': 1, **data})
  return VisualFeatures(
    Vlm(cfg),
    lambda: placement.on_device(parts, cfg, mesh),
    weights,
    settings,
    root.parent / 'features',
    mesh,
    say,
  )


@pytest.fixture
def counted(monkeypatch):
  """Counts the videos that are encoded, by what they are encoded from."""
  count: collections.Counter = collections.Counter()
  add = encoder.Encoder.add

  def counting(self, paths, what, value):
    count[what] += 1
    add(self, paths, what, value)

  monkeypatch.setattr(encoder.Encoder, 'add', counting)
  return count


def test_a_damaged_entry_is_computed_again_and_said(videos, counted):
  lines = []
  made = make(videos, say=lines.append)
  assert made.encode([A, B, CLIP], 'tokens') == {}
  right = {item: made.read('tokens', item) for item in (A, B, CLIP)}
  assert right[A].shape == (8, 16) and right[CLIP].shape == (6, 16)
  store = made.stores['tokens']
  flipped = store.path(made.key(A))
  data = bytearray(flipped.read_bytes())
  data[200] ^= 8
  flipped.write_bytes(data)
  store.path(made.key(CLIP)).write_bytes(b'')
  counted.clear()
  # What its size shows is found before training, the rest when it is read.
  again = make(videos, say=lines.append)
  again.encode([A, B, CLIP], 'tokens')
  assert counted == {'frames': 1} and len(lines) == 1
  assert f'{made.key(CLIP)}.npy: expected float16[6, 16], found nothing' in lines[0]
  for item, value in right.items():
    np.testing.assert_array_equal(again.read('tokens', item), value)
  assert counted == {'frames': 2} and len(lines) == 2
  assert f'{made.key(A)}.npy: its checksum is wrong; computing' in lines[1]
  flipped.write_bytes(b'')
  (videos / 'a.png').write_bytes(b'x')
  with pytest.raises(VideoError, match=r'a\.png: cannot be decoded'):
    again.read('tokens', A)


def test_features_survive_a_move_of_the_data(videos, counted):
  make(videos).encode([A, B], 'patches')
  moved = videos.parent / 'elsewhere'
  shutil.copytree(videos, moved, copy_function=shutil.copyfile)
  counted.clear()
  elsewhere = make(moved)
  elsewhere.encode([A, B], 'patches')
  assert not counted
  assert elsewhere.read('patches', CLIP).shape == (2, 4, 16)


@pytest.mark.slow
def test_sizes_share_patches_and_tokens_follow_from_them(videos, counted):
  """Where the dtype of a store is that of the network, as it is in real sizes."""
  small = make(videos, HALF)
  large_cfg = dataclasses.replace(
    HALF, name='large', llama=dataclasses.replace(HALF.llama, width=32)
  )
  large = make(videos, large_cfg, {**WEIGHTS, 'projector': 'of 32 numbers'})
  small.encode([A, B], 'patches')
  large.encode([A, B], 'patches')
  assert counted == {'frames': 2}
  large.encode([A, CLIP], 'tokens')
  assert counted == {'frames': 2, 'patches': 1}
  from_patches = [large.read('tokens', item) for item in (A, CLIP)]
  for store in (small.stores['patches'], large.stores['tokens']):
    shutil.rmtree(store.folder)
    store.folder.mkdir()
  large.encode([A, CLIP], 'tokens')
  assert counted['frames'] == 3
  for item, value in zip((A, CLIP), from_patches, strict=True):
    np.testing.assert_array_equal(large.read('tokens', item), value)


@pytest.mark.slow
def test_networks_that_read_the_same_squares_decode_once(videos, counted, monkeypatch):
  """As actor and critic of PPO; each has what it would have had by itself."""
  decoded = []
  read = DecoderPool.read

  def counting(self, paths):
    decoded.append((paths, self.size))
    return read(self, paths)

  monkeypatch.setattr(DecoderPool, 'read', counting)
  other = {'tower': 'another tower', 'projector': 'another projector'}
  vision = dataclasses.replace(CFG.vision, image_size=24)
  wide = dataclasses.replace(CFG, name='wide', vision=vision)
  made = [make(videos), make(videos, weights=other)]
  made[1].encode([A], 'tokens')
  alone = made[1].read('tokens', A)
  decoded.clear()
  assert features.encode_all(made, [A, B, CLIP], 'tokens') == {}
  assert sorted(decoded) == [(('a.png',), 16), (('b.png',), 16)]
  np.testing.assert_array_equal(made[1].read('tokens', A), alone)
  for network in made:
    assert network.read('tokens', CLIP).shape == (6, 16)
  decoded.clear()
  (videos / 'b.png').write_bytes(b'no picture')
  third = make(videos, wide, other, on_bad_sample='skip')
  again = make(videos, on_bad_sample='skip')
  assert list(features.encode_all([again, third], [A, B], 'tokens')) == [B]
  assert sorted(decoded) == [(('a.png',), 24), (('b.png',), 16), (('b.png',), 24)]


def test_features_depend_on_how_the_network_reads_a_frame(videos):
  def folders(cfg=CFG, weights=WEIGHTS, **data):
    return [
      store.folder for store in make(videos, cfg, weights, **data).stores.values()
    ]

  usual = folders()
  assert folders() == usual and usual[0] != usual[1]
  for cfg, weights in (
    (dataclasses.replace(CFG, projector='relu'), WEIGHTS),  # which reads the patches
    (CFG, {**WEIGHTS, 'projector': 'others'}),
  ):
    patches, tokens = folders(cfg, weights)
    assert patches == usual[0] and tokens != usual[1]
  shallow = dataclasses.replace(CFG.vision, feature_layer=-1)
  other_heads = dataclasses.replace(CFG.vision, heads=4)
  for changed in (
    folders(dataclasses.replace(CFG, vision=shallow)),
    folders(dataclasses.replace(CFG, vision=other_heads)),
    folders(dataclasses.replace(CFG, dtype='float16')),
    folders(CFG, {**WEIGHTS, 'tower': 'others'}),
    folders(frames=7),
    folders(aspect='crop'),
  ):
    assert not set(changed) & set(usual)


def test_what_cannot_be_read_is_found_before_anything_is_encoded(videos, counted):
  """The first frame that is missing is named, not the first of the folder."""
  names = tuple(f'{i:02d}.png' for i in range(7))
  for name in names[:5]:
    shutil.copy(videos / 'a.png', videos / name)
  gap = Video(names)
  reason = f'{videos / "05.png"}: no such file'
  assert make(videos).encode([A, gap], 'tokens') == {gap: reason}
  assert not counted
  skips = make(videos, on_bad_sample='skip')
  clip = dataclasses.replace(gap, clip=(0, 2))
  assert skips.encode([A, gap, clip], 'tokens') == {gap: reason, clip: reason}
  assert counted == {'frames': 1}


def test_a_bad_video_stops_at_once_or_is_left_out(videos, counted):
  (videos / 'b.png').write_bytes(b'no picture')
  bad = make(videos).encode([B, A], 'tokens')
  assert list(bad) == [B] and 'b.png: cannot be decoded' in bad[B]
  assert not counted
  assert list(make(videos, on_bad_sample='skip').encode([B, A], 'tokens')) == [B]
  assert counted == {'frames': 1}


def test_the_room_on_disk_is_checked_first(videos, counted, monkeypatch):
  usage = collections.namedtuple('usage', 'total used free')
  monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage(1, 1, 1000))
  text = r'features of 2 videos or clips need 0\.0 GB \(0\.0 MB each\) in .*features, '
  with pytest.raises(UserError, match=text + r'where 0\.0 GB are free; choose another'):
    make(videos).encode([A, B], 'patches')
  assert not counted
  monkeypatch.setattr(shutil, 'disk_usage', lambda folder: usage(1, 1, 10**13))
  monkeypatch.setattr(features, 'LARGE', 100)
  lines = []
  make(videos, say=lines.append).encode([A, B], 'patches')
  assert len(lines) == 1 and 'where 10000.0 GB are free' in lines[0]


def test_features_that_are_no_numbers_are_not_stored(videos):
  """They would stay there, and later errors would name the decoder's weights."""
  made = make(videos)
  load = made.load

  def too_large():
    params = load()
    bias = params['projector']['out']['bias']
    params['projector']['out']['bias'] = (
      bias + 1e6
    )  # float32 holds it, float16 does not
    return params

  made.load = too_large
  with pytest.raises(UserError, match=r'a\.png: .* are NaN or infinite in float16'):
    made.encode([A], 'tokens')
  made.load = load
  assert made.encode([A], 'tokens') == {}  # nothing is in its place
  assert np.isfinite(made.read('tokens', A)).all()
