"""NF4 against bitsandbytes on the CPU: to the bit, wherever both can say it.

bitsandbytes runs on one PyTorch thread: a mean of its depends on their number.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.core.quant import blocks, dynamic, nf4
from vlm_rlaif_jax.weights import conversion

torch = pytest.importorskip('torch')
bnb = pytest.importorskip('bitsandbytes.functional')
generic = pytest.importorskip('bitsandbytes.backends.default.ops')

pytestmark = pytest.mark.parity
dequantize = jax.jit(nf4.dequantize, static_argnums=1)
DTYPES = ('float32', 'bfloat16', 'float16')
# [out, in] of the linears of LLaMA 7B and 13B: attention, gate and up, down.
SHAPES = [
  (4096, 4096),
  (11008, 4096),
  (4096, 11008),
  (5120, 5120),
  (13824, 5120),
  (5120, 13824),
]


@pytest.fixture(autouse=True, scope='module')
def one_thread():
  """The mean that bitsandbytes subtracts depends on the number of threads."""
  before = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(before)


def theirs(weight, double=True):
  """bitsandbytes' packed bytes and state, and the tensors that it saves."""
  packed, state = bnb.quantize_4bit(
    weight, compress_statistics=double, quant_type='nf4'
  )
  saved = {f'weight.{k}': v for k, v in state.as_dict(packed=True).items()}
  return packed, state, {'weight': packed, **saved}


def unpacked(packed, state):
  """dequantize_4bit by its own definition: the AVX-512 kernel takes the scale of
  another block where rows are no multiple of 64."""
  if state.shape[-1] % 64 == 0:
    return bnb.dequantize_4bit(packed, state)
  absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
  compute = generic._dequantize_4bit_compute.__wrapped__
  return compute(packed.reshape(-1), absmax, state.code, 64, state.shape, state.dtype)


def as_numpy(tensor):
  wide = tensor.float().numpy()
  return wide.astype(str(tensor.dtype).removeprefix('torch.'))


def normal(shape, dtype, seed=0, scale=0.02):
  generator = torch.Generator().manual_seed(seed)
  return (scale * torch.randn(shape, generator=generator)).to(getattr(torch, dtype))


def assert_same(ours: dict, expected: dict):
  assert ours.keys() == expected.keys()
  for name, tensor in expected.items():
    np.testing.assert_array_equal(ours[name], np.asarray(tensor), err_msg=name)


def check(weight, double=True, on_device=False):
  value = as_numpy(weight)
  leaf = nf4.quantize(jnp.asarray(value) if on_device else value, double)
  packed, state, saved = theirs(weight, double)
  assert_same(nf4.to_bitsandbytes(leaf), saved)
  expected = unpacked(packed, state) if double else bnb.dequantize_4bit(packed, state)
  for made in (leaf, nf4.from_bitsandbytes(saved)):
    made = jax.tree.map(jnp.asarray, made)
    wide = dequantize(made, 'float32')
    np.testing.assert_array_equal(wide, expected.float().numpy())
    short = dequantize(made, 'bfloat16')
    cast = expected.to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(short.astype(jnp.float32), cast)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_rows_of_llama_are_those_of_bitsandbytes(shape):
  """Some outputs of every shape, of a dtype each, and no two alike."""
  dtype = DTYPES[SHAPES.index(shape) % 3]
  check(normal((40, shape[1]), dtype, seed=shape[0]))


@pytest.mark.slow
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('on_device', [False, True], ids=['host', 'device'])
def test_every_dtype_on_host_and_device(dtype, on_device):
  check(normal((96, 1024), dtype), on_device=on_device)
  check(normal((16, 256), dtype), double=False, on_device=on_device)


@pytest.mark.parametrize('shape', [(33, 352), (24, 16), (7, 5), (3, 1)], ids=str)
def test_blocks_that_cross_rows(shape):
  check(normal(shape, 'float32'))


def special(name):
  """Weights where a rounding could go either way."""
  weight = normal((64, 256), 'float32', seed=3)
  if name == 'ties':
    bounds = torch.from_numpy(nf4.BOUNDS)
    weight = torch.zeros(64, 256)
    weight[:, 0::64] = 1.0
    weight[:, 1:16] = bounds
    weight[:, 17:32] = torch.nextafter(bounds, torch.tensor(2.0))
    weight[:, 33:48] = -bounds
  elif name == 'zeros':
    weight = torch.zeros(64, 256)
  elif name == 'some zeros':
    weight[3] = 0
    weight[5, :64] = 0
  elif name == 'constant':
    weight = torch.full((64, 256), -0.7)
  elif name == 'blocks of one value':
    weight = weight[:, ::64].repeat_interleave(64, dim=1)
  return weight


@pytest.mark.parametrize('on_device', [False, True], ids=['host', 'device'])
@pytest.mark.parametrize(
  'name', ['ties', 'zeros', 'some zeros', 'constant', 'blocks of one value']
)
def test_special_weights(name, on_device):
  check(special(name), on_device=on_device)


def test_denormals_on_the_host():
  """Codes and scales; a device has no denormals, there they are zeros."""
  for weight in (
    normal((64, 256), 'float32', scale=1e-39),
    torch.full((64, 256), 1e-40),
    normal((64, 256), 'float16', scale=1e-6),
  ):
    ours = nf4.to_bitsandbytes(nf4.quantize(as_numpy(weight)))
    assert_same(ours, theirs(weight)[2])


@pytest.mark.parametrize('count', [1, 5, 8, 31, 64, 700, 4096, 16383, 262144])
def test_the_mean_adds_up_in_the_order_of_torch(count, rng):
  x = np.abs(rng.normal(size=count)).astype(np.float32)
  assert dynamic.mean(x) == torch.from_numpy(x).mean().numpy()


def test_the_tables_are_those_of_bitsandbytes():
  np.testing.assert_array_equal(nf4.LEVELS, bnb.get_4bit_type('nf4', 'cpu'))
  np.testing.assert_array_equal(dynamic.values(), bnb.create_dynamic_map())


def test_the_route_through_float16_is_the_references():
  """As bitsandbytes does: float16 before quantizing, float16 after, then bfloat16."""
  weight = normal((32, 512), 'float32', scale=1e-3)
  leaf = nf4.quantize(weight.numpy(), through='float16')
  packed, state, saved = theirs(weight.half())
  assert_same(nf4.to_bitsandbytes(leaf), saved)
  expected = bnb.dequantize_4bit(packed, state).to(torch.bfloat16).float().numpy()
  ours = nf4.dequantize(leaf, jnp.bfloat16).astype(np.float32)
  np.testing.assert_array_equal(ours, expected)
  direct = nf4.dequantize(nf4.quantize(weight.numpy()), jnp.bfloat16)
  assert (direct.astype(np.float32) != expected).any()


@pytest.mark.slow
def test_qwix_agrees_on_float32():
  """The same numbers from float32 with single-level scales. From bfloat16 it differs,
  as `core.quant.nf4` says: it divides in bfloat16."""
  qwix = pytest.importorskip('qwix')
  tiles = {'channelwise_axes': [0], 'tiled_axes': {1: 64}}
  values = {}
  for dtype in ('float32', 'bfloat16'):
    weight = jnp.asarray(as_numpy(normal((32, 512), dtype)))
    peer = qwix.dequantize(qwix.quantize(weight, 'nf4', **tiles))
    ours = dequantize(nf4.quantize(weight, double_quant=False), 'float32')
    values[dtype] = ours, peer.astype(jnp.float32)
  np.testing.assert_array_equal(*values['float32'])
  ours, peer = values['bfloat16']
  assert 0.05 < np.mean(ours != peer) < 0.5


def test_names_may_have_a_prefix_and_other_tables_are_refused():
  _, _, saved = theirs(normal((16, 128), 'float32'))
  prefixed = {f'model.layers.0.self_attn.q_proj.{k}': v for k, v in saved.items()}
  a, b = nf4.from_bitsandbytes(saved), nf4.from_bitsandbytes(prefixed)
  jax.tree.map(np.testing.assert_array_equal, a, b)
  with pytest.raises(blocks.QuantError, match='quant_map'):
    nf4.from_bitsandbytes({**saved, 'weight.quant_map': np.zeros(16, np.float32)})
  with pytest.raises(blocks.QuantError, match='expected one tensor'):
    nf4.from_bitsandbytes({'weight': saved['weight']})
  with pytest.raises(blocks.QuantError, match='do not make'):
    nf4.from_bitsandbytes({**saved, 'weight.absmax': saved['weight.absmax'][:-1]})


def test_a_checkpoint_of_transformers_loads_without_another_rounding(tmp_path):
  """from_pretrained with NF4 and double quantization, saved, read by name."""
  transformers = pytest.importorskip('transformers')
  safetensors = pytest.importorskip('safetensors.numpy')
  config = transformers.LlamaConfig(
    vocab_size=64, hidden_size=128, intermediate_size=352, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4,
  )  # fmt: skip
  torch.manual_seed(0)
  plain = transformers.LlamaForCausalLM(config).to(torch.float16)
  plain.save_pretrained(tmp_path / 'plain')
  held = transformers.BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type='nf4',
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
  )
  model = transformers.LlamaForCausalLM.from_pretrained(
    tmp_path / 'plain', quantization_config=held, dtype=torch.float16, device_map='cpu'
  )
  model.save_pretrained(tmp_path / 'held')
  tensors = safetensors.load_file(tmp_path / 'held' / 'model.safetensors')
  for name in ('self_attn.q_proj', 'mlp.down_proj'):
    stem = f'model.layers.1.{name}'
    saved = {k: v for k, v in tensors.items() if k.startswith(f'{stem}.')}
    leaf = nf4.from_bitsandbytes(saved)
    again = {f'{stem}.{k}': v for k, v in nf4.to_bitsandbytes(leaf).items()}
    info = f'{stem}.weight.quant_state.bitsandbytes__nf4'
    theirs_, ours = (json.loads(x.pop(info).tobytes()) for x in (saved, again))
    assert theirs_ == ours
    assert_same(again, saved)
    source = plain.get_submodule(stem).weight.detach()
    packed, state, _ = theirs(source)
    np.testing.assert_array_equal(
      nf4.dequantize(leaf, np.float32), unpacked(packed, state).float().numpy()
    )
  conversion.convert(
    tmp_path / 'held', tmp_path / 'base', conversion.Request(partial=True)
  )
  base = safetensors.load_file(tmp_path / 'base' / 'model.safetensors')
  for part in ('codes', 'absmax', 'scale', 'offset'):
    np.testing.assert_array_equal(
      base[f'llama/layers/down/w/{part}'][1], getattr(leaf, part)
    )


def test_levels_by_a_gather_are_those_by_selects_to_the_bit(monkeypatch):
  """The first on GPUs, the second elsewhere."""
  codes = jnp.arange(16, dtype=jnp.uint8).reshape(2, 8)
  look_up = nf4._level_on_device.__wrapped__
  found = {}
  for platform in ('gpu', 'tpu'):
    monkeypatch.setattr(nf4.target, 'platform', lambda name=platform: name)
    found[platform] = np.asarray(look_up(codes))
    gathers = 'gather' in str(jax.make_jaxpr(lambda x: look_up(x))(codes))
    assert gathers == (platform == 'gpu')
  np.testing.assert_array_equal(found['gpu'], found['tpu'])
  np.testing.assert_array_equal(found['gpu'], nf4.LEVELS.reshape(2, 8))


def test_scales_are_looked_up_without_a_gather_to_the_bit():
  codes = np.arange(256, dtype=np.uint8)
  found = nf4._dynamic_without_gather(jnp.asarray(codes))
  np.testing.assert_array_equal(np.asarray(found), dynamic.values())
