"""What each process of a test of evaluation runs: one of several hosts, or one whose
children are killed."""

import json
import os
import pathlib
import signal
import time

from absl import app, logging

from launch import process
from tests.public_benchmarks import families_run, judged_run
from vlm_rlaif_jax.core import host_failures, hosts
from vlm_rlaif_jax.evals.answers import AnswerFile
from vlm_rlaif_jax.evals.judges.cache import VerdictCache
from vlm_rlaif_jax.stages import eval as stage

SLOW = {'answers': (AnswerFile, 'append'), 'verdicts': (VerdictCache, 'put')}
DEADLINE_S = 500.0


def slow_down(what: str) -> None:
  """Makes a disk slow, so that there is time to kill between two rows."""
  owner, name = SLOW[what]
  write = getattr(owner, name)

  def slowly(*args, **options):
    result = write(*args, **options)
    time.sleep(0.5)
    return result

  setattr(owner, name, slowly)


def evaluate_in_a_child(root: str, out: pathlib.Path, slow: str = '') -> int:
  """Returns the id of a process that evaluates; JAX has no devices before it does."""
  child = os.fork()
  if child:
    return child
  status = 1
  try:
    if slow:
      slow_down(slow)
    stage.run(judged_run(root), out)
    status = 0
  finally:
    os._exit(status)


def kill_after(child: int, path: pathlib.Path, rows: int) -> dict[str, int]:
  """Ends a process by SIGKILL as soon as a file has some rows; returns how it went."""
  until = time.monotonic() + DEADLINE_S
  while not (path.is_file() and path.read_bytes().count(b'\n') >= rows):
    if time.monotonic() > until or os.waitpid(child, os.WNOHANG)[0]:
      raise RuntimeError(f'{path} has not got {rows} rows')
    time.sleep(0.02)
  os.kill(child, signal.SIGKILL)
  status = os.waitpid(child, 0)[1]
  return {'signal': os.WTERMSIG(status), 'rows': path.read_bytes().count(b'\n')}


def kill_twice(root: str, out: pathlib.Path) -> None:
  """Leaves a run that was killed twice and one that was not, and what was there."""
  folder = out / 'killed' / 'tiny' / 'eval'
  answers = folder / 'msvd_qa' / 'answers_base.jsonl'
  verdicts = folder / 'verdict_cache.jsonl'
  report = {}
  for slow, path in (('answers', answers), ('verdicts', verdicts)):
    child = evaluate_in_a_child(root, out / 'killed', slow)
    report[slow] = kill_after(child, path, 3)
    report[slow]['left'] = path.read_text()
    report[slow]['is_done'] = (folder / 'summary.json').exists()
  for name in ('killed', 'whole'):
    child = evaluate_in_a_child(root, out / name)
    report[name] = os.waitpid(child, 0)[1]
  (out / 'report.json').write_text(json.dumps(report))


@process.one_line_errors
def main(argv) -> None:
  """Evaluates the data in a folder; leaves the run in another.

  With a third argument, 'killed': a run that is killed twice.
  """
  logging.set_verbosity(logging.ERROR)
  out, root = pathlib.Path(argv[1]), argv[2]
  if argv[3:] == ['killed']:
    kill_twice(root, out)
    return
  process.join()
  host_failures.watch()
  stage.run(families_run(root), out)
  hosts.barrier('done')


if __name__ == '__main__':
  app.run(main)
