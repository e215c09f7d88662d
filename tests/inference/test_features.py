"""Messages about videos that cannot be read."""

import jax

from tests.tiny import CFG
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig

WEIGHTS = {'tower': 'tower weights', 'projector': 'projector weights'}


def test_a_missing_frame_is_named(tmp_path):
  """The first of those that are missing, not the first of the folder."""
  names = tuple(f'{i:02d}.png' for i in range(7))
  for name in names[:5]:
    (tmp_path / name).write_bytes(b'x')
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  data = DataConfig(root=str(tmp_path))
  features = VisualFeatures(
    Vlm(CFG), lambda: {}, WEIGHTS, data, tmp_path / 'features', mesh
  )
  video = Video(names)
  bad = features.encode([video], 'tokens')
  assert bad == {video: f'{tmp_path / "05.png"}: no such file'}
