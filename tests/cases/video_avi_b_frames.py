"""MPEG-4 with B-frames in an AVI (Xvid), as in older data sets.

AVI stores frames in the order of decoding and no time of display. A reader that relies
on the stored order near a seek, or that does not flush the decoder at the end, returns
other frames than a player shows.

  python -m tests.cases.video_avi_b_frames OUT
"""

import pathlib

from tests.cases import clips

XVID = ('-c:v', 'mpeg4', '-vtag', 'xvid', '-bf', '2', '-g', '250', '-q:v', '3')


def make(out: pathlib.Path) -> list[dict]:
  return [clips.write_expected(clips.encode(out / 'xvid.avi', 300, *XVID))]


if __name__ == '__main__':
  clips.main(make)
