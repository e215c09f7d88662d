"""The run over items, and the parts of it that a CPU can check."""

import dataclasses
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import bench_gpu, bench_gpu_kernels, bench_gpu_ours


@pytest.mark.parity
def test_both_sides_have_the_same_shapes():
  pytest.importorskip('torch')
  from launch import bench_gpu_peer

  for size, theirs in bench_gpu_peer.SHAPES.items():
    ours = dataclasses.asdict(bench_gpu_ours.SHAPES[size])
    assert dataclasses.asdict(theirs).items() <= ours.items()
  assert bench_gpu_peer.LORA == bench_gpu_ours.LORA


def test_items_are_of_the_processes_that_know_them():
  ours = {n for n, i in bench_gpu.ITEMS.items() if i.module == bench_gpu.OURS}
  assert ours == set(bench_gpu_ours.WORK)


def test_an_item_that_goes_wrong_is_a_row_and_not_the_end(monkeypatch, tmp_path, capfd):
  bad = lambda seconds, *needs: bench_gpu.Item('tests.launch.gpu_items', seconds, needs)
  items = {
    'crashes': bad(20),
    'absent': bad(20, 'no_such_package'),
    'fails': bad(20),
    'ceilings': bench_gpu.ITEMS['ceilings'],
    'hangs': bad(3),
  }
  monkeypatch.setattr(bench_gpu, 'ITEMS', items)
  path = tmp_path / 'gpu.json'
  first = [name for name in items if name != 'hangs']
  figures = bench_gpu.gpu('tiny', first, 2.0, str(path))
  said = {row['row']: row for row in figures['rows']}
  assert said['crashes']['error'] == f'ended with {-signal.SIGABRT}'
  assert said['absent']['error'] == 'not installed: no_such_package'
  assert said['fails']['error'] == 'MemoryError: tiny: no room'
  assert said['jax copy']['seconds'] > 0
  assert json.loads(path.read_text())['rows'] == figures['rows']
  best = figures['ceilings']
  copy = said['jax copy']
  assert best['bytes'] == copy['bytes'] / copy['seconds'] and best['flops'] > 0
  shown = capfd.readouterr().out
  assert 'no room' in shown and '(100%)' in shown

  # On a card a deadline holds, and what came before it is kept.
  figures = bench_gpu.gpu('7b', ['hangs'], 1.0)
  assert [row['row'] for row in figures['rows']] == ['before', 'hangs']
  assert figures['rows'][1]['error'].startswith('stopped after')


def test_without_time_left_nothing_is_begun():
  figures = bench_gpu.gpu('tiny', ['ceilings'], 0.01)
  assert [row['error'] for row in figures['rows']] == ['no time left']


def test_the_kernel_of_decoding_reads_what_is_filled():
  L, B, G, S, K = 2, 3, 2, 64, 32
  rng = np.random.default_rng(0)
  made = lambda *shape: jnp.asarray(rng.normal(size=shape), 'bfloat16')
  q, k, v = made(B, G, K), made(L, B, G, S, K), made(L, B, G, S, K)
  start = jnp.asarray([0, 17, 40], 'int32')

  @jax.jit
  def both(k, v, stop):
    found = [
      bench_gpu_kernels.attend(
        q, k, v, jnp.int32(1), start, stop, shares=shares, block=16, interpret=True
      )
      for shares in (1, 4)
    ]
    return found, bench_gpu_kernels.reference(q, k, v, 1, start, stop)

  for stop in (41, 48, 63):
    empty = lambda x, fill, n=stop: x.at[:, :, :, n:].set(fill)
    found, expected = both(empty(k, 3e38), empty(v, 3.0), jnp.int32(stop))
    for value in found:
      np.testing.assert_allclose(
        np.asarray(value, np.float32), expected, rtol=2e-2, atol=2e-2
      )
  with pytest.raises(ValueError, match='no multiple'):
    bench_gpu_kernels.attend(q, k, v, 0, start, 64, block=48)
