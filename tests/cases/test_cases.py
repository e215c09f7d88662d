"""All cases of all scripts, by one command."""

import importlib
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.cases import clips
from vlm_rlaif_jax.data import video
from vlm_rlaif_jax.data.video import Video

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(not shutil.which('ffmpeg'), reason='needs the ffmpeg program'),
]

FRAMES = (
  'video_avi_b_frames', 'video_edit_list', 'video_hevc_long_gop',
  'video_lost_keyframe', 'video_rotation', 'picture_16_bit', 'picture_exif',
)  # fmt: skip
NEEDS = {
  'adapter_pissa': ('torch', 'peft'),
  'quantized_bf16_storage': ('torch', 'bitsandbytes'),
  'export_image_token': ('torch',),
  'config_im_start_end': ('torch',),
  'export_vision_tower': ('torch',),
  'tokenizer_added_tokens': ('torch', 'sentencepiece'),
  'tokenizer_id_zero': ('torch',),
  'weights_stale_index': ('torch',),
}
COMMANDS = (*NEEDS, 'holdout_one_folder', 'pairs_equal', 'picture_damaged', 'rows')


def test_every_script_is_run():
  here = pathlib.Path(__file__).parent
  shared = {'__init__', 'clips', 'commands', 'checkpoints', 'test_cases'}
  assert {path.stem for path in here.glob('*.py')} - shared == {*FRAMES, *COMMANDS}


@pytest.mark.parametrize('script', FRAMES)
def test_frames_and_pictures_are_what_is_shown(script, tmp_path):
  for expected in importlib.import_module(f'tests.cases.{script}').make(tmp_path):
    if 'picture' in expected:
      _check_picture(tmp_path, expected)
    else:
      _check_clip(tmp_path, expected)


def _check_clip(folder, expected):
  for count, numbers in expected['expected'].items():
    frames = video.read_frames(Video((expected['clip'],)), folder, int(count))
    assert frames.shape[1:3] == (expected['height'], expected['width'])
    turned = (np.rot90(frame, expected['rotation'] // 90) for frame in frames)
    assert [clips.frame_number(frame) for frame in turned] == numbers


def _check_picture(folder, expected):
  (pixels,) = video.read_frames(Video((expected['picture'],)), folder, 1)
  right = np.asarray(Image.open(folder / expected['expected']).convert('RGB'))
  difference = np.abs(pixels.astype(int) - right.astype(int))
  assert difference.max() <= expected['tolerance']


@pytest.mark.filterwarnings('default')  # of libraries that write the inputs
@pytest.mark.parametrize('script', COMMANDS)
def test_commands_do_what_is_right(script, tmp_path, monkeypatch):
  for module in NEEDS.get(script, ()):
    pytest.importorskip(module)
  monkeypatch.chdir(pathlib.Path(__file__).parents[2])
  cases = importlib.import_module(f'tests.cases.{script}').cases(tmp_path)
  wrong = {name: problem for name, check in cases.items() if (problem := check())}
  assert cases and not wrong
