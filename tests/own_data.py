"""A user's own file of samples, and a run on it whose videos are never decoded."""

import json
import types

import jax
import numpy as np

from tests.tiny import CFG
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.data.examples import Skipped
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig
from vlm_rlaif_jax.weights import bases

TOKENIZER = tokens.load_tokenizer(bases.TINY)
NAMES = {f'{number}.mp4' for number in range(60)} | {'v.mp4'}  # videos that are there


def record(number: int, question: str = 'What happens?', **more) -> dict:
  messages = [
    {'from': 'human', 'value': f'<video>\n{question}'},
    {'from': 'gpt', 'value': 'The red circle moves left.'},
  ]
  row = {'id': f'own{number}', 'video': f'{number}.mp4', 'conversations': messages}
  return {**row, **more}


def workspace(root, rows, policy='stop', *, bad=None, **more):
  """Returns a run on `rows`: what a stage uses of its `RunContext`."""
  (root / 'my.json').write_text(json.dumps(rows))
  for name in {row['video'] for row in rows if 'video' in row} | NAMES:
    (root / name).write_bytes(name.encode())
  data = DataConfig(
    **{
      'root': str(root), 'train': 'my.json', 'buckets': (256,), 'frames': 12,
      'on_bad_sample': policy, **more,
    }
  )  # fmt: skip
  features = types.SimpleNamespace(
    encode=lambda videos, *_: bad or {},
    read=lambda what, video: np.zeros((data.frames + CFG.vision.patches, 16)),
    model=Vlm(CFG),
  )
  return types.SimpleNamespace(
    data=data,
    skipped=Skipped(policy),
    mesh=sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1]),
    features=lambda *_: features,
    artifact=lambda stage, _: root,
  )


BASE = types.SimpleNamespace(tokenizer=TOKENIZER, fingerprint='base')
