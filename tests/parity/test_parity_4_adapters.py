"""LoRA against peft: forward, gradient, merge, files.

float32; forward 1e-4 absolute, gradients 1e-4 relative, merged equals unmerged to 1e-5.
"""
# ruff: noqa: E402 - torch may be absent, and is asked for first

import copy
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip('torch')
peft = pytest.importorskip('peft')
transformers = pytest.importorskip('transformers')

from tests import tiny
from tests.parity import oracle
from tests.weights import checkpoints
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.objectives import likelihood
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.weights import adapters, conversion, head_files, names, peft_files
from vlm_rlaif_jax.weights.conversion import Request

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings('ignore')]
CFG = oracle.CFG
TARGETS = ['q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj']
NOTHING = np.zeros((2, 1, CFG.llama.width), np.float32)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  model = oracle.llama()
  folder = oracle.saved(model, tmp_path_factory.mktemp('llama'))
  return folder, oracle.ours(folder, ['llama'])


def peft_model(targets=tuple(TARGETS)):
  config = peft.LoraConfig(
    r=4,
    lora_alpha=8,
    lora_dropout=0.0,
    target_modules=list(targets),
    task_type='CAUSAL_LM',
  )
  model = peft.get_peft_model(oracle.llama(), config)
  generator = torch.Generator().manual_seed(5)
  with torch.no_grad():
    for name, value in model.named_parameters():
      if 'lora_' in name:
        # B A is smaller than W, as adapters are: float32 passes through a network
        # that they upset differ by more than a merge rounds
        value.copy_(0.1 * torch.randn(value.shape, generator=generator))
  return model.eval()


@pytest.fixture(scope='module', params=['all', 'attention'])
def pair(request, tmp_path_factory):
  """A peft model and our reading of its files."""
  model = peft_model(TARGETS if request.param == 'all' else TARGETS[:4])
  folder = tmp_path_factory.mktemp('adapter')
  model.save_pretrained(folder)
  adapter = peft_files.read(folder)
  expected = 7 if request.param == 'all' else 4
  assert len(adapter.lora.targets) == expected and adapter.lora.alpha == 8
  return model, adapter


@pytest.fixture
def ids(rng):
  return rng.integers(3, CFG.llama.vocab, (2, 9))


def our_logits(cfg, params, ids, adapter=None, lora: LoraConfig | None = None):
  model = Vlm(cfg, lora)
  variables = {'params': params}
  if adapter is not None:
    variables['lora'] = adapter

  @jax.jit
  def run(variables):
    hidden, _, _ = vlm.hidden(model, variables, ids, ids != 0, NOTHING)
    return vlm.logits(model, variables, hidden)

  return run(variables)


def test_forward(base, pair, ids):
  _, (cfg, params) = base
  model, adapter = pair
  found = our_logits(cfg, params, ids, trees.unflatten(adapter.flat), adapter.lora)
  with torch.no_grad():
    theirs = model(oracle.as_torch(ids)).logits
  np.testing.assert_allclose(found, theirs.numpy(), atol=oracle.ATOL, rtol=0)


@pytest.mark.slow
def test_gradient(base, pair, ids):
  _, (cfg, params) = base
  model, adapter = pair

  def loss(lora):
    logits = our_logits(cfg, params, ids, lora, adapter.lora)
    logp = likelihood.log_probabilities(logits[:, :-1], jnp.asarray(ids[:, 1:]))
    return likelihood.cross_entropy(logp, jnp.ones(logp.shape, bool))

  value, gradient = jax.jit(jax.value_and_grad(loss))(trees.unflatten(adapter.flat))
  rows = oracle.as_torch(ids)
  model.zero_grad()
  theirs = model(rows, labels=rows).loss
  theirs.backward()
  np.testing.assert_allclose(value, theirs.item(), rtol=1e-5)
  stacked = trees.flatten(gradient)
  compared = 0
  for name, parameter in model.named_parameters():
    if 'lora_' not in name:
      continue
    linear, layer, side = names.parse_peft_name(name)
    found = np.asarray(stacked[f'llama/layers/{linear}/{side}'][layer])
    expected = parameter.grad.numpy()
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 1e-4, (name, error)
    compared += 1
  assert compared == 2 * CFG.llama.layers * len(adapter.lora.targets)


@pytest.mark.slow
def test_merge(base, pair, ids):
  """Merged equals unmerged; merged weights are peft's, and rounded once."""
  _, (cfg, params) = base
  model, adapter = pair
  tree = trees.unflatten(adapter.flat)
  merged = adapters.merge(params, tree, adapter.lora)
  unmerged = our_logits(cfg, params, ids, tree, adapter.lora)
  assert np.abs(our_logits(cfg, params, ids) - unmerged).max() > 1
  np.testing.assert_allclose(our_logits(cfg, merged, ids), unmerged, atol=1e-5, rtol=0)
  theirs = copy.deepcopy(model).merge_and_unload()
  for name in adapter.lora.targets:
    module = names.MODULES[name]
    for i, block in enumerate(theirs.model.layers):
      found = merged['llama']['layers'][name]['w'][i]
      expected = block.get_submodule(module).weight.detach().numpy()
      np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
      w, a, b = (
        np.float64(flat[i])
        for flat in (
          params['llama']['layers'][name]['w'],
          *(adapter.flat[f'llama/layers/{name}/{side}'] for side in 'ab'),
        )
      )
      np.testing.assert_array_equal(found, np.float32(w + 2.0 * (b @ a)))


def test_our_adapter_loads_in_peft(base, pair, ids, tmp_path):
  """ours -> files -> peft: the same logits; -> ours: bit for bit."""
  folder, _ = base
  model, adapter = pair
  peft_files.write(tmp_path, adapter.flat, adapter.lora, str(folder))
  loaded = peft.PeftModel.from_pretrained(oracle.llama(), tmp_path).eval()
  with torch.no_grad():
    rows = oracle.as_torch(ids)
    np.testing.assert_array_equal(loaded(rows).logits, model(rows).logits)
  again = peft_files.read(tmp_path)
  assert again.lora == adapter.lora
  for name, value in adapter.flat.items():
    np.testing.assert_array_equal(again.flat[name], value)


def test_an_exported_stage_loads_on_an_exported_base(ids, tmp_path):
  """Both in Hugging Face's layout: every lora_B is filled, the logits are ours."""
  base = checkpoints.write_base(tmp_path / 'ours')
  flat = checkpoints.write_adapter(tmp_path / 'lora')
  conversion.convert(tmp_path / 'lora', tmp_path / 'init', Request(base=str(base)))
  hf = tmp_path / 'hf'
  conversion.convert(base, hf, Request(to='hf'))
  conversion.convert(
    tmp_path / 'init', tmp_path / 'peft', Request(to='peft-hf', base_name=str(hf))
  )
  network = transformers.LlavaForConditionalGeneration.from_pretrained(hf)
  with warnings.catch_warnings():
    warnings.filterwarnings('error', message='.*missing adapter keys.*')
    loaded = peft.PeftModel.from_pretrained(network, tmp_path / 'peft').eval()
  filled = [float(v.abs().max()) for n, v in loaded.named_parameters() if 'lora_B' in n]
  assert len(filled) == 7 * CFG.llama.layers and min(filled) > 0
  cfg, params = oracle.ours(base)
  found = our_logits(cfg, params, ids, trees.unflatten(flat), tiny.LORA)
  with torch.no_grad():
    theirs = loaded(oracle.as_torch(ids)).logits[..., : CFG.llama.vocab]
  np.testing.assert_allclose(found, theirs.numpy(), atol=oracle.ATOL, rtol=0)


def test_an_adapter_as_bin(pair, tmp_path):
  """peft 0.4 wrote a pickle in bfloat16, below `adapter_model/lora_default`."""
  import json

  model, adapter = pair
  folder = tmp_path / 'adapter_model' / 'lora_default'
  folder.mkdir(parents=True)
  state = peft.get_peft_model_state_dict(model)
  torch.save({n: v.bfloat16() for n, v in state.items()}, folder / 'adapter_model.bin')
  targets = sorted(model.peft_config['default'].target_modules)
  config = {'peft_type': 'LORA', 'r': 4, 'lora_alpha': 8, 'target_modules': targets}
  (folder / 'adapter_config.json').write_text(json.dumps(config))
  found = peft_files.read(peft_files.find(tmp_path)[''])
  for name, value in adapter.flat.items():
    assert found.flat[name].dtype.name == 'bfloat16'
    np.testing.assert_array_equal(
      found.flat[name].astype(np.float32), value.astype(found.flat[name].dtype)
    )


def test_heads_cross_over(tmp_path, rng):
  head = {'w': rng.normal(size=16).astype(np.float32), 'b': np.float32(0.5)}
  head_files.write(tmp_path / 'reward_head', head)
  state = torch.load(tmp_path / 'reward_head', weights_only=True)
  linear = torch.nn.Linear(16, 1)
  linear.load_state_dict(state)
  torch.save(linear.state_dict(), tmp_path / 'value_head.pt')
  again = head_files.read(tmp_path / 'value_head.pt')
  np.testing.assert_array_equal(again['w'], head['w'])
  assert again['b'] == head['b'] and again['b'].shape == ()
