"""What each process of a test of evaluation runs: one of several hosts, or one that is
to be killed."""

import pathlib
import time

from absl import app, logging

from launch import process
from tests.public_benchmarks import judged_run, public_run
from vlm_rlaif_jax.core import host_failures, hosts
from vlm_rlaif_jax.evals.answers import AnswerFile
from vlm_rlaif_jax.evals.judges.cache import VerdictCache
from vlm_rlaif_jax.stages import eval as stage

SLOW = {'answers': (AnswerFile, 'append'), 'verdicts': (VerdictCache, 'put')}


def slow_down(what: str) -> None:
  """Makes a disk slow, so that there is time to kill between two rows."""
  owner, name = SLOW[what]
  write = getattr(owner, name)

  def slowly(*args, **options):
    result = write(*args, **options)
    time.sleep(0.5)
    return result

  setattr(owner, name, slowly)


@process.one_line_errors
def main(argv) -> None:
  """Evaluates the data in a folder; leaves the run in another.

  A third argument chooses the run with a judge, and what is slow: 'answers',
  'verdicts', or 'nothing'.
  """
  logging.set_verbosity(logging.ERROR)
  out, root, *slow = argv[1:]
  if not slow:
    process.join()
    host_failures.watch()
    stage.run(public_run(root), pathlib.Path(out))
    hosts.barrier('done')
    return
  if slow[0] != 'nothing':
    slow_down(slow[0])
  stage.run(judged_run(root), pathlib.Path(out))


if __name__ == '__main__':
  app.run(main)
