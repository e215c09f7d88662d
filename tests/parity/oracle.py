"""PyTorch networks of the size of `tests.tiny`, with random weights, and their files.

All in float32. A test reads the files with `vlm_rlaif_jax.weights`, so the names are
checked together with the numbers.
"""

import warnings

import numpy as np

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import torch
  import transformers

from tests import tiny
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.weights import network_files, tensor_files, weight_forms, writers

torch.set_num_threads(1)
CFG = tiny.CFG
ATOL = 1e-4  # of logits in float32; what is smaller has its own, stricter


def randomize(module, seed: int = 0, scale: float = 0.3):
  """Weights away from any initialization; norms near one."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, value in module.named_parameters():
      noise = torch.randn(value.shape, generator=generator)
      is_norm = 'norm' in name and name.endswith('weight')
      value.copy_(1 + 0.2 * noise if is_norm else scale * noise)
  return module.eval()


def llama_config(**changes):
  llama = CFG.llama
  return transformers.LlamaConfig(
    **{
      'vocab_size': llama.vocab,
      'hidden_size': llama.width,
      'intermediate_size': llama.mlp,
      'num_hidden_layers': llama.layers,
      'num_attention_heads': llama.heads,
      'num_key_value_heads': llama.kv_heads,
      'head_dim': llama.head_dim,
      'max_position_embeddings': llama.max_positions,
      'rms_norm_eps': llama.eps,
      'attn_implementation': 'eager',
      'pad_token_id': 0,
      'bos_token_id': 1,
      'eos_token_id': 2,
      **changes,
    }
  )


def vision_config():
  vision = CFG.vision
  return transformers.CLIPVisionConfig(
    hidden_size=vision.width,
    intermediate_size=vision.mlp,
    num_hidden_layers=vision.layers,
    num_attention_heads=vision.heads,
    image_size=vision.image_size,
    patch_size=vision.patch_size,
    projection_dim=CFG.joint,
    attn_implementation='eager',
  )


def llama(seed: int = 0):
  return randomize(transformers.LlamaForCausalLM(llama_config()), seed)


def clip(seed: int = 1, eos: int = 60):
  text = CFG.text
  config = transformers.CLIPConfig(
    vision_config=vision_config().to_dict(),
    text_config={
      'vocab_size': text.vocab,
      'max_position_embeddings': text.context,
      'hidden_size': text.width,
      'intermediate_size': text.mlp,
      'num_hidden_layers': text.layers,
      'num_attention_heads': text.heads,
      'eos_token_id': eos,
      'bos_token_id': 1,
    },
    projection_dim=CFG.joint,
    attn_implementation='eager',
  )
  return randomize(transformers.CLIPModel(config), seed, 0.2)


def llava(seed: int = 2):
  """With two rows more in the vocabulary, as Hugging Face's layout has."""
  config = transformers.LlavaConfig(
    vision_config=vision_config().to_dict(),
    text_config=llama_config(vocab_size=CFG.llama.vocab + 2).to_dict(),
    image_token_index=CFG.llama.vocab,
    vision_feature_layer=CFG.vision.feature_layer,
    attn_implementation='eager',
  )
  return randomize(transformers.LlavaForConditionalGeneration(config), seed)


def saved(model, folder):
  """Files of a model, written by transformers."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    model.save_pretrained(folder)
  return folder


def ours(folder, parts=('llama', 'projector', 'tower'), **kwargs):
  """Files -> sizes and our weights in float32, all parts that are there."""
  checkpoint = network_files.read_network(folder, **kwargs)
  leaves = checkpoint.weights(parts)
  form = weight_forms.Form('float32')
  sink = tensor_files.MemoryWriter(writers.shapes_of(leaves, form))
  writers.write_weights(sink, checkpoint, leaves, form, lambda items: items)
  return checkpoint.cfg, trees.unflatten(sink.arrays)


def pooled(projected):
  """`[F, P, D]` -> `[F + P, D]`, the closed form of the method."""
  return torch.cat([projected.mean(dim=1), projected.mean(dim=0)])


def spliced(ids, embeddings, visual):
  """One row: E[0:p], V, E[p+1:], in plain Python."""
  slot = ids.tolist().index(-200)
  return torch.cat([embeddings[:slot], visual, embeddings[slot + 1 :]])


def as_torch(array):
  return torch.from_numpy(np.array(array))
