import threading
import time

import numpy as np
import pytest

from vlm_rlaif_jax.data import batches


def test_every_sample_comes_once_in_batches_of_one_shape(rng):
  shapes = [str(s) for s in rng.choice(['a', 'b', 'c'], 103)]
  steps = batches.plan_batches(shapes, 8, 0)
  samples = np.concatenate([step.indices for step in steps])
  assert sorted(samples[samples != batches.BLANK]) == list(range(103))
  for step in steps:
    assert len(step.indices) == 8
    assert {shapes[i] for i in step.indices if i != batches.BLANK} == {step.shape}


def test_the_plan_is_a_function_of_the_seed():
  shapes = ['a'] * 50
  same = [s.indices.tolist() for s in batches.plan_batches(shapes, 8, [1, 2])]
  assert same == [s.indices.tolist() for s in batches.plan_batches(shapes, 8, [1, 2])]
  assert same != [s.indices.tolist() for s in batches.plan_batches(shapes, 8, [1, 3])]


def test_buckets():
  assert batches.bucket(64, (64, 128)) == 64
  assert batches.bucket(65, (64, 128)) == 128
  with pytest.raises(ValueError, match='129 tokens do not fit the longest bucket 128'):
    batches.bucket(129, (64, 128))


def test_prefetch_keeps_the_order_and_hands_errors_over():
  assert list(batches.prefetch(lambda i: i * i, range(5))) == [0, 1, 4, 9, 16]

  def fail(i):
    if i == 2:
      raise RuntimeError('third')
    return i

  stream = batches.prefetch(fail, range(5))
  assert [next(stream), next(stream)] == [0, 1]
  with pytest.raises(RuntimeError, match='third'):
    next(stream)


def test_a_consumer_that_leaves_stops_the_producer():
  before = threading.active_count()
  stream = batches.prefetch(lambda i: i, range(1000))
  next(stream)
  stream.close()
  deadline = time.monotonic() + 5
  while threading.active_count() > before and time.monotonic() < deadline:
    time.sleep(0.01)
  assert threading.active_count() == before


def test_parallel_work_comes_back_in_order():
  slow = lambda i: (time.sleep(0.002 * (5 - i % 5)), i)[1]
  assert list(batches.parallel(slow, range(20), 4)) == list(range(20))
