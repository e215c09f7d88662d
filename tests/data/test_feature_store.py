import ml_dtypes
import numpy as np
import pytest

from vlm_rlaif_jax.data.feature_store import (
  EntryError,
  FeatureStore,
  NotFiniteError,
)

SHAPE = (3, 40)


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'bfloat16'])
def test_round_trip(tmp_path, rng, dtype):
  store = FeatureStore(tmp_path, {'weights': 'x'}, dtype)
  value = rng.normal(size=SHAPE).astype(
    ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype
  )
  assert not store.has('ab12', SHAPE)
  store.write('ab12', value)
  assert store.has('ab12', SHAPE)
  read = store.read('ab12', SHAPE)
  assert read.dtype == value.dtype
  np.testing.assert_array_equal(read, value)
  assert store.path('ab12').stat().st_size == store.nbytes(SHAPE)
  if dtype != 'bfloat16':  # which NumPy does not know
    np.testing.assert_array_equal(np.load(store.path('ab12')), value)


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'bfloat16'])
@pytest.mark.parametrize('wrong', [np.nan, np.inf, -np.inf, -1e39])
def test_what_is_no_number_is_not_written(tmp_path, rng, dtype, wrong):
  store = FeatureStore(tmp_path, {'weights': 'x'}, dtype)
  value = rng.normal(size=SHAPE)
  value[1, 5:7] = wrong
  with pytest.raises(NotFiniteError, match='2 of 120 features are NaN or infinite in'):
    store.write('ab12', value)
  assert not store.has('ab12', SHAPE)
  largest = float(ml_dtypes.finfo(store.dtype).max)
  store.write('ab12', np.full(SHAPE, -largest))
  assert float(store.read('ab12', SHAPE)[0, 0]) == -largest


def test_other_weights_have_another_folder(tmp_path):
  a = FeatureStore(tmp_path, {'weights': 'x'}, 'float32')
  b = FeatureStore(tmp_path, {'weights': 'y'}, 'float32')
  a.write('k0', np.ones(2))
  assert not b.has('k0', (2,))


def damage(path, kind: str, rng) -> None:
  data = bytearray(path.read_bytes())
  match kind:
    case 'a flipped bit':
      data[200] ^= 4
    case 'zeros at the end':
      data[-60:] = bytes(60)
    case 'zeros':
      data[:] = bytes(len(data))
    case 'half':
      del data[len(data) // 2 :]
    case 'empty':
      data.clear()
    case 'a wrong checksum':
      data[-1] ^= 1
    case 'more':
      data += b'x'
  path.write_bytes(data)


IN_THE_VALUES = {'a flipped bit', 'zeros at the end', 'a wrong checksum'}


@pytest.mark.parametrize(
  'kind', [*sorted(IN_THE_VALUES), 'zeros', 'half', 'empty', 'more']
)
def test_a_damaged_entry_is_named(tmp_path, rng, kind):
  store = FeatureStore(tmp_path, {'weights': 'x'}, 'float32')
  store.write('ab12', rng.normal(size=SHAPE).astype(np.float32))
  damage(store.path('ab12'), kind, rng)
  with pytest.raises(EntryError, match=r'ab12\.npy: '):
    store.read('ab12', SHAPE)
  if kind not in IN_THE_VALUES:
    with pytest.raises(EntryError, match=r'ab12\.npy: expected .*float32\[3, 40\]'):
      store.has('ab12', SHAPE)


def test_another_shape_or_dtype_is_no_entry(tmp_path, rng):
  store = FeatureStore(tmp_path, {'weights': 'x'}, 'float32')
  for value in (np.ones((40, 3), np.float32), np.ones((2, 40), np.float32)):
    store.write('ab12', value)
    with pytest.raises(EntryError, match=r'expected .*float32\[3, 40\]'):
      store.has('ab12', SHAPE)
  np.save(store.path('ab12'), np.ones(SHAPE, np.int32))
  with pytest.raises(EntryError, match=r'expected float32\[3, 40\], found no such'):
    store.read('ab12', SHAPE)
