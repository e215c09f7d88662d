"""Sets up the process of a command: environment, devices, and how errors end it."""

import difflib
import errno
import functools
import importlib.util
import itertools
import os
import pathlib
import platform
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging

from vlm_rlaif_jax.settings.build import ConfigError, UserError


def prepare() -> None:
  """Sets the environment before anything is loaded; may restart Python.

  On a CPU, glibc is asked for huge pages: XLA allocates its buffers again for each
  call, and page faults were measured at a third of a training step.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('HF_HUB_OFFLINE', '1')
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')  # no PyTorch here
  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
  huge_pages = 'glibc.malloc.hugetlb=1'
  accelerated = os.path.exists('/dev/nvidiactl') or os.path.exists('/dev/accel0')
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  if (
    platform.libc_ver()[0] == 'glibc' and not accelerated and huge_pages not in tunables
  ):
    os.environ['GLIBC_TUNABLES'] = f'{tunables}:{huge_pages}'.strip(':')
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


COORDINATOR = flags.DEFINE_string(
  'coordinator',
  '',
  'host:port of process 0, where several processes are one run; '
  'auto: on the workers of a TPU VM, which know each other',
)
PROCESSES = flags.DEFINE_integer('processes', 0, 'how many processes', lower_bound=0)
PROCESS = flags.DEFINE_integer('process', -1, 'which of them this is, from 0')


def start() -> None:
  """Loads JAX, joins the other processes, and caches compiled programs on disk."""
  import jax

  from vlm_rlaif_jax.core import host_failures

  join()
  host_failures.watch()
  # XLA shares tuning out over the hosts of a GPU run, and waits for one that found the
  # program on its own disk; so hosts keep none unless they are given a shared folder.
  one_compiler = jax.process_count() == 1 or jax.default_backend() == 'tpu'
  if one_compiler and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = os.path.join(
      os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache')), 'vlm_rlaif_jax'
    )
    jax.config.update('jax_compilation_cache_dir', folder)


def check_one_process(stages: list[str]) -> None:
  """Raises ConfigError where several processes would share a stage that cannot be."""
  import jax

  if stages and jax.process_count() > 1:
    raise ConfigError(
      f'--processes={jax.process_count()}: {", ".join(sorted(stages))} runs in one '
      'process, on all devices of one host; run it there first'
    )


def simulate(target: str) -> None:
  """Simulates as many devices as a target like `cpux8` has; others need none."""
  kind, _, count = target.rpartition('x')
  if kind == 'cpu' and count.isdigit():
    flag = f'--xla_force_host_platform_device_count={count}'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()


def join() -> None:
  """Joins several processes to one run, from three flags or environment variables.

  On Cloud TPU VMs (`--coordinator=auto`) and under Slurm, JAX finds them by itself.
  """
  import jax

  if COORDINATOR.value == 'auto':
    try:
      jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
      line = str(error).splitlines()[0]
      raise ConfigError(
        f'--coordinator=auto: no other processes were found: {line}'
      ) from None
    return
  given = {
    'coordinator': COORDINATOR.value or os.environ.get('JAX_COORDINATOR_ADDRESS', ''),
    'processes': PROCESSES.value or _number('JAX_NUM_PROCESSES', 0),
    'process': PROCESS.value if PROCESS.value >= 0 else _number('JAX_PROCESS_ID', -1),
  }
  absent = {'coordinator': '', 'processes': 0, 'process': -1}
  missing = [name for name, value in given.items() if value == absent[name]]
  if len(missing) == len(given):
    one_worker = ',' not in os.environ.get('TPU_WORKER_HOSTNAMES', '')
    if not one_worker or _number('SLURM_NTASKS', 1) > 1:
      jax.distributed.initialize()
    elif jax.process_count() > 1:
      raise ConfigError(
        f'--coordinator is missing: {jax.process_count()} hosts share this TPU slice; '
        'give each of them --coordinator=auto'
      )
    return
  if missing:
    raise ConfigError(
      f'--{missing[0]} is missing: several processes need --coordinator=host:port, '
      '--processes=N and --process=0..N-1, or JAX_COORDINATOR_ADDRESS, '
      'JAX_NUM_PROCESSES and JAX_PROCESS_ID'
    )
  if not 0 <= given['process'] < given['processes']:
    raise ConfigError(
      f'--process: must be in 0..{given["processes"] - 1}, got {given["process"]}'
    )
  try:
    jax.distributed.initialize(
      given['coordinator'],
      given['processes'],
      given['process'],
      initialization_timeout=_number('JAX_COORDINATOR_TIMEOUT', 300),
    )
  except RuntimeError as error:
    line = str(error).splitlines()[0]
    raise ConfigError(f'--coordinator={given["coordinator"]}: {line}') from None


def _number(name: str, default: int) -> int:
  """Returns a whole number of the environment; an empty variable is none."""
  text = os.environ.get(name) or str(default)
  try:
    return int(text)
  except ValueError:
    raise ConfigError(
      f'{name}={text} in the environment: must be a whole number; unset it, or give '
      '--coordinator, --processes and --process'
    ) from None


def reject_arguments(argv: list[str]) -> None:
  """Raises ConfigError for a word that is no flag, as a setting without its dashes."""
  if len(argv) > 1:
    raise ConfigError(
      f'{argv[1]}: not a flag; settings are given as --config.<name>=<value>'
    )


def writable(path: str, flag: str) -> None:
  """Raises ConfigError for a file that cannot be written, before the work starts."""
  if not path:
    return
  file = pathlib.Path(path)
  try:
    was_there = file.exists()
    file.open('a').close()
  except OSError as error:
    raise ConfigError(f'{flag}={path}: cannot be written ({error.strerror})') from None
  if not was_there:  # work that fails leaves no empty file
    file.unlink()


def writable_folder(path: str, flag: str) -> None:
  """Makes a folder, or raises ConfigError before the work starts."""
  if not path:
    return
  try:
    pathlib.Path(path).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(f'{flag}={path}: no folder to write ({error.strerror})') from None


_FULL = (errno.ENOSPC, errno.EDQUOT)


def one_line_errors(main: Callable[..., Any]) -> Callable[..., Any]:
  """Wraps a command so that errors of the user end it in one line.

  Under several processes, any error of one ends all of them.
  """

  @functools.wraps(main)
  def wrapped(argv):
    if not flags.FLAGS['verbosity'].present:  # JAX says which platforms are not here
      logging.set_verbosity(logging.WARNING)
    try:
      return main(argv)
    except UserError as error:
      print(f'error: {error}', file=sys.stderr)
      _end(error, 2)
    except KeyboardInterrupt as error:
      print(f'stopped: {error}' if str(error) else 'stopped', file=sys.stderr)
      _end(error, 130)
    except Exception as error:
      if 'Unable to initialize backend' in str(error):
        chosen, reason = os.environ.get('JAX_PLATFORMS', ''), str(error).splitlines()[0]
        print(f'error: JAX_PLATFORMS={chosen}: {reason}', file=sys.stderr)
        _end(error, 2)
      if not _several():
        if isinstance(error, OSError) and error.errno in _FULL:
          place = f'{error.filename}: ' if error.filename else ''
          advice = 'make room, and the same command goes on from what is saved'
          print(f'error: {place}{error.strerror}; {advice}', file=sys.stderr)
          sys.exit(1)
        raise
      traceback.print_exc()
      _end(error, 1)

  return wrapped


def _several() -> bool:
  """Returns whether this process has joined others."""
  distributed = sys.modules.get('jax._src.distributed')
  return distributed is not None and distributed.global_state.num_processes > 1


def _end(error: BaseException, status: int) -> NoReturn:
  """Ends this process, and with it the others of a run."""
  if _several():
    from vlm_rlaif_jax.core import host_failures

    host_failures.end(error, status)
  sys.exit(status)


def run(main: Callable[..., Any]) -> None:
  """Runs a command like `app.run`, with errors in flags as one line."""
  app.run(main, flags_parser=_parse)


_REWORDED = (  # messages of the parsers of flags -> in the words of a ConfigError
  (r'^vlm_rlaif_jax\.[\w.]+: ', ''),
  (
    r"\('Non-boolean argument to boolean flag', (.*)\)$",
    r'must be True or False, got \1',
  ),
  (r'invalid literal for int\(\) with base 10: ', 'must be a whole number, got '),
  (
    r"^module '.*' has no attribute 'get_config'$",
    '--config: no get_config in the file',
  ),
  (r'could not convert string to float: ', 'must be a number, got '),
)


def _parse(argv: list[str]) -> Any:
  """Parses flags with absl; errors of it and of ml_collections become one line."""
  try:
    return flags.FLAGS(argv)
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
    OSError,
  ) as error:
    lines = str(error).strip().strip('"').splitlines()
    message = lines[-1].replace('\\n', ' ') if lines else repr(error)
    for pattern, replacement in _REWORDED:
      message = re.sub(pattern, replacement, message)
    fail(_misspelled(argv) or message)


def _misspelled(argv: list[str]) -> str:
  """Describes the first `--config.a.b` that names no field; '' if all do."""
  config: Any = _config_of(argv)
  for argument in argv[1:] if config is not None else ():
    option = argument.lstrip('-').partition('=')[0]
    if not option.startswith('config.'):
      continue
    section: Any = config
    path = 'config'
    for name in option.split('.')[1:]:
      names = list(section) if hasattr(section, 'keys') else []
      if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f'did you mean {path}.{near[0]}?' if near else ', '.join(names)
        return f'--{option}: no field {name!r} in {path}: {hint or "it is a value"}'
      section, path = section[name], f'{path}.{name}'
  return ''


def _config_of(argv: list[str]) -> Any:
  """Returns the config of `--config` without overrides; None if it cannot be made."""
  given = [a.partition('=')[2] for a in argv if a.startswith('--config=')]
  given += [b for a, b in itertools.pairwise(argv) if a == '--config']
  file, _, argument = given[-1].partition(':') if given else ('', '', '')
  spec = importlib.util.spec_from_file_location('config_of_flags', file)
  if spec is None or spec.loader is None or not os.path.isfile(file):
    return None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    return None
  try:
    return module.get_config(argument)
  except UserError:
    return None


def fail(message: object) -> NoReturn:
  """Prints one line to stderr and exits with status 2."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)
