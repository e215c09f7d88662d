"""Texts through the path of retrieval: tokenizer files, weights, encoder.

Unit vectors are equal to those of transformers within 1e-5, over-long texts included.
"""
# ruff: noqa: E402 - torch may be absent, and is asked for first

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('transformers')

import jax

from tests import clip_tokenizer
from tests.parity import oracle
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.inference.text_encoder import TextEncoder
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.weights import text_towers

pytestmark = [
  pytest.mark.parity,
  pytest.mark.slow,
  pytest.mark.filterwarnings('ignore'),
]
CONTEXT = 77
SHORT = ['A man runs the dog.', 'the the', '', 'Two  men;\nONE ran: 12 times!']
SENTENCES = [
  'A man runs to the sea with the dog.',
  'He stops, and then he turns around.',
]


def checkpoint(folder, kind):
  """Writes CLIP with random weights and its tokenizer; returns both of transformers."""
  import transformers

  tokenizer = clip_tokenizer.write(folder)
  text = {
    'vocab_size': len(tokenizer.get_vocab()),
    'max_position_embeddings': CONTEXT,
    'hidden_size': 64,
    'intermediate_size': 96,
    'num_hidden_layers': 3,
    'num_attention_heads': 2,
    'bos_token_id': tokenizer.bos_token_id,
    'eos_token_id': tokenizer.eos_token_id,
    'pad_token_id': tokenizer.eos_token_id,
  }
  if kind == 'both':
    config = transformers.CLIPConfig(
      vision_config=oracle.vision_config().to_dict(),
      text_config=text,
      projection_dim=24,
      attn_implementation='eager',
    )
    model = transformers.CLIPModel(config)
  else:  # 512 is the default of transformers, so its file leaves it out
    config = transformers.CLIPTextConfig(
      **text, projection_dim=512, attn_implementation='eager'
    )
    model = transformers.CLIPTextModelWithProjection(config)
  model = oracle.randomize(model, 3, 0.2)
  oracle.saved(model, folder)
  return model, tokenizer


def expected(model, tokenizer, texts):
  """Unit vectors by transformers, a text at a time."""
  rows = []
  for text in texts:
    ids = tokenizer(text, return_tensors='pt')
    with torch.no_grad():
      if hasattr(model, 'get_text_features'):
        out = model.get_text_features(**ids)
        out = getattr(out, 'pooler_output', out)
      else:
        out = model(**ids).text_embeds
    rows.append(out[0].numpy())
  rows = np.stack(rows)
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize('kind', ['both', 'text alone'])
def test_vectors_of_texts_of_any_length(tmp_path, kind):
  model, tokenizer = checkpoint(tmp_path, kind)
  tower = text_towers.load(str(tmp_path), '', VlmConfig())
  mesh = sharding.data_mesh(jax.devices()[:2])
  encode = TextEncoder(tower.cfg, tower.joint, tower.params, tower.tokenizer, mesh, 8)
  np.testing.assert_allclose(
    encode(SHORT).vectors, expected(model, tokenizer, SHORT), atol=1e-5, rtol=0
  )

  # Sentences of a text over 77 tokens, each on its own, and their unit mean.
  text = ' '.join(SENTENCES * 2)
  assert len(tokenizer(text)['input_ids']) > CONTEXT
  mean = expected(model, tokenizer, SENTENCES).mean(axis=0)
  (vector,), (is_long,) = encode([text])
  assert is_long
  np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5, rtol=0)

  # One sentence over 77 tokens, by windows of 75 between beginning and end.
  text = 'and then ' * 30
  ids = tokenizer(text, add_special_tokens=False)['input_ids']
  windows = [ids[i : i + CONTEXT - 2] for i in range(0, len(ids), CONTEXT - 2)]
  assert len(windows) > 1
  rows = []
  for window in windows:
    row = [tokenizer.bos_token_id, *window, tokenizer.eos_token_id]
    with torch.no_grad():
      ids = torch.tensor([row])
      if kind == 'both':
        out = model.get_text_features(input_ids=ids)
        out = getattr(out, 'pooler_output', out)
      else:
        out = model(input_ids=ids).text_embeds
    rows.append(out[0].numpy() / np.linalg.norm(out[0].numpy()))
  mean = np.mean(rows, axis=0)
  np.testing.assert_allclose(
    encode([text]).vectors[0], mean / np.linalg.norm(mean), atol=1e-5, rtol=0
  )
