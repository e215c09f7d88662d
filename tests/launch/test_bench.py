"""Phases with random arguments: what they are made of, and that they run."""

import jax
import jax.numpy as jnp
import numpy as np

from launch import bench_phases
from tests.tiny import CFG
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.tokens import VIDEO
from vlm_rlaif_jax.plan.phase import Phase
from vlm_rlaif_jax.settings.sections import MeshConfig

VOCAB = CFG.llama.vocab


def shapes():
  where = sharding.replicated(sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1]))
  make = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
  return {
    'norm': {'scale': make('float32', 8)},
    'w': make('bfloat16', 4, 8),
    'codes': make('uint8', 4, 8),
    'ids': make('int32', 2, 5),
    'valid': make('bool', 2, 5),
    'opt_state': {'nu': make('float32', 8)},
    'step': make('int32'),
  }


def test_random_arguments_are_such_as_a_stage_has():
  made = bench_phases.Made(VOCAB).real(shapes())
  assert bench_phases.VIDEO == VIDEO
  assert (made['ids'][:, 1] == VIDEO).all()
  others = np.delete(np.asarray(made['ids']), 1, axis=1)
  assert (others >= 3).all() and (others < VOCAB).all()
  assert made['valid'].all() and (made['norm']['scale'] == 1).all()
  assert not made['opt_state']['nu'].any() and made['step'] == 0
  assert made['w'].dtype == jnp.bfloat16 and 0 < np.std(made['w']) < 0.1
  assert len(np.unique(made['codes'])) > 8


def test_a_phase_runs_on_arrays_that_it_consumes_and_feeds_the_next():
  given = shapes()
  mesh = given['w'].sharding.mesh
  step = lambda state, x: (
    {**state, 'step': state['step'] + 1, 'w': state['w'] + x[None].astype('bfloat16')},
    jnp.sum(x),
  )
  program = sharding.Program('update', step, mesh, (None, None), donate=(0,))
  x = shapes()['norm']['scale']
  phase = Phase('update', program, (given, x), (given, x), ())
  made = bench_phases.Made(VOCAB)
  seconds, (state, total) = bench_phases.run(
    phase, program.compile(*phase.arguments), made, 3
  )
  assert seconds > 0 and state['step'] == 1 and total == jnp.sum(made.real(x))
  later = shapes()
  made.put(state, (later, x))  # of the same kind: given as it came out
  assert made.real(later)['step'] == 1 and made.real(later)['w'] is state['w']
