"""HEVC with a keyframe every 60 frames and open groups of pictures, x265's default.

Frames that follow a keyframe may depend on frames before it. A reader that seeks to the
keyframe cannot decode them and returns others in their place.

  python -m tests.cases.video_hevc_long_gop OUT
"""

import pathlib

from tests.cases import clips

HEVC = ('-c:v', 'libx265', '-pix_fmt', 'yuv420p', '-tag:v', 'hvc1')


def make(out: pathlib.Path) -> list[dict]:
  options = (*HEVC, '-x265-params', 'log-level=error:keyint=60')
  return [clips.write_expected(clips.encode(out / 'hevc.mp4', 300, *options))]


if __name__ == '__main__':
  clips.main(make)
