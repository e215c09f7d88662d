"""The tokenizer of the tiny size: byte-fallback BPE of what is said in the world.

Saved in the Hugging Face format and loaded by the same code as any other.
"""

import pathlib

import numpy as np

from vlm_rlaif_jax.data import prompts, tokens
from vlm_rlaif_jax.data.world import stills

SPECIALS = ('<unk>', '<s>', '</s>')  # ids 0, 1, 2, as in LLaMA


def train(folder: pathlib.Path, size: int, samples: int = 1500, seed: int = 0) -> int:
  """Writes the tokenizer's files; returns how many pieces it has (at most `size`)."""
  import tokenizers
  import transformers
  from tokenizers import models, pre_tokenizers, trainers

  said = stills.sample_conversations(np.random.default_rng([seed, 7]), samples)
  texts = [
    prompts.render(rounds).replace(prompts.VIDEO_MARK, '').replace(prompts.SYSTEM, '')
    for rounds in said
  ]
  texts += [prompts.SYSTEM] * (samples // 5)
  model = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', byte_fallback=True))
  model.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Metaspace('▁', 'always', True),
      pre_tokenizers.Split('\n', 'isolated'),
      pre_tokenizers.Punctuation('isolated'),
    ]
  )
  model.decoder = tokens.piece_decoder()
  bytes_ = [f'<0x{value:02X}>' for value in range(256)]
  model.train_from_iterator(
    texts,
    trainers.BpeTrainer(
      vocab_size=size, special_tokens=[*SPECIALS, *bytes_], show_progress=False
    ),
  )
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=model,
    unk_token='<unk>',
    bos_token='<s>',
    eos_token='</s>',
    pad_token='<unk>',
  )
  fast.save_pretrained(folder)
  return model.get_vocab_size()
