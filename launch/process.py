"""Setting up the process: environment, devices, how errors leave it."""

import functools
import os
import platform
import sys
from typing import NoReturn

from vlm_rlaif_jax.config.build import UserError


def prepare() -> None:
  """What must be in the environment before anything is loaded; may restart Python.

  On a CPU, glibc is asked for huge pages: XLA allocates its buffers anew for each call,
  and page faults were measured at a third of a training step.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('HF_HUB_OFFLINE', '1')
  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
  wanted = 'glibc.malloc.hugetlb=1'
  accelerated = os.path.exists('/dev/nvidiactl') or os.path.exists('/dev/accel0')
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  if platform.libc_ver()[0] == 'glibc' and not accelerated and wanted not in tunables:
    os.environ['GLIBC_TUNABLES'] = f'{tunables}:{wanted}'.strip(':')
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def start() -> None:
  """Loads JAX; programs compiled once are kept on disk."""
  import jax

  cache = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if cache is None:
    folder = os.path.join(
      os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache')), 'vlm_rlaif_jax'
    )
    jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def one_line_errors(main):
  """What the user can put right is shown without a traceback."""

  @functools.wraps(main)
  def wrapped(argv):
    try:
      return main(argv)
    except UserError as error:
      fail(error)
    except KeyboardInterrupt as error:
      print(f'stopped: {error or "nothing to save"}', file=sys.stderr)
      print('the same command goes on from there', file=sys.stderr)
      sys.exit(130)

  return wrapped


def fail(message) -> NoReturn:
  """One line on stderr, and exit status 2."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)
