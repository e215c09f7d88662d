"""Ends every process of a run when one of them fails, with the first error on each.

A process that fails would leave the others in a collective that it never joins. So it
publishes its error in the key-value store of `jax.distributed`, which keeps the first
one, and a thread of every process looks there once a second.
"""

import atexit
import json
import os
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax
from jax._src import distributed

from vlm_rlaif_jax.settings.build import UserError

KEY = 'vlm_rlaif_jax/failure'
EVERY_S = 1.0  # between two looks
GRACE_S = 3.0  # for a process that fails by itself, to show its own error
WAIT_S = 15.0  # of host 0 for the others: the store ends with its process
LONGEST = 20_000  # characters of a traceback that travel

_failing = threading.Event()  # the main thread of this process has an error of its own
_finished = threading.Event()


def watch() -> None:
  """Starts to look for errors of other hosts; does nothing if there are none."""
  if jax.process_count() > 1:
    atexit.register(_finished.set)  # before jax.distributed ends, which came first
    threading.Thread(target=_look, name='host failures', daemon=True).start()


def end(error: BaseException, status: int) -> NoReturn:
  """Ends this process, whose error has been printed, and with it all others.

  Args:
    status: of the process.
  """
  _failing.set()
  sys.stdout.flush()
  sys.stderr.flush()
  client = _client()
  if client is None or jax.process_count() == 1:
    sys.exit(status)
  host = jax.process_index()
  failure = {'host': host, 'status': status, 'text': _text_of(error)}
  try:
    client.key_value_set(KEY, json.dumps(failure))
  except Exception as problem:  # another host was first, or the store has ended
    del problem
  _acknowledge(client)
  if host == 0:
    _wait_for_others(client)
  # Not by way of atexit: jax.distributed would wait there for the others.
  os._exit(status)


def _text_of(error: BaseException) -> str:
  """Returns what other hosts print of an error: a user's is one line."""
  if isinstance(error, UserError):
    return str(error)
  return ''.join(traceback.format_exception(error)).rstrip()[-LONGEST:]


def _look() -> None:
  """Ends this process once another one has failed."""
  client = _client()
  while client is not None and not _finished.wait(EVERY_S):
    failure = _read(client, KEY)
    if failure is None:
      continue
    failure = json.loads(failure)
    if _failing.wait(GRACE_S) or _finished.is_set():
      return  # the main thread shows an error of its own, and ends the process
    host, text = failure['host'], failure['text']
    one_line = '\n' not in text
    message = f'error: host {host}: {text}' if one_line else f'host {host}:\n{text}'
    print(message, file=sys.stderr, flush=True)
    _acknowledge(client)
    if jax.process_index() == 0:
      _wait_for_others(client)
    os._exit(failure['status'])


def _read(client: Any, key: str) -> str | None:
  """Returns a value of the store; None where there is none, or no store any more."""
  try:
    return client.key_value_try_get(key)
  except Exception:
    return None


def _acknowledge(client: Any) -> None:
  """Leaves word that this host has shown the error and is about to end."""
  try:
    client.key_value_set(f'{KEY}/{jax.process_index()}', '1', allow_overwrite=True)
  except Exception as problem:  # the store has ended, and this process does, too
    del problem


def _wait_for_others(client: Any) -> None:
  """Waits until every other host has shown the error."""
  until = time.monotonic() + WAIT_S
  missing = set(range(1, jax.process_count()))
  while missing and time.monotonic() < until:
    missing = {host for host in missing if _read(client, f'{KEY}/{host}') is None}
    time.sleep(0.1)


def _client() -> Any:
  """Returns the client of the key-value store; None where there is one process."""
  return distributed.global_state.client
