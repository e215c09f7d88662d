"""An mp4 cut out of a longer one without encoding it again, as data sets are cut.

`ffmpeg -ss ... -to ... -c copy` keeps everything from the last keyframe before the cut
and writes an edit list, which tells players where to start. A reader that counts the
stored frames and seeks to them by number returns other frames than a player shows,
some of them twice and out of order.

  python -m tests.cases.video_edit_list OUT
"""

import pathlib

from tests.cases import clips


def make(out: pathlib.Path) -> list[dict]:
  whole = clips.encode(out / 'whole.mp4', 500, *clips.H264)
  cut = out / 'edit_list.mp4'
  clips.ffmpeg('-ss', 7.7, '-to', 11, '-i', whole, '-c', 'copy', cut)
  return [clips.write_expected(whole), clips.write_expected(cut)]


if __name__ == '__main__':
  clips.main(make)
