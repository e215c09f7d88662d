"""What each process of a test of evaluation on several hosts runs."""

import pathlib

from absl import app, logging

from launch import process
from tests.public_benchmarks import public_run
from vlm_rlaif_jax.core import host_failures, hosts
from vlm_rlaif_jax.stages import eval as stage


@process.one_line_errors
def main(argv) -> None:
  """Evaluates the data in a folder; leaves the run in another."""
  logging.set_verbosity(logging.ERROR)
  process.join()
  host_failures.watch()
  stage.run(public_run(argv[2]), pathlib.Path(argv[1]))
  hosts.barrier('done')


if __name__ == '__main__':
  app.run(main)
