"""Bytes of one training step of the tiny size: planned, and of this process."""

import ctypes
import json
import os
import pathlib
import re
import time

import jax
import numpy as np

from configs import init
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan import measure, phases, targets
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.init import InitRun
from vlm_rlaif_jax.settings.models import LoraConfig


def in_memory(name: str) -> int:
  """Bytes of this process: 'VmRSS' now, 'VmHWM' at most since the last reset."""
  text = pathlib.Path('/proc/self/status').read_text()
  return 1024 * int(re.search(rf'{name}:\s+(\d+)', text)[1])


def real(x):
  """Zeros in place of a shape."""
  if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.device_put(jax.random.key(0), x.sharding)
  return jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)


def main() -> None:
  # On one core, before XLA counts them: each thread more has room of its own to pack
  # factors of matrix products in, as much as who runs when makes of it.
  os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
  settings = from_config_dict(InitRun, init.get_config('tiny'))
  mesh = sharding.make_mesh(settings.mesh, jax.devices()[:1])
  phase = phases.of(settings, mesh, (LoraConfig(), LoraConfig()))[-1]
  planned = measure.measure(phase, targets.parse('cpux1'))
  arguments = jax.tree.map(real, phase.arguments)
  key = arguments[0].key.dtype
  arrays = [x for x in jax.tree.leaves(arguments) if x.dtype != key]
  live = sum(x.addressable_data(0).nbytes for x in arrays)
  # The first call also links the program; its temporaries are freed a little later.
  state, _ = jax.block_until_ready(phase.program(*arguments))
  time.sleep(1)
  ctypes.CDLL(None).malloc_trim(0)
  pathlib.Path('/proc/self/clear_refs').write_text('5')
  before = in_memory('VmRSS')
  jax.block_until_ready(phase.program(state, *arguments[1:]))
  growth = in_memory('VmHWM') - before
  said = {'arguments': planned.arguments, 'temporary': planned.temporary}
  print(json.dumps([said, {'arguments': live, 'temporary': growth}]))


if __name__ == '__main__':
  main()
