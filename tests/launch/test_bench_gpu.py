"""The run over items, and the parts of it that a CPU can check."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ppo
from launch.bench import gpu, gpu_kernels, gpu_ours
from launch.bench.gpu_shapes import SHAPES
from vlm_rlaif_jax.rl import flops
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.ppo import PpoRun


def test_items_are_of_the_modules_that_have_them():
  ours = {name for name, item in gpu.ITEMS.items() if item.module == gpu.OURS}
  assert ours == set(gpu_ours.ITEMS)


@pytest.mark.parity
def test_items_of_the_peer_are_of_its_module():
  pytest.importorskip('torch')
  from launch.bench import gpu_peer

  theirs = {name for name, item in gpu.ITEMS.items() if item.module == gpu.PEER}
  assert theirs == set(gpu_peer.ITEMS)


@pytest.mark.slow
def test_an_item_that_goes_wrong_is_a_row_and_not_the_end(monkeypatch, tmp_path, capfd):
  bad = lambda seconds, *needs: gpu.Item('tests.launch.gpu_items', seconds, needs)
  items = {
    'crashes': bad(20),
    'absent': bad(20, 'no_such_package'),
    'fails': bad(20),
    'ceilings': gpu.ITEMS['ceilings'],
    'hangs': bad(3),
  }
  monkeypatch.setattr(gpu, 'ITEMS', items)
  path = tmp_path / 'gpu.json'
  first = [name for name in items if name != 'hangs']
  figures = gpu.gpu('tiny', first, 2.0, str(path))
  rows = {row['row']: row for row in figures['rows']}
  assert rows['crashes']['error'] == f'ended with {-signal.SIGABRT}'
  assert rows['absent']['error'] == 'not installed: no_such_package'
  assert rows['fails']['error'] == 'MemoryError: tiny: no room'
  assert rows['jax copy']['seconds'] > 0
  assert json.loads(path.read_text())['rows'] == figures['rows']
  best = figures['ceilings']
  copy = rows['jax copy']
  assert best['bytes'] == copy['bytes'] / copy['seconds'] and best['flops'] > 0
  output = capfd.readouterr().out
  assert 'no room' in output and '(100%)' in output

  # On a card a deadline counts, and the rows before it are kept.
  figures = gpu.gpu('7b', ['hangs'], 1.0)
  assert [row['row'] for row in figures['rows']] == ['before', 'hangs']
  assert figures['rows'][1]['error'].startswith('stopped after')


def test_a_ratio_is_of_the_same_work():
  """In the tiny size a rollout has other rows and positions than `generate`."""
  row = lambda name, seconds, **work: (
    {'row': name, 'item': '', 'seconds': seconds} | work
  )
  rows = [
    row('rollout', 1.0, rows=4, positions=36),
    row('generate', 2.0, rows=2, positions=145),
    row('LoRA step, bf16', 1.0, rows=2, positions=145),
    row('peft, bf16', 3.0, rows=2, positions=145),
  ]
  figures = {'size': 'tiny', 'machine': {}, 'rows': rows, 'seconds': {}}
  lines = gpu.table(figures | {'ceilings': {'bytes': 0.0, 'flops': 0.0}})
  same = 'not of the same work (4 x 36 and 2 x 145 positions)'
  assert f'rollout, NF4 / generate: {same}' in lines
  assert 'LoRA step, bf16 / peft: 3.00x' in lines


def test_a_rollout_of_7b_is_that_of_the_shapes():
  shapes, settings = SHAPES['7b'], from_config_dict(PpoRun, ppo.get_config('7b'))
  assert flops.lengths(settings) == (shapes.prompt, shapes.length)


def test_without_time_left_nothing_is_started():
  figures = gpu.gpu('tiny', ['ceilings'], 0.01)
  assert [row['error'] for row in figures['rows']] == ['no time left']


@pytest.mark.slow
def test_the_kernel_of_decoding_reads_what_is_filled():
  L, B, G, S, K = 2, 3, 2, 64, 32
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), 'bfloat16')
  q, k, v = normal(B, G, K), normal(L, B, G, S, K), normal(L, B, G, S, K)
  start = jnp.asarray([0, 17, 40], 'int32')

  @jax.jit
  def both(k, v, stop):
    outputs = [
      gpu_kernels.attend(
        q, k, v, jnp.int32(1), start, stop, shares=shares, block=16, interpret=True
      )
      for shares in (1, 4)
    ]
    return outputs, gpu_kernels.reference(q, k, v, 1, start, stop)

  for stop in (41, 48, 63):
    empty = lambda x, fill, n=stop: x.at[:, :, :, n:].set(fill)
    outputs, expected = both(empty(k, 3e38), empty(v, 3.0), jnp.int32(stop))
    for value in outputs:
      np.testing.assert_allclose(
        np.asarray(value, np.float32), expected, rtol=2e-2, atol=2e-2
      )
  with pytest.raises(ValueError, match='not a multiple'):
    gpu_kernels.attend(q, k, v, 0, start, 64, block=48)
