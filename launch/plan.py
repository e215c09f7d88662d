"""Compiles every phase of a stage for machines that are not at hand.

  python -m launch.plan --config configs/ppo.py:7b --target a100x8
  python -m launch.plan --config configs/ppo.py:7b,layout=v5e-16 --target v5e:4x4
  python -m launch.plan --config configs/sft.py:7b --target v5p:2x2x2 --json plan.json
  python -m launch.plan --config configs/ppo.py --target cpux8
  python -m launch.plan --config configs/ppo.py:7b,layout=a100x8 --kernels --hlo=DIR
  python -m launch.plan --config configs/ppo.py:7b,layout=a100x8 --texts=DIR

Per phase, in GB of one device: arguments, other resident arrays, temporaries, and their
sum against the chip; operations by formula; seconds at the chip's full rates ('remat':
with recomputation); seconds on the links. Overrides of the config answer what-ifs.

`--texts` compiles nothing: it lists the kernels of programs that `--hlo` kept, also of
another checkout, so that two of them are counted by the same arithmetic.
"""

import functools
import json
import os
import pathlib
import tempfile
from typing import Any

from absl import flags, logging

from launch import jobs, process, train
from vlm_rlaif_jax.settings.build import ConfigError

_TARGET = flags.DEFINE_string('target', 'a100x8', 'a100x8, h200x8, v5e:4x4, ...')
_JSON = flags.DEFINE_string('json', '', 'file for the same as data')
_PHASES = flags.DEFINE_list('phases', [], 'only these phases')
_TABLE = flags.DEFINE_bool('table', False, 'also every leaf: shape, layout, bytes')
_KERNELS = flags.DEFINE_bool(
  'kernels', False, 'also every loop: kernels, bytes, least seconds, CUDA graphs'
)
_HLO = flags.DEFINE_string('hlo', '', 'folder for the compiled HLO')
_TEXTS = flags.DEFINE_string(
  'texts', '', 'folder of compiled HLO: list its kernels, compile nothing'
)


@process.one_line_errors
def main(argv) -> None:
  process.reject_arguments(argv)
  logging.set_verbosity(logging.ERROR)
  settings = train.settings_of_flags()
  if _TEXTS.value and (_JSON.value or _HLO.value):
    raise ConfigError(
      '--texts compiles nothing: leave out --json and --hlo, which are of what a plan '
      'compiles'
    )
  process.writable(_JSON.value, '--json')
  process.writable_folder(_HLO.value, '--hlo')
  process.simulate(_TARGET.value)
  import jax

  from vlm_rlaif_jax.core import sharding, sharding_table
  from vlm_rlaif_jax.plan import fit, graphs, measure, phases, show, targets

  target = targets.parse(_TARGET.value)
  dump = tempfile.TemporaryDirectory()  # of XLA, for --kernels
  if _KERNELS.value and target.platform == 'cuda':
    more = f'{graphs.DUMP}{dump.name}'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {more}'.strip()
  devices = targets.devices(target)
  loras = jobs.loras(settings)
  resident = fit.check(settings, devices, target.memory, loras)
  mesh = sharding.make_mesh(settings.mesh, devices)
  print(show.heading(target, mesh, settings.stage))
  print(f'from the first step to the last: {resident / fit.GB:.2f} GB a device')
  everything = phases.of(settings, mesh, loras)
  names = list(dict.fromkeys(phase.name.split(' ')[0] for phase in everything))
  if absent := set(_PHASES.value) - set(names):
    raise ConfigError(f'--phases: {absent.pop()!r} is none of {", ".join(names)}')
  if _TABLE.value:
    print('\n'.join(sharding_table.lines(everything[-1].arguments)))
  chosen = [
    phase
    for phase in everything
    if not _PHASES.value or phase.name.split(' ')[0] in _PHASES.value
  ]
  if _TEXTS.value:
    print('\n'.join(show.texts(pathlib.Path(_TEXTS.value), chosen, target)))
    return
  print(show.COLUMNS, flush=True)
  measured = []
  for phase in chosen:
    texts = {}
    measured.append(measure.measure(phase, target, functools.partial(_keep, texts)))
    print(show.row(measured[-1]))
    print('\n'.join(show.details(measured[-1])), flush=True)
    if _KERNELS.value and texts:
      folder = pathlib.Path(dump.name)
      print('\n'.join(show.loops(texts[phase.name], phase, target, folder)), flush=True)
    jax.clear_caches()
  dump.cleanup()
  planned = {id(phase) for phase in chosen}
  absent = [one.name for one in everything if one.times and id(one) not in planned]
  print(show.closing(measured, settings.stage, absent))
  for phase in everything:
    if phase.note:
      print(phase.note)
  if _JSON.value:
    data = show.data(target, mesh, settings.stage, measured, absent)
    pathlib.Path(_JSON.value).write_text(json.dumps(data, indent=1) + '\n')


def _keep(texts: dict[str, str], name: str, compiled: Any) -> None:
  """Keeps the text of a compiled program under its name, and in the folder of --hlo."""
  texts[name] = compiled.as_text() or ''
  if _HLO.value:
    from vlm_rlaif_jax.plan import show

    (pathlib.Path(_HLO.value) / show.file_name(name)).write_text(texts[name])


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'  # only the compiler is used, never a device
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  process.prepare()
  process.run(main)
