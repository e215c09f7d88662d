"""Compiles the programs of a stage before its first step, several at a time.

A part of every compilation runs on one thread, tracing above all, and leaves the other
cores idle. What an executable is does not depend on what is compiled beside it.
"""

import concurrent.futures
import os
from collections.abc import Callable, Iterable, Sequence

import jax

from vlm_rlaif_jax.core.sharding import Program


def ahead(
  jobs: Sequence[tuple[Program, tuple]],
  progress: Callable[[Iterable, int], Iterable] = lambda done, total: done,
) -> None:
  """Compiles programs for arguments that they will be called with.

  Several hosts compile one program after another, in the same order.

  Args:
    jobs: programs, each with its arguments or their shapes, see `Program.compile`.
    progress: wraps what has been compiled; the second argument is how many there are.

  Raises:
    whatever a compilation raises; what is being compiled then is waited for.
  """
  workers = min(len(jobs), os.cpu_count() or 1) if jax.process_count() == 1 else 1
  with concurrent.futures.ThreadPoolExecutor(max(workers, 1)) as pool:
    futures = [pool.submit(program.compile, *args) for program, args in jobs]
    try:
      for future in progress(concurrent.futures.as_completed(futures), len(jobs)):
        future.result()
    finally:
      for future in futures:
        future.cancel()
