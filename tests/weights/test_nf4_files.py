"""Bases in NF4: what is written, who reads it, what damage does; no PyTorch needed."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from configs import models as sized
from tests import tiny
from tests.weights import checkpoints
from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.core.quant import nf4
from vlm_rlaif_jax.core.quant.nf4 import Nf4
from vlm_rlaif_jax.settings.build import ConfigError, UserError
from vlm_rlaif_jax.settings.sections import MeshConfig, QuantConfig
from vlm_rlaif_jax.weights import (
  artifacts,
  bases,
  conversion,
  names,
  network_files,
  placement,
  safetensors_files,
  weight_table,
)
from vlm_rlaif_jax.weights.conversion import Request
from vlm_rlaif_jax.weights.errors import ConvertError

# Blocks of 64 along the inputs; with tiny.CFG they cross the rows.
WIDE = dataclasses.replace(
  tiny.CFG,
  llama=dataclasses.replace(tiny.CFG.llama, width=128, mlp=256, head_dim=32),
)
CFGS = {'wide': WIDE, 'flat': tiny.CFG}


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
  """By kind of shape: ours in 16 bits (float32 here), the same in NF4, llava."""
  made_ones = {}
  for name, cfg in CFGS.items():
    root = made_ones[name] = tmp_path_factory.mktemp(name)
    checkpoints.write_base(root / 'ours', cfg=cfg)
    checkpoints.write_foreign(root / 'llava', root / 'ours', 'llava', shard=300_000)
    conversion.convert(root / 'llava', root / 'nf4', Request(bits=4))
  return made_ones


@pytest.fixture
def root(roots):
  return roots['wide']


def leaves(tree) -> dict:
  return trees.flatten(tree, is_leaf=lambda x: isinstance(x, Nf4))


def same(found: dict, expected: dict):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def unpacked(cfg=WIDE) -> dict:
  """Our weights by name, the linears with NF4's values."""
  flat = {
    n: v
    for n, v in checkpoints.random_weights(cfg=cfg).items()
    if n != 'tower/projection/w'
  }
  return {
    name: nf4.dequantize(nf4.quantize(value, through='float16'), np.float16)
    if placement.is_quantized(name)
    else value
    for name, value in flat.items()
  }


@pytest.mark.parametrize('shapes', CFGS)
def test_leaves_are_those_that_loading_would_make(roots, shapes):
  root, cfg = roots[shapes], CFGS[shapes]
  found = leaves(bases.load(str(root / 'nf4'), cfg).params)
  plain = leaves(bases.load(str(root / 'ours'), cfg).params)
  del plain['tower/projection/w']
  quant = QuantConfig(residency='nf4')
  expected = {
    name: placement.quantize(value, quant, 'float32')
    if placement.is_quantized(name)
    else value
    for name, value in plain.items()
  }
  assert sum(isinstance(value, Nf4) for value in found.values()) == 7
  same(found, expected)


def test_half_precision_is_quantized_as_it_is(root, tmp_path):
  """Not by way of the bfloat16 that a 16-bit base of ours would have."""
  conversion.convert(
    root / 'ours', tmp_path / 'h', Request(to='llava', dtype='float16')
  )
  conversion.convert(tmp_path / 'h', tmp_path / 'nf4', Request(bits=4))
  found = leaves(bases.load(str(tmp_path / 'nf4'), WIDE).params)
  assert found['llama/head/w'].dtype == jnp.bfloat16
  q = checkpoints.random_weights(cfg=WIDE)['llama/layers/q/w']
  same(found['llama/layers/q/w'], nf4.quantize(q, through='float16'))


def test_what_is_in_nf4_stays_so_unless_asked(root, tmp_path):
  conversion.convert(root / 'nf4', tmp_path / 'again', Request())
  conversion.convert(root / 'nf4', tmp_path / '16', Request(bits=16))
  first, again = (f / 'model.safetensors' for f in (root / 'nf4', tmp_path / 'again'))
  assert first.read_bytes() == again.read_bytes()
  assert (
    network_files.read_network(root / 'nf4').describe().count('linears in NF4') == 1
  )
  found = checkpoints.read_folder(tmp_path / '16')
  same(found, {n: v.astype(np.float32) for n, v in unpacked().items()})


@pytest.mark.parametrize('layout', ['llava', 'hf'])
def test_others_get_it_unpacked(root, tmp_path, layout):
  conversion.convert(root / 'nf4', tmp_path / 'out', Request(to=layout))
  checkpoint = network_files.read_network(tmp_path / 'out')
  expected = unpacked()
  for leaf in weight_table.weights(WIDE):
    if leaf.name == 'llama/layers/down/w':
      found = np.stack([checkpoint.tensors[s].read() for s in leaf.sources])
      np.testing.assert_array_equal(found, expected[leaf.name].astype(np.float32))
  with pytest.raises(ConvertError, match='--bits=4: only a base of ours'):
    conversion.convert(root / 'nf4', tmp_path / 'no', Request(to=layout, bits=4))


def test_the_base_of_the_package(tmp_path):
  """It has a text tower, which is left behind only by foreign layouts."""
  conversion.convert(bases.TINY, tmp_path / 'nf4', Request(bits=4))
  base = bases.load(str(tmp_path / 'nf4'), sized.tiny())
  plain = bases.load('', sized.tiny())
  q = plain.params['llama']['layers']['q']['w']
  same(base.params['llama']['layers']['q']['w'], nf4.quantize(q, through='float16'))
  found = network_files.read_network(tmp_path / 'nf4')
  assert set(found.parts) == set(weight_table.PARTS)
  assert base.fingerprint != plain.fingerprint


# ---------------------------------------------------------------- its readers


def test_residencies(root):
  base = bases.load(str(root / 'nf4'), WIDE)
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])

  def put(residency):
    params, quant = {'llama': base.params['llama']}, QuantConfig(residency=residency)
    return leaves(placement.on_device(params, WIDE, mesh, quant=quant))[
      'llama/layers/up/w'
    ]

  leaf = base.params['llama']['layers']['up']['w']
  same(put('nf4'), leaf)
  np.testing.assert_array_equal(put('nf4_bf16'), unpacked()['llama/layers/up/w'])
  for residency in ('native', 'int4'):
    with pytest.raises(
      ConfigError, match='needs a base in 16 bits, this one is in NF4'
    ):
      put(residency)


def test_an_adapter_on_it(root, tmp_path):
  """Tuned as `bases` does it, merged by conversion, and never taken for the other."""
  source = tmp_path / 'lora'
  flat = checkpoints.write_adapter(source, WIDE)
  checkpoints.write_projector(source / 'non_lora_trainables.bin', 'model.', cfg=WIDE)
  for name in ('nf4', 'ours'):
    request = Request(base=str(root / name))
    conversion.convert(source, tmp_path / name / 'sft', request)
  base = bases.load(str(root / 'nf4'), WIDE)
  with pytest.raises(artifacts.ArtifactError, match='trained on weights'):
    bases.tuned(base, tmp_path / 'ours' / 'sft', WIDE)
  tuned = leaves(bases.tuned(base, tmp_path / 'nf4' / 'sft', WIDE).params)
  stem = 'llama/layers/gate'
  w = unpacked()[f'{stem}/w']
  product = flat[f'{stem}/b'] @ flat[f'{stem}/a']
  np.testing.assert_allclose(tuned[f'{stem}/w'], w + 2 * product, atol=2e-3)
  assert tuned[f'{stem}/w'].dtype == np.float16
  request = Request(to='ours', merge=True, bits=4, dtype='float32')
  conversion.convert(tmp_path / 'nf4' / 'sft', tmp_path / 'out', request)
  merged = leaves(bases.load(str(tmp_path / 'out'), WIDE).params)
  for name, value in tuned.items():
    if placement.is_quantized(name):
      value = nf4.quantize(value)
    same(merged[name], value)


# ---------------------------------------------------------------- bitsandbytes


@pytest.mark.parametrize('double', [True, False])
def test_a_checkpoint_of_bitsandbytes_keeps_its_codes(root, tmp_path, double):
  """Its tower and projector are in 4 bits as well; ours are unpacked."""
  packed = checkpoints.write_bitsandbytes(
    tmp_path / 'in', root / 'llava', double=double
  )
  conversion.convert(tmp_path / 'in', tmp_path / 'out', Request())
  found = leaves(bases.load(str(tmp_path / 'out'), WIDE).params)
  tensors = network_files.read_network(tmp_path / 'in').tensors
  for leaf in weight_table.weights(WIDE):
    theirs = [packed[o] for s in leaf.sources if (o := names.llava_name(s)) in packed]
    if leaf.is_linear:
      same(found[leaf.name], jax.tree.map(lambda *x: np.stack(x), *theirs))
    elif theirs:
      expected = np.stack([tensors[s].read() for s in leaf.sources])
      assert expected.dtype == np.float16
      np.testing.assert_array_equal(
        found[leaf.name].reshape(expected.shape), expected, leaf.name
      )
  conversion.convert(tmp_path / 'in', tmp_path / '16', Request(bits=16))
  wide = checkpoints.read_folder(tmp_path / '16')['llama/layers/k/w']
  np.testing.assert_array_equal(
    wide, nf4.dequantize(found['llama/layers/k/w'], np.float32)
  )


@pytest.mark.parametrize('storage', ['bfloat16', 'float16', 'float32'])
def test_codes_are_bytes_whatever_stores_them(root, tmp_path, storage):
  """`bnb_4bit_quant_storage`, which QLoRA with FSDP needs."""
  packed = checkpoints.write_bitsandbytes(tmp_path / 'in', root / 'llava')
  path = tmp_path / 'in' / 'model.safetensors'
  tensors = safetensors.numpy.load_file(path)
  dtype = np.dtype(getattr(ml_dtypes, storage, storage))
  tensors |= {n: tensors[n].reshape(-1).view(dtype).reshape(-1, 1) for n in packed}
  safetensors.numpy.save_file(tensors, path)
  found = network_files.read_network(tmp_path / 'in').tensors
  for name, leaf in packed.items():
    same(found[names.neutral_name(name)].leaf(), leaf)


def other_blocks(tensors):
  state = json.loads(tensors[STATE].tobytes()) | {'blocksize': 128}
  return {**tensors, STATE: np.frombuffer(json.dumps(state).encode(), np.uint8)}


STEM = 'model.layers.0.self_attn.q_proj.weight'
STATE = f'{STEM}.quant_state.bitsandbytes__nf4'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda t: {n: v for n, v in t.items() if n != f'{STEM}.absmax'}, 'missing'),
    (lambda t: {**t, STEM: t[STEM][:-1]}, 'in NF4 needs 8192'),
    (lambda t: {**t, STATE: t[STATE][:-9]}, 'is damaged'),
    (lambda t: {n: v for n, v in t.items() if n != STATE}, 'unexpected'),
    (other_blocks, f'{STEM} has blocks of 128 (of 256 scales), expected 64'),
    (
      lambda t: {n.replace('__nf4', '__fp4'): v for n, v in t.items()},
      f'{STEM} is in FP4 of bitsandbytes',
    ),
    (
      lambda t: {**t, f'{STEM[:-7]}.SCB': np.ones(128, np.float32)},
      f'{STEM} is in int8 of bitsandbytes',
    ),
    (
      lambda t: {**t, f'{STEM[:-7]}.qweight': np.ones(8, np.int32)},
      'q_proj.qweight is in a format of GPTQ',
    ),
    (lambda t: {**t, f'{STEM}.quant_map': np.zeros(16, np.float32)}, 'quant_map'),
  ],
)
def test_damage_to_a_checkpoint_of_bitsandbytes(root, tmp_path, change, message):
  checkpoints.write_bitsandbytes(tmp_path / 'in', root / 'llava')
  refused(tmp_path / 'in', tmp_path / 'in' / 'model.safetensors', change, message)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'quant_method': 'gptq', 'bits': 4}, "quant_method is 'gptq'"),
    ({'load_in_8bit': True}, 'load_in_8bit is True'),
    ({'load_in_4bit': True, 'bnb_4bit_quant_type': 'fp4'}, "quant_type is 'fp4'"),
    ({'a_field_of_next_year': 3}, 'quantization_config.a_field_of_next_year is 3'),
  ],
)
def test_a_quantization_of_another_kind(root, tmp_path, fields, message):
  checkpoints.write_bitsandbytes(tmp_path / 'in', root / 'llava')
  path = tmp_path / 'in' / 'config.json'
  config = json.loads(path.read_text())
  path.write_text(json.dumps({**config, 'quantization_config': fields}))
  with pytest.raises(ConvertError, match=message):
    network_files.read_network(tmp_path / 'in')


def refused(source, path, change, message):
  tensors = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file(change(tensors), path, safetensors_files.metadata(path))
  out = source.with_name('out')
  with pytest.raises(UserError) as caught:
    conversion.convert(source, out, Request())
  assert message in str(caught.value) and '\n' not in str(caught.value)
  assert not out.exists() and not out.with_name('out.part').exists()


OURS = 'llama/layers/q/w'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda t: {n: v for n, v in t.items() if n != f'{OURS}/absmax'}, 'missing'),
    (lambda t: {**t, f'{OURS}/codes': t[f'{OURS}/codes'][:1]}, 'has shape (1, 64,'),
    (lambda t: {**t, f'{OURS}/zeros': np.ones(2, np.int8)}, f'unexpected {OURS}/zeros'),
  ],
)
def test_damage_to_a_base_in_nf4(root, tmp_path, change, message):
  source = shutil.copytree(root / 'nf4', tmp_path / 'in')
  refused(source, source / 'model.safetensors', change, message)
  with pytest.raises(artifacts.ArtifactError):
    bases.load(str(source), WIDE)


def test_an_unknown_dtype_of_the_weights(root, tmp_path):
  source = shutil.copytree(root / 'nf4', tmp_path / 'in')
  path = source / 'model.safetensors'
  data = path.read_bytes()
  assert json.dumps('float16').encode() in data
  path.write_bytes(data.replace(b'"nf4":"float16"', b'"nf4":"float17"'))
  for read in (network_files.read_network, lambda f: bases.load(str(f), WIDE)):
    with pytest.raises(ConvertError, match="found \\['float17'\\]"):
      read(source)
