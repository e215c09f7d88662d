"""Sums up the trace of a run in the terminal: programs, scopes, operations.

  python -m launch.train --config configs/ppo.py:7b --config.profile.steps=10:13
  python -m launch.profile runs/7b/ppo

The trace itself opens in xprof and TensorBoard: --logdir runs/7b/ppo/profile.
"""

import os
import pathlib

from absl import flags

from launch import process
from vlm_rlaif_jax.settings.build import ConfigError

_TOP = flags.DEFINE_integer('top', 15, 'rows of each table', lower_bound=1)


@process.one_line_errors
def main(argv) -> None:
  if len(argv) != 2:
    raise ConfigError('name the folder of one stage: python -m launch.profile RUN')
  from vlm_rlaif_jax.train.profiling import trace

  print('\n'.join(trace.lines(trace.read(pathlib.Path(argv[1])), _TOP.value)))


if __name__ == '__main__':
  os.environ['JAX_PLATFORMS'] = 'cpu'
  process.run(main)
