"""QLoRA training beside transformers + peft + bitsandbytes: the same losses.

The oracle's weights are what bitsandbytes' dequantize_4bit gives; ours stay packed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.core.quant import nf4
from vlm_rlaif_jax.nn.attention import causal_mask
from vlm_rlaif_jax.nn.llama import Llama
from vlm_rlaif_jax.objectives import likelihood
from vlm_rlaif_jax.settings.models import LINEARS, LlamaConfig, LoraConfig
from vlm_rlaif_jax.settings.sections import OptimConfig
from vlm_rlaif_jax.train import optim
from vlm_rlaif_jax.weights import adapters

torch = pytest.importorskip('torch')
bnb = pytest.importorskip('bitsandbytes.functional')
peft = pytest.importorskip('peft')
transformers = pytest.importorskip('transformers')

pytestmark = [
  pytest.mark.parity,
  pytest.mark.filterwarnings('ignore:.*is_gradient_checkpointing:FutureWarning'),
]
CFG = LlamaConfig(
  vocab=96, width=128, mlp=256, layers=2, heads=4, kv_heads=4, head_dim=32
)
LORA = LoraConfig(rank=8, alpha=16.0)
THEIRS = {
  **{name: f'self_attn.{name}_proj' for name in 'qkvo'},
  **{name: f'mlp.{name}_proj' for name in ('gate', 'up', 'down')},
}
STEPS, BATCH, LENGTH, RATE = 50, 4, 24, 2e-3


def plain_peer():
  torch.manual_seed(0)
  network = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=CFG.vocab, hidden_size=CFG.width, intermediate_size=CFG.mlp,
      num_hidden_layers=CFG.layers, num_attention_heads=CFG.heads,
      num_key_value_heads=CFG.kv_heads, rms_norm_eps=CFG.eps,
    )
  )  # fmt: skip
  with torch.no_grad():
    for weight in network.parameters():
      if weight.ndim == 2:
        weight *= 4  # from 0.02: every layer is to matter
  return network


def stacked(network, name: str, attribute: str = 'weight'):
  modules = [layer.get_submodule(name) for layer in network.model.layers]
  return np.stack([getattr(m, attribute).detach().numpy().copy() for m in modules])


def base_of(network) -> dict:
  """Our tree of its weights, the linears in NF4."""
  numpy = lambda weight: jnp.asarray(weight.detach().numpy().copy())
  layers = {
    name: {'w': jax.tree.map(jnp.asarray, nf4.quantize(stacked(network, theirs)))}
    for name, theirs in THEIRS.items()
  }
  norms = {'attn_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
  layers |= {
    ours: {'scale': jnp.asarray(stacked(network, theirs))}
    for ours, theirs in norms.items()
  }
  return {
    'tokens': {'w': numpy(network.model.embed_tokens.weight)},
    'layers': layers,
    'final_norm': {'scale': numpy(network.model.norm.weight)},
    'head': {'w': numpy(network.lm_head.weight)},
  }


def quantize_(network) -> None:
  """Every linear of the decoder through bitsandbytes and back."""
  with torch.no_grad():
    for layer in network.model.layers:
      for name in THEIRS.values():
        weight = layer.get_submodule(name).weight
        packed, state = bnb.quantize_4bit(
          weight.data, compress_statistics=True, quant_type='nf4'
        )
        weight.copy_(bnb.dequantize_4bit(packed, state))


def adapter_of(model, gradient: bool = False) -> dict:
  """Our tree of peft's adapter, or of its gradient."""
  network = model.base_model.model

  def read(name, part):
    weights = [
      layer.get_submodule(f'{name}.lora_{part}.default').weight
      for layer in network.model.layers
    ]
    values = [(w.grad if gradient else w.detach()).numpy().copy() for w in weights]
    return jnp.asarray(np.stack(values))

  return {
    'layers': {
      ours: {'a': read(theirs, 'A'), 'b': read(theirs, 'B')}
      for ours, theirs in THEIRS.items()
    }
  }


def our_loss(adapter, base, ids):
  model = Llama(CFG, LORA)
  variables = {'params': base, 'lora': adapter}
  positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
  x = model.apply(variables, ids, method='embed')
  hidden, _ = model.apply(variables, x, positions, causal_mask(ids >= 0))
  logits = model.apply(variables, hidden[:, :-1], method='logits')
  return -jnp.mean(likelihood.log_probabilities(logits, ids[:, 1:]))


@pytest.mark.slow
def test_fifty_steps_of_qlora_have_the_losses_of_peft():
  network = plain_peer()
  base = base_of(network)
  quantize_(network)
  model = peft.get_peft_model(
    network,
    peft.LoraConfig(
      r=LORA.rank,
      lora_alpha=LORA.alpha,
      target_modules=[THEIRS[name].split('.')[1] for name in LINEARS],
    ),
  )
  with torch.no_grad():  # B away from zero, or A would have no gradient at first
    for name, weight in model.named_parameters():
      if 'lora_B' in name:
        weight.normal_(0, 0.02)
  adapter = adapter_of(model)
  rng = np.random.default_rng(0)
  data = rng.integers(1, CFG.vocab, (5, BATCH, LENGTH))

  trained = [p for p in model.parameters() if p.requires_grad]
  peer = torch.optim.AdamW(trained, RATE, weight_decay=0.0)
  settings = OptimConfig(learning_rate=RATE, warmup=0.0, schedule='constant')
  optimizer = optim.make_optimizer(settings)
  opt_state = optim.init_optimizer(optimizer, adapter)

  @jax.jit
  def step(adapter, opt_state, ids):
    loss, gradient = jax.value_and_grad(our_loss)(adapter, base, ids)
    adapter, opt_state = optim.apply_gradients(
      optimizer, gradient, opt_state, adapter, RATE
    )
    return adapter, opt_state, loss, gradient

  differences = []
  for number in range(STEPS):
    ids = data[number % len(data)]
    peer.zero_grad()
    theirs = model(input_ids=torch.from_numpy(ids), labels=torch.from_numpy(ids)).loss
    theirs.backward()
    adapter, opt_state, ours, gradient = step(adapter, opt_state, jnp.asarray(ids))
    if number == 0:
      expected = trees.flatten(adapter_of(model, gradient=True))
      for name, found in trees.flatten(gradient).items():
        scale = np.linalg.norm(expected[name])
        assert np.linalg.norm(found - expected[name]) <= 1e-3 * scale, name
      first = float(ours)
    peer.step()
    differences.append(abs(float(ours) - theirs.item()))
  assert float(ours) < first - 0.5
  assert max(differences) <= 1e-3


def test_a_fresh_adapter_starts_as_pefts():
  """A uniform within 1 / sqrt(in), B zero; scale alpha / rank."""
  lora = LoraConfig(rank=16, alpha=4.0)
  theirs = peft.get_peft_model(
    torch.nn.Sequential(torch.nn.Linear(256, 64)),
    peft.LoraConfig(r=16, lora_alpha=4, target_modules=['0']),
  ).base_model.model[0]
  assert theirs.scaling['default'] == lora.alpha / lora.rank
  ours = adapters.init_adapter(tiny.CFG, lora, jax.random.key(0))['llama']['layers']
  for a, b, inputs in (
    (*(x['default'].weight.detach() for x in (theirs.lora_A, theirs.lora_B)), 256),
    *((ours[name]['a'], ours[name]['b'], tiny.CFG.llama.width) for name in 'qkv'),
  ):
    assert 0.9 < float(abs(a).max()) * inputs**0.5 <= 1
    assert float(abs(b).max()) == 0
