"""Setting up the process: environment, devices, how errors leave it."""

import difflib
import functools
import importlib.util
import itertools
import os
import pathlib
import platform
import re
import sys
from typing import Any, NoReturn

from absl import app, flags

from vlm_rlaif_jax.settings.build import ConfigError, UserError


def prepare() -> None:
  """What must be in the environment before anything is loaded; may restart Python.

  On a CPU, glibc is asked for huge pages: XLA allocates its buffers anew for each call,
  and page faults were measured at a third of a training step.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  os.environ.setdefault('HF_HUB_OFFLINE', '1')
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')  # no PyTorch here
  os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
  wanted = 'glibc.malloc.hugetlb=1'
  accelerated = os.path.exists('/dev/nvidiactl') or os.path.exists('/dev/accel0')
  tunables = os.environ.get('GLIBC_TUNABLES', '')
  if platform.libc_ver()[0] == 'glibc' and not accelerated and wanted not in tunables:
    os.environ['GLIBC_TUNABLES'] = f'{tunables}:{wanted}'.strip(':')
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
  """Loads JAX, joins the other processes; programs compiled once are kept on disk."""
  import jax

  join()
  # XLA shares tuning out over the hosts of a GPU run, and waits for one that found the
  # program on its own disk; so hosts keep none unless told of a folder that they share.
  alone = jax.process_count() == 1 or jax.default_backend() == 'tpu'
  if alone and 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    folder = os.path.join(
      os.environ.get('XDG_CACHE_HOME', os.path.expanduser('~/.cache')), 'vlm_rlaif_jax'
    )
    jax.config.update('jax_compilation_cache_dir', folder)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)


def check_one_process(stages: list[str]) -> None:
  """Raises ConfigError where several processes would share a stage that cannot be."""
  import jax

  if stages and jax.process_count() > 1:
    raise ConfigError(
      f'--processes={jax.process_count()}: {", ".join(sorted(stages))} runs in one '
      'process, on all devices of one host; run it there first'
    )


def simulate(target: str) -> None:
  """As many simulated devices as a target `cpux8` asks for; others ask for none."""
  kind, _, count = target.rpartition('x')
  if kind == 'cpu' and count.isdigit():
    flag = f'--xla_force_host_platform_device_count={count}'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()


def join() -> None:
  """Makes several processes one run, from three flags or environment variables.

  On Cloud TPU VMs (`--coordinator=auto`) and under Slurm JAX knows them by itself.
  """
  import jax

  if COORDINATOR.value == 'auto':
    try:
      jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
      line = str(error).splitlines()[0]
      raise ConfigError(
        f'--coordinator=auto: nothing known of others: {line}'
      ) from None
    return
  said = {
    'coordinator': COORDINATOR.value or os.environ.get('JAX_COORDINATOR_ADDRESS', ''),
    'processes': PROCESSES.value or int(os.environ.get('JAX_NUM_PROCESSES', 0)),
    'process': PROCESS.value
    if PROCESS.value >= 0
    else int(os.environ.get('JAX_PROCESS_ID', -1)),
  }
  unsaid = {'coordinator': '', 'processes': 0, 'process': -1}
  missing = [name for name, value in said.items() if value == unsaid[name]]
  if len(missing) == len(said):
    alone = ',' not in os.environ.get('TPU_WORKER_HOSTNAMES', '')
    if not alone or int(os.environ.get('SLURM_NTASKS', 1)) > 1:
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
  if not 0 <= said['process'] < said['processes']:
    raise ConfigError(
      f'--process: must be in 0..{said["processes"] - 1}, got {said["process"]}'
    )
  try:
    jax.distributed.initialize(
      said['coordinator'],
      said['processes'],
      said['process'],
      initialization_timeout=int(os.environ.get('JAX_COORDINATOR_TIMEOUT', 300)),
    )
  except RuntimeError as error:
    line = str(error).splitlines()[0]
    raise ConfigError(f'--coordinator={said["coordinator"]}: {line}') from None


def no_words(argv) -> None:
  """Refuses what is not a flag, as a setting without its dashes."""
  if len(argv) > 1:
    raise ConfigError(
      f'{argv[1]}: not a flag; settings are given as --config.<name>=<value>'
    )


def writable(path: str, flag: str) -> None:
  """Refuses a file that cannot be written, before the work that would end up in it."""
  if not path:
    return
  try:
    pathlib.Path(path).open('a').close()
  except OSError as error:
    raise ConfigError(f'{flag}={path}: cannot be written ({error.strerror})') from None


def writable_folder(path: str, flag: str) -> None:
  """Makes a folder, or refuses it before the work that would end up in it."""
  if not path:
    return
  try:
    pathlib.Path(path).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(f'{flag}={path}: no folder to write ({error.strerror})') from None


def one_line_errors(main):
  """What the user can put right is shown without a traceback."""

  @functools.wraps(main)
  def wrapped(argv):
    try:
      return main(argv)
    except UserError as error:
      fail(error)
    except KeyboardInterrupt as error:
      saved = f': {error}; the same command goes on from there' if str(error) else ''
      print(f'stopped{saved}', file=sys.stderr)
      sys.exit(130)

  return wrapped


def run(main) -> None:
  """`app.run`, with errors in flags as one line."""
  app.run(main, flags_parser=_parse)


_SAID = (  # by the parsers of flags -> in the words of a ConfigError
  (r'^vlm_rlaif_jax\.[\w.]+: ', ''),
  (
    r"\('Non-boolean argument to boolean flag', (.*)\)$",
    r'must be True or False, got \1',
  ),
  (r'invalid literal for int\(\) with base 10: ', 'must be a whole number, got '),
  (r'could not convert string to float: ', 'must be a number, got '),
)


def _parse(argv):
  """absl's flag parser, with its and ml_collections' errors cut to what they say."""
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
    said = lines[-1].replace('\\n', ' ') if lines else repr(error)
    for theirs, ours in _SAID:
      said = re.sub(theirs, ours, said)
    fail(_misspelled(argv) or said)


def _misspelled(argv) -> str:
  """The first `--config.a.b` that names no field, and the fields that there are."""
  config: Any = _config_of(argv)
  for argument in argv[1:] if config is not None else ():
    option = argument.lstrip('-').partition('=')[0]
    if not option.startswith('config.'):
      continue
    section: Any = config
    known = 'config'
    for name in option.split('.')[1:]:
      names = list(section) if hasattr(section, 'keys') else []
      if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        meant = f'did you mean {known}.{near[0]}?' if near else ', '.join(names)
        return f'--{option}: no field {name!r} in {known}: {meant or "it is a value"}'
      section, known = section[name], f'{known}.{name}'
  return ''


def _config_of(argv):
  """What `--config` names, without the overrides; None where it cannot be made."""
  given = [a.partition('=')[2] for a in argv if a.startswith('--config=')]
  given += [b for a, b in itertools.pairwise(argv) if a == '--config']
  file, _, argument = given[-1].partition(':') if given else ('', '', '')
  spec = importlib.util.spec_from_file_location('config_of_flags', file)
  if spec is None or spec.loader is None or not os.path.isfile(file):
    return None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  try:
    return module.get_config(argument)
  except UserError:
    return None


def fail(message) -> NoReturn:
  """One line on stderr, and exit status 2."""
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)
