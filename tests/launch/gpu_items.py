"""Items that go wrong, for the test of the run of `bench gpu`."""

import os
import time

from launch.bench.gpu_process import note, serve


def hangs(size: str) -> None:
  note('before', seconds=2.0, bytes=4.0)
  time.sleep(60)


def crashes(size: str) -> None:
  os.abort()


def fails(size: str) -> None:
  raise MemoryError(f'{size}: no room\nand more')


if __name__ == '__main__':
  serve({'hangs': hangs, 'crashes': crashes, 'fails': fails})
