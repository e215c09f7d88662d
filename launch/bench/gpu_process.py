"""The process of an item of `bench gpu`: how the run starts it, and what runs in it.

An item prints a line for each row of the table, and waits for a line of its input
between loading its packages and measuring.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

ROW = '@row '  # begins a line of output that is a row
LOAD_SECONDS = 120.0  # that packages may take


class ItemProcess:
  """Starts the process of an item, which loads its packages and waits for `run`.

  Args:
    module: run with `python -m`; it calls `serve`.
    name: of the item.
    size: '7b' or 'tiny'.
  """

  def __init__(self, module: str, name: str, size: str):
    environment = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.92', **os.environ}
    self._process = subprocess.Popen(
      [sys.executable, '-m', module, name, size],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
      start_new_session=True,
    )
    self._name = name
    self._rows: list[dict] = []
    self._ready = threading.Event()
    self._thread = threading.Thread(target=self._read, daemon=True)
    self._thread.start()

  def _read(self) -> None:
    assert self._process.stdout
    for text in self._process.stdout:
      if not text.startswith(ROW):
        print(text, end='', file=sys.stderr, flush=True)
      elif row := json.loads(text.removeprefix(ROW)):
        self._rows.append(row)
      else:  # an empty row: the packages are loaded
        self._ready.set()
    self._ready.set()

  def run(self, seconds: float) -> list[dict]:
    """Lets the item measure, and returns its rows.

    Args:
      seconds: the deadline; rows that came before it are returned.
    """
    if not self._ready.wait(min(LOAD_SECONDS, seconds)):
      self.stop()
      return [self._error('its packages did not load in time')]
    try:
      assert self._process.stdin
      self._process.stdin.write('go\n')
      self._process.stdin.close()
      code = self._process.wait(seconds)
    except BrokenPipeError:
      code = self._process.wait()
    except subprocess.TimeoutExpired:
      self.stop()
      return [*self._rows, self._error(f'stopped after {seconds:.0f} s')]
    self._close()
    return [*self._rows, self._error(f'ended with {code}')] if code else self._rows

  def _error(self, message: str) -> dict[str, str]:
    return {'row': self._name, 'error': message}

  def stop(self) -> None:
    """Kills the process and what it started."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the driver
      self._process.wait(10)
    self._close()

  def _close(self) -> None:
    self._thread.join(5)
    for pipe in (self._process.stdin, self._process.stdout):
      if pipe:
        with contextlib.suppress(BrokenPipeError):
          pipe.close()


# ---------------------------------------------------------------- inside the process


def note(row: str, **figures: Any) -> None:
  """Prints a row for the run, which computes rates from seconds, bytes and flops."""
  print(ROW + json.dumps({'row': row, **figures}), flush=True)


def serve(items: dict[str, Callable[[str], None]]) -> None:
  """Runs the item that the command line names, after a line of input.

  Args:
    items: name -> a function of the size, which calls `note`.
  """
  name, size = sys.argv[1:3]
  print(ROW + '{}', flush=True)
  if not sys.stdin.readline():
    return  # the run has ended
  attempt(name, lambda: items[name](size))


def attempt(row: str, call: Callable[[], Any]) -> None:
  """Calls a function; an exception becomes a row."""
  try:
    call()
  except Exception as error:
    traceback.print_exc()
    lines = str(error).strip().splitlines() or ['']
    note(row, error=f'{type(error).__name__}: {lines[0][:160]}')
