"""What an output depends on beside weights and prompts."""

import dataclasses
import types

from tests import tiny
from vlm_rlaif_jax.data.tokens import load_tokenizer
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference import file_contents
from vlm_rlaif_jax.weights import bases

TOKENIZER = load_tokenizer(bases.TINY)
VIDEO = Video(('v.mp4',))


def digest(contents='a', tokenizer=TOKENIZER, cfg=tiny.CFG):
  features = types.SimpleNamespace(
    key=lambda item: f'{contents} of {item.paths}', model=types.SimpleNamespace(cfg=cfg)
  )
  return file_contents.digest(features, tokenizer, VIDEO)  # type: ignore[arg-type]


def test_a_replaced_file_is_noticed():
  llama = dataclasses.replace(tiny.CFG.llama, rope_theta=5e5)
  others = [
    digest(contents='b'),
    digest(tokenizer=dataclasses.replace(TOKENIZER, fingerprint='other')),
    digest(tokenizer=dataclasses.replace(TOKENIZER, other_ends=(7,))),
    digest(cfg=dataclasses.replace(tiny.CFG, llama=llama)),
  ]
  assert len({digest(), *others}) == 5
  assert digest() == digest(cfg=dataclasses.replace(tiny.CFG, remat='none'))


def test_a_tokenizer_has_the_fingerprint_of_its_files(tmp_path):
  assert TOKENIZER.fingerprint
  for file in bases.TINY.glob('*token*'):
    (tmp_path / file.name).write_bytes(file.read_bytes())
  assert load_tokenizer(tmp_path).fingerprint == TOKENIZER.fingerprint
  (tmp_path / 'added_tokens.json').write_text('{"[SEG]": 4000}')
  assert load_tokenizer(tmp_path).fingerprint != TOKENIZER.fingerprint
