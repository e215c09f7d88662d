"""What is said of videos that cannot be read."""

import jax

from tests.tiny import CFG
from vlm_rlaif_jax.config.sections import Data, Mesh
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.encode import Seen
from vlm_rlaif_jax.nn.vlm import Vlm


def test_a_missing_frame_is_named(tmp_path):
  """The first of those that are missing, not the first of the folder."""
  names = tuple(f'{i:02d}.png' for i in range(7))
  for name in names[:5]:
    (tmp_path / name).write_bytes(b'x')
  mesh = sharding.make_mesh(Mesh(data=1), jax.devices()[:1])
  data = Data(root=str(tmp_path))
  seen = Seen(Vlm(CFG), lambda: {}, 'weights', data, tmp_path / 'features', mesh)
  video = Video(names)
  bad = seen.encode([video], 'tokens')
  assert bad == {video: f'{tmp_path / "05.png"}: No such file or directory'}
