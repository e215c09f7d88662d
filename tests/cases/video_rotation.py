"""An mp4 with a display matrix: players rotate it by 90 degrees, as phones ask for.

The same in AV1 and in H.264. If one of two readers applies the matrix and the other
does not, what the network sees depends on the codec.

  python -m tests.cases.video_rotation OUT
"""

import pathlib

from tests.cases import clips

AV1 = ('-c:v', 'libsvtav1', '-g', '30', '-preset', '12')


def make(out: pathlib.Path) -> list[dict]:
  expected = []
  for codec, options in (('av1', AV1), ('h264', clips.H264)):
    level = clips.encode(out / f'level_{codec}.mp4', 60, *options)
    rotated = clips.set_rotation(level, out / f'rotated_{codec}.mp4', 90)
    expected.append(clips.write_expected(rotated, rotation=90))
  return expected


if __name__ == '__main__':
  clips.main(make)
