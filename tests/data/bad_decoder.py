"""Stands for `decoder_process` with a decoder that hangs or crashes on some videos."""

import os
import pathlib
import signal
import sys
import time

from vlm_rlaif_jax.data import decoder_process

read_frames = decoder_process.read_frames


def read_or_fail(video, *arguments):
  match pathlib.Path(video.paths[0]).name:
    case 'hang.mp4':
      time.sleep(1000)
    case 'crash.mp4':
      os.kill(os.getpid(), signal.SIGSEGV)
    case 'noise.mp4':
      os.write(1, b'a library prints this')
      raise KeyError('a library raises this')
  return read_frames(video, *arguments)


if __name__ == '__main__':
  assert 'jax' not in sys.modules, 'a decoder must start fast'
  decoder_process.read_frames = read_or_fail
  decoder_process.main()
