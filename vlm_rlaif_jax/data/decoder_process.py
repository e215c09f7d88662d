"""Reads videos on behalf of another process; `decoder_pool` starts it.

  python -m vlm_rlaif_jax.data.decoder_process

Requests come by standard input and results leave by standard output, pickled, so that
a decoder that hangs or crashes ends this process and not the run. Nothing here imports
JAX.
"""

import functools
import os
import pickle
import signal
import sys
from typing import Any, BinaryIO

from vlm_rlaif_jax.data import image
from vlm_rlaif_jax.data.packets import VideoError
from vlm_rlaif_jax.data.video import Video, read_frames

ORPHAN_SECONDS = 30  # after the deadline, by which the other process has ended this one
SIZE_BYTES = 8  # of the number before each result, which is its size


def serve(requests: BinaryIO, results: BinaryIO) -> None:
  """Says that it is ready, and answers requests until there are no more."""
  _send(results, 'ready')
  while True:
    try:
      request = pickle.load(requests)
    except EOFError:
      return
    # A hang outlives this process's owner otherwise; a signal ends native code, too.
    signal.setitimer(signal.ITIMER_REAL, request['seconds'] + ORPHAN_SECONDS)
    result = read(request)
    signal.setitimer(signal.ITIMER_REAL, 0)
    try:
      _send(results, result)
    except BrokenPipeError:
      return


def _send(results: BinaryIO, result: Any) -> None:
  """Writes a result and, before it, its size."""
  answer = pickle.dumps(result, protocol=5)
  results.write(len(answer).to_bytes(SIZE_BYTES, 'big'))
  results.write(answer)
  results.flush()


def read(request: dict[str, Any]) -> Any:
  """Returns the squares of a video, `uint8[F, S, S, 3]`, or the text of an error.

  Args:
    request: paths, clip, root, frames, aspect, and size; if that is 0, frames are
      returned as they are, `uint8[F, H, W, 3]`.
  """
  size, square = request['size'], None
  if size:
    square = functools.partial(image.square, size=size, aspect=request['aspect'])
  video = Video(request['paths'], request['clip'])
  try:
    return read_frames(video, request['root'], request['frames'], square)
  except VideoError as error:
    return str(error)
  except Exception as error:  # of a library; the run goes on, or names the video
    return f'{video.paths[0]}: cannot be decoded ({error!r})'


def main() -> None:
  """Serves on standard input and output."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the owner
  # Libraries that print must not print into the results.
  output = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)
  serve(sys.stdin.buffer, output)


if __name__ == '__main__':
  main()
