"""Which samples make which step: a pure function of (sizes, seed), so a step number is
the whole position in the data. Samples of one shape are batched together, and few
shapes exist, so little is compiled."""

import concurrent.futures
import dataclasses
import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar('T')

BLANK = -1  # in place of a sample: fills up the last batch of a shape, counts nowhere


@dataclasses.dataclass(frozen=True)
class Step:
  """One batch to be: the shape its samples share, and which they are."""

  shape: Hashable
  indices: np.ndarray  # int[B]; BLANK where there are too few


def bucket(length: int, buckets: Sequence[int]) -> int:
  """The least bucket that holds `length`."""
  for size in buckets:
    if length <= size:
      return size
  raise ValueError(f'{length} tokens do not fit the longest bucket {buckets[-1]}')


def plan_batches(
  shapes: Sequence[Hashable], batch: int, seed: int | Sequence[int]
) -> list[Step]:
  """One pass over all samples, shuffled, every sample exactly once.

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
  """One pass in the order of the samples within each shape; for inference."""
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
  build: Callable[[T], dict], items: Iterable[T], ahead: int = 2
) -> Iterator[dict]:
  """`build` of every item, in order, made in a thread while the device computes."""
  ready: queue.Queue = queue.Queue(maxsize=ahead)
  stopped = threading.Event()
  end = object()

  def put(item) -> bool:
    while not stopped.is_set():
      try:
        ready.put(item, timeout=0.1)
        return True
      except queue.Full:
        continue
    return False

  def work():
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
  """Results in the order of the items; at most a few more than `workers` in flight."""
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    waiting: list[concurrent.futures.Future] = []
    for item in items:
      waiting.append(pool.submit(work, item))
      if len(waiting) > 2 * workers:
        yield waiting.pop(0).result()
    for future in waiting:
      yield future.result()
