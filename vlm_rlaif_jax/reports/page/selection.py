"""Which of many items are worth a look: some of each group, in their order."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

T = TypeVar('T')
A_VIDEO = 2  # samples of one video of a kind


def few_of_each(items: Iterable[T], group: Callable[[T], Hashable]) -> list[T]:
  """Returns items in their order, at most `A_VIDEO` of a group."""
  counts: dict[Hashable, int] = {}
  selected = []
  for item in items:
    counts[group(item)] = counts.get(group(item), 0) + 1
    if counts[group(item)] <= A_VIDEO:
      selected.append(item)
  return selected


def in_turn(items: Sequence[T], group: Callable[[T], Hashable]) -> list[T]:
  """Returns items so that the first of every group come first, then the second."""
  groups: dict[Hashable, list[T]] = {}
  for item in items:
    groups.setdefault(group(item), []).append(item)
  turns = itertools.zip_longest(*groups.values())
  return [item for turn in turns for item in turn if item is not None]
