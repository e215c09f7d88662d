"""Items that do what an item should not, for the test of the run around them."""

import os
import time

from launch import bench_gpu


def hangs(size: str) -> None:
  bench_gpu.note('before', seconds=2.0, bytes=4.0)
  time.sleep(60)


def crashes(size: str) -> None:
  os.abort()


def fails(size: str) -> None:
  raise MemoryError(f'{size}: no room\nand more')


if __name__ == '__main__':
  bench_gpu.serve({'hangs': hangs, 'crashes': crashes, 'fails': fails})
