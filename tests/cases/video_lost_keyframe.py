"""An mp4 that lost its first keyframe, as recordings of streams do.

Frames before the next keyframe cannot be decoded, and players start there. The header
still counts them, so that a reader which trusts it is off by as many frames.

  python -m tests.cases.video_lost_keyframe OUT
"""

import pathlib

from tests.cases import clips


def make(out: pathlib.Path) -> list[dict]:
  whole = clips.encode(out / 'whole.mp4', 500, *clips.H264)
  lost = out / 'lost_keyframe.mp4'
  clips.ffmpeg('-i', whole, '-c', 'copy', '-bsf:v', r'noise=drop=eq(n\,0)', lost)
  return [clips.write_expected(lost)]


if __name__ == '__main__':
  clips.main(make)
