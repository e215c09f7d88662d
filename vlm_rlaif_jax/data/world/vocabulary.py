"""The tokenizer of the tiny size: byte-fallback BPE, trained on texts of the world.

It is saved in the Hugging Face format and loaded by the same code as any other.
"""

import pathlib

import numpy as np

from vlm_rlaif_jax.data import prompts, tokenizer_files
from vlm_rlaif_jax.data.world import questions, stills, texts
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.questions import Rounds

SPECIALS = ('<unk>', '<s>', '</s>')  # ids 0, 1, 2, as in LLaMA


def train(folder: pathlib.Path, size: int, samples: int = 1500, seed: int = 0) -> int:
  """Writes the tokenizer's files; returns how many pieces it has (at most `size`)."""
  import tokenizers
  import transformers
  from tokenizers import models, pre_tokenizers, trainers

  conversations = sample_conversations(np.random.default_rng([seed, 7]), samples)
  corpus = [
    prompts.render(rounds).replace(prompts.VIDEO_MARK, '').replace(prompts.SYSTEM, '')
    for rounds in conversations
  ]
  corpus += [prompts.SYSTEM] * (samples // 5)
  model = tokenizers.Tokenizer(models.BPE(unk_token='<unk>', byte_fallback=True))
  model.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Metaspace('▁', 'always', True),
      pre_tokenizers.Split('\n', 'isolated'),
      pre_tokenizers.Punctuation('isolated'),
    ]
  )
  model.decoder = tokenizer_files.piece_decoder()
  bytes_ = [f'<0x{value:02X}>' for value in range(256)]
  model.train_from_iterator(
    corpus,
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


def sample_conversations(rng: np.random.Generator, count: int) -> list[Rounds]:
  """Returns text for the tokenizer: every form of question and answer of the world.

  Args:
    count: scenes that are talked about.
  """
  conversations: list[Rounds] = []
  for _ in range(count):
    scene = scenes.sample_scene(rng)
    short = questions.short_questions(scene, rng)
    for qa in short + questions.long_questions(scene, rng):
      conversations.append(((qa.question, qa.answer),))
    conversations.append(texts.reading(scene, rng, judged=0.5))
    conversations.append(stills.picture_rounds(stills.sample_still(rng), rng))
    conversations.append(stills.strip_rounds(scene, rng, short=8))
    phase = int(rng.integers(scenes.PHASES))
    conversations.append(stills.part_rounds(scene, phase, rng))
  return conversations
