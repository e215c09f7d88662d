"""Time and peak memory of converting a full-sized checkpoint; not a test.

  python -m tests.weights.measure /tmp/big 7b            # 13.5 GB in, as much out
  python -m tests.weights.measure /tmp/big 13b --bits=4  # further flags are passed on

Writes a random checkpoint in the original LLaVA layout (bfloat16, shards of at most
10 GB) unless it is there, converts it in a process of its own, and says how long that
took, of the clock and of the CPU, and what the process held at most (ru_maxrss, pages
of mapped files included). Nothing is deleted but an earlier output.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import time

import ml_dtypes
import numpy as np

from configs import models
from vlm_rlaif_jax.weights import (
  folders,
  model_config,
  names,
  tensor_files,
  weight_table,
)

BLOCK = 1 << 24  # random numbers are drawn once, and used again shifted


def make(folder: pathlib.Path, size: str) -> None:
  """A checkpoint of random weights; `folder` appears when it is whole."""
  cfg = models.named(size)
  dtype = np.dtype(ml_dtypes.bfloat16)
  shapes = {
    names.llava_name(source): (leaf.foreign_shape, dtype)
    for leaf in weight_table.weights(cfg)
    if leaf.part != 'text' and leaf.name != 'tower/projection/w'
    for source in leaf.sources
  }
  rng = np.random.default_rng(0)
  block = (0.02 * rng.standard_normal(BLOCK, np.float32)).astype(dtype)
  with folders.atomic_folder(folder) as part:
    shards = tensor_files.ShardWriter(part, shapes, 10 * 10**9)
    for number, (name, (shape, _)) in enumerate(shapes.items()):
      count = int(np.prod(shape))
      shifted = np.roll(block, 977 * number)
      shards.put(name, np.resize(shifted, count).reshape(shape))
    shards.close()
    config = model_config.to_config_json(cfg, 'llava', 'bfloat16', cfg.llama.vocab)
    (part / 'config.json').write_text(json.dumps(config))


def main(root: str, size: str, *flags: str) -> None:
  source = pathlib.Path(root) / f'llava-{size}'
  if not source.exists():
    clock = time.perf_counter()
    make(source, size)
    print(f'made {source} in {time.perf_counter() - clock:.0f} s', flush=True)
  read = sum(file.stat().st_size for file in source.glob('*.safetensors'))
  out = pathlib.Path(root) / f'out-{size}'
  command = [sys.executable, '-m', 'launch.convert', str(source), str(out), *flags]
  clock = time.perf_counter()
  status = subprocess.call([*command, '--overwrite', '--noprogress'])
  seconds = time.perf_counter() - clock
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  written = sum(os.path.getsize(file) for file in out.rglob('*.safetensors'))
  print(
    f'{size} {" ".join(flags)}: exit {status}, {read / 1e9:.2f} GB in, '
    f'{written / 1e9:.2f} GB out, {seconds:.0f} s at a load of '
    f'{os.getloadavg()[1]:.0f} on {os.cpu_count()} cores, '
    f'{used.ru_utime + used.ru_stime:.0f} s of CPU, peak resident '
    f'{used.ru_maxrss / 1e6:.2f} GB'
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
