"""Programs are compiled before they are called, and an error in one is not lost."""

import jax
import jax.numpy as jnp
import pytest

from vlm_rlaif_jax.core import compilation, sharding
from vlm_rlaif_jax.train.metrics import Compilations


def program(name, function):
  mesh = sharding.data_mesh(jax.devices()[:1])
  rows = sharding.by_batch(mesh)
  return sharding.Program(name, function, mesh, (rows,), rows)


def test_calls_compile_nothing_that_was_compiled_ahead():
  double, square = program('double', lambda x: 2 * x), program('square', lambda x: x**2)
  x = sharding.put(jnp.arange(6.0), sharding.by_batch(double.mesh))
  shape = sharding.abstract(x, sharding.by_batch(double.mesh))
  seen = []

  def progress(done, total):
    seen.append(total)
    return done

  compilation.ahead([(double, (shape,)), (square, (shape,))], progress)
  count = Compilations()
  doubled, squared = double(x), square(x)
  assert count.count == 0
  count.close()
  assert (doubled.tolist()[5], squared.tolist()[5]) == (10, 25)
  assert seen == [2]


def test_an_error_of_one_program_is_raised():
  def bad(x):
    raise ValueError('of its trace')

  shape = jax.ShapeDtypeStruct((2,), jnp.float32)
  jobs = [(program('good', lambda x: x), (shape,)), (program('bad', bad), (shape,))]
  with pytest.raises(ValueError, match='of its trace'):
    compilation.ahead(jobs)


def test_nothing_to_compile_is_no_error():
  compilation.ahead([])
