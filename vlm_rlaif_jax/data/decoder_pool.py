"""Decodes videos in processes of their own, each with a deadline.

A decoder that hangs or crashes is native code, which no `except` catches: only a
process can be ended. They are plain child processes, not of `multiprocessing`, so that
no child imports the main module again, whether that is a script or a notebook.
"""

import contextlib
import os
import pathlib
import pickle
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

import vlm_rlaif_jax
from vlm_rlaif_jax.data.decoder_process import SIZE_BYTES
from vlm_rlaif_jax.data.packets import VideoError
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.sections import DataConfig

MODULE = 'vlm_rlaif_jax.data.decoder_process'
CHUNK = 1 << 20  # bytes read of a pipe at once
END_SECONDS = 5  # within which a process that has closed its pipe is gone
START_SECONDS = 120  # within which a process has imported what it needs


def child_environment() -> dict[str, str]:
  """Returns this environment for a child that is to find this package, wherever run."""
  package = str(pathlib.Path(vlm_rlaif_jax.__file__).parents[1])
  path = os.pathsep.join(filter(None, [package, os.environ.get('PYTHONPATH', '')]))
  return {**os.environ, 'PYTHONPATH': path}


class DecoderPool:
  """Processes that decode, started when first needed and ended by `close`.

  Threads share it: each call of `read` has a process to itself.

  Args:
    data: root, frames, aspect and deadline are taken from it.
    size: S, the tower's image size; 0: frames stay as they are.
  """

  def __init__(self, data: DataConfig, size: int):
    self.data, self.size = data, size
    self._idle: queue.SimpleQueue[_Decoder] = queue.SimpleQueue()
    self._all: list[_Decoder] = []
    self._lock = threading.Lock()
    self._closed = False

  def __enter__(self) -> 'DecoderPool':
    return self

  def __exit__(self, *exception: object) -> None:
    self.close()

  def read(
    self, paths: tuple[str, ...], clip: tuple[int, int] | None = None
  ) -> np.ndarray:
    """Returns the squares of a video, `uint8[F, S, S, 3]`, or its frames.

    Args:
      clip: (first, stop) of the sampled frames that are read; None: all.

    Raises:
      VideoError: it cannot be decoded, crashes the decoder or takes too long.
    """
    decoder = self._take()
    name = pathlib.Path(self.data.root) / paths[0]
    seconds = self.data.decode_timeout
    request = {
      'paths': paths,
      'clip': clip,
      'root': str(self.data.root),
      'frames': self.data.frames,
      'size': self.size,
      'aspect': self.data.aspect,
      'seconds': seconds,
    }
    try:
      result = decoder.ask(request, seconds)
    except TimeoutError:
      self._end(decoder)
      raise VideoError(
        f'{name}: not decoded within {seconds:g} s (config.data.decode_timeout)'
      ) from None
    except (EOFError, OSError):
      raise VideoError(f'{name}: its decoder crashed ({self._end(decoder)})') from None
    except BaseException:
      self._end(decoder)
      raise
    self._idle.put(decoder)
    if isinstance(result, str):
      raise VideoError(result)
    return result

  def close(self) -> None:
    """Ends all processes; a `read` that goes on meanwhile fails."""
    with self._lock:
      self._closed = True
      decoders, self._all = self._all, []
    for decoder in decoders:
      decoder.kill()

  def _take(self) -> '_Decoder':
    """Returns an idle process, or a new one."""
    with contextlib.suppress(queue.Empty):
      while (idle := self._idle.get_nowait()).process.poll() is not None:
        self._end(idle)
      return idle
    with self._lock:
      if self._closed:
        raise VideoError('the decoders have been closed')
      decoder = _Decoder()
      self._all.append(decoder)
    return decoder

  def _end(self, decoder: '_Decoder') -> str:
    """Ends a process for good; returns how it ended."""
    with self._lock:
      if decoder in self._all:
        self._all.remove(decoder)
    return decoder.kill()


class _Decoder:
  """One process that decodes one video after the other."""

  def __init__(self):
    self.process = subprocess.Popen(
      [sys.executable, '-m', MODULE],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=child_environment(),
    )
    self.has_started = False
    self._in_use = threading.Lock()  # held while a thread waits for an answer

  def ask(self, request: dict[str, Any], seconds: float) -> Any:
    """Returns the answer to a request.

    Raises:
      TimeoutError: none within the deadline.
      EOFError, OSError: the process has ended.
      UserError: it did not even start.
    """
    with self._in_use:
      return self._ask(request, seconds)

  def _ask(self, request: dict[str, Any], seconds: float) -> Any:
    if not self.has_started:
      try:
        self._receive(START_SECONDS)
      except (TimeoutError, EOFError, OSError):
        raise UserError(
          f'{MODULE}: the process that decodes videos does not start ({self.kill()}); '
          f'`{sys.executable} -m {MODULE}` shows why'
        ) from None
      self.has_started = True
    assert self.process.stdin
    self.process.stdin.write(pickle.dumps(request))
    self.process.stdin.flush()
    return self._receive(seconds)

  def _receive(self, seconds: float) -> Any:
    """Returns the next message; raises TimeoutError or EOFError if there is none."""
    deadline = time.monotonic() + seconds
    assert self.process.stdout
    pipe = self.process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
      selector.register(pipe, selectors.EVENT_READ)

      def receive(size: int) -> bytearray:
        received, place = bytearray(size), 0
        while place < size:
          if not selector.select(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
          count = os.readv(pipe, [memoryview(received)[place : place + CHUNK]])
          if not count:
            with contextlib.suppress(subprocess.TimeoutExpired):
              self.process.wait(END_SECONDS)  # which tells how it ended
            raise EOFError
          place += count
        return received

      return pickle.loads(receive(int.from_bytes(receive(SIZE_BYTES), 'big')))

  def kill(self) -> str:
    """Ends the process; returns how it ended.

    A thread that waits for its answer sees the end of the pipe, and closes it by a call
    of its own: of a pipe that is closed under it, it would learn nothing and wait on.
    """
    self.process.kill()
    code = self.process.wait()
    assert self.process.stdin and self.process.stdout
    if self._in_use.acquire(blocking=False):
      with contextlib.suppress(OSError):
        self.process.stdin.close()
      self.process.stdout.close()
      self._in_use.release()
    return f'exit status {code}' if code >= 0 else signal.Signals(-code).name
