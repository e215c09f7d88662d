"""Phases with random arguments: what they are made of, and that they run."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from launch.bench import phases, quant, tiny
from tests.tiny import CFG
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.tokens import VIDEO
from vlm_rlaif_jax.plan.phase import Phase
from vlm_rlaif_jax.settings.sections import MeshConfig

VOCAB = CFG.llama.vocab


def shapes():
  replicated = sharding.replicated(
    sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  )

  def shape(dtype, *sizes):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=replicated)

  return {
    'norm': {'scale': shape('float32', 8)},
    'w': shape('bfloat16', 4, 8),
    'codes': shape('uint8', 4, 8),
    'ids': shape('int32', 2, 5),
    'valid': shape('bool', 2, 5),
    'opt_state': {'nu': shape('float32', 8)},
    'step': shape('int32'),
  }


def test_random_arguments_are_such_as_a_stage_has():
  arrays = phases.RandomArrays(VOCAB).of_shapes(shapes())
  assert phases.VIDEO == VIDEO
  assert (arrays['ids'][:, 1] == VIDEO).all()
  others = np.delete(np.asarray(arrays['ids']), 1, axis=1)
  assert (others >= 3).all() and (others < VOCAB).all()
  assert arrays['valid'].all() and (arrays['norm']['scale'] == 1).all()
  assert not arrays['opt_state']['nu'].any() and arrays['step'] == 0
  assert arrays['w'].dtype == jnp.bfloat16 and 0 < np.std(arrays['w']) < 0.1
  assert len(np.unique(arrays['codes'])) > 8


def test_a_phase_runs_on_arrays_that_it_consumes_and_feeds_the_next():
  state = shapes()
  mesh = state['w'].sharding.mesh

  def step(state, x):
    w = state['w'] + x[None].astype('bfloat16')
    return {**state, 'step': state['step'] + 1, 'w': w}, jnp.sum(x)

  program = sharding.Program('update', step, mesh, (None, None), donate=(0,))
  x = shapes()['norm']['scale']
  phase = Phase('update', program, (state, x), (state, x), ())
  arrays = phases.RandomArrays(VOCAB)
  seconds, (result, total) = phases.run(
    phase, program.compile(*phase.arguments), arrays, 3
  )
  assert seconds > 0 and result['step'] == 1 and total == jnp.sum(arrays.of_shapes(x))
  later = shapes()
  arrays.put(result, (later, x))  # of the same kind: passed on as it came out
  assert arrays.of_shapes(later)['step'] == 1
  assert arrays.of_shapes(later)['w'] is result['w']


def test_the_fastest_round_counts_and_the_first_does_not(monkeypatch):
  clock = iter([0.0, 100.0, 105.0, 200.0, 202.0])
  monkeypatch.setattr(quant, 'time', types.SimpleNamespace(perf_counter=clock.__next__))
  calls = []
  assert quant.fastest({'a': lambda: calls.append(1)}, 2) == {'a': 2.0}
  assert len(calls) == 3


def test_every_workload_of_the_tiny_suite_is_counted():
  flops = tiny._flops()
  assert set(flops) == set(tiny.WORKLOADS)
  one, many = (flops[f'sample, batch {n}'] for n in tiny.SAMPLE_BATCHES)
  assert many == one * tiny.SAMPLE_BATCHES[1]


def test_the_sum_of_phases_says_which_did_not_run(capsys, monkeypatch):
  """As one that does not fit; the sum of the others stood for the stage."""
  monkeypatch.setattr(phases, '_TRACE', types.SimpleNamespace(value=''))
  row = {'times': 2, 'seconds': 3.0, 'roofline_s': 1.0}
  phases._print_totals({'update': row}, [])
  assert capsys.readouterr().out.endswith(': 6.00 s, floor 2.00 s\n')
  phases._print_totals({'update': row}, ['rollout', 'score'])
  assert capsys.readouterr().out.endswith('floor 2.00 s, without rollout, score\n')
