"""Assigns samples to steps, as a pure function of their shapes and a seed.

So the number of a step is all that a resumed run has to know of its position in the
data. Samples of one shape are batched together; few shapes exist, so little is
compiled.
"""

import concurrent.futures
import dataclasses
import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

T = TypeVar('T')

AHEAD = 1  # batches that lie ready for the next step
# What `prefetch` keeps beside the batch in use: those, and the one that it is making.
PREFETCHED = AHEAD + 1
BLANK = -1  # in place of a sample: fills the last batch of a shape, weighs nothing


@dataclasses.dataclass(frozen=True)
class Step:
  """The samples of one batch, and the shape that they share."""

  shape: Hashable
  indices: np.ndarray  # int[B]; BLANK where there are too few


class LengthError(ValueError):
  """A text that fits no bucket."""


def bucket(length: int, buckets: Sequence[int]) -> int:
  """Returns the smallest bucket that fits `length`; raises LengthError if none does."""
  for size in buckets:
    if length <= size:
      return size
  raise LengthError(f'{length} tokens do not fit the longest bucket {buckets[-1]}')


def plan_batches(
  shapes: Sequence[Hashable], batch: int, seed: int | Sequence[int]
) -> list[Step]:
  """Returns one pass over all samples, shuffled, every sample exactly once.

  The last batch of each shape is filled up with BLANK.
  """
  rng = np.random.default_rng(seed)
  groups: dict[Hashable, list[int]] = {}
  for index in rng.permutation(len(shapes)):
    groups.setdefault(shapes[index], []).append(int(index))
  steps = []
  for shape in sorted(groups, key=repr):
    members = groups[shape]
    members += [BLANK] * (-len(members) % batch)
    steps += [
      Step(shape, np.asarray(members[i : i + batch]))
      for i in range(0, len(members), batch)
    ]
  return [steps[i] for i in rng.permutation(len(steps))]


def in_order(shapes: Sequence[Hashable], batch: int) -> list[Step]:
  """Returns one pass in the order of the samples within each shape; for inference."""
  groups: dict[Hashable, list[int]] = {}
  for index, shape in enumerate(shapes):
    groups.setdefault(shape, []).append(index)
  steps = []
  for shape, members in groups.items():
    members += [BLANK] * (-len(members) % batch)
    steps += [
      Step(shape, np.asarray(members[i : i + batch]))
      for i in range(0, len(members), batch)
    ]
  return steps


def prefetch(
  build: Callable[[T], dict], items: Iterable[T], ahead: int = AHEAD
) -> Iterator[dict]:
  """Yields `build` of every item in order, from a thread ahead of the consumer."""
  ready: queue.Queue = queue.Queue(maxsize=ahead)
  stopped = threading.Event()
  end = object()

  def put(item: Any) -> bool:
    while not stopped.is_set():
      try:
        ready.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def work() -> None:
    try:
      for item in items:
        if not put(build(item)):
          return
      put(end)
    except BaseException as error:  # handed to the consumer, which raises it
      put(error)

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  try:
    while True:
      item = ready.get()
      if item is end:
        return
      if isinstance(item, BaseException):
        raise item
      yield item
  finally:
    stopped.set()
    thread.join()


def parallel(work: Callable[[T], object], items: Iterable[T], workers: int) -> Iterator:
  """Yields results in the order of the items, with a few more than `workers` ahead."""
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    waiting: list[concurrent.futures.Future] = []
    for item in items:
      waiting.append(pool.submit(work, item))
      if len(waiting) > 2 * workers:
        yield waiting.pop(0).result()
    for future in waiting:
      yield future.result()
