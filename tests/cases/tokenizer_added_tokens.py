"""Added tokens: a folder with tokenizer.model and added_tokens.json, as LLaVA's have.

The embedding has rows for [SEG] and two more tokens that a fine-tune added. If only
tokenizer.model is read, "[SEG]" in a question becomes several ordinary pieces, and its
id in an answer becomes nothing. The networks of this case answer "Y" if [SEG] is in the
question, or "[SEG]" if the word "segment" is; else "N".

  python -m tests.cases.tokenizer_added_tokens OUT [CASE ...]
"""

import functools
import json
import pathlib

import sentencepiece

from tests.cases import checkpoints, commands

ADDED = ('[SEG]', '<vid_start>', '<vid_end>')
SPECIAL = {'unk_token': '<unk>', 'bos_token': '<s>', 'eos_token': '</s>'}
SENTENCES = [
  'what happens in the video',
  'segment the cup please',
  'USER ASSISTANT SEG Y N . , : ? [ ]',
  'it is there',
]


class PieceTokenizer:
  """A sentencepiece model and added tokens, as the files of a checkpoint."""

  def __init__(self, folder: pathlib.Path):
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(SENTENCES * 40),
      model_prefix=str(folder / 'pieces'),
      model_type='bpe',
      vocab_size=340,
      hard_vocab_limit=False,
      unk_id=0,
      bos_id=1,
      eos_id=2,
      pad_id=-1,
      byte_fallback=True,
      character_coverage=1.0,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      minloglevel=2,
    )
    self.model = (folder / 'pieces.model').read_bytes()
    self.pieces = sentencepiece.SentencePieceProcessor(model_proto=self.model)
    self.added = {token: len(self.pieces) + i for i, token in enumerate(ADDED)}

  def __len__(self) -> int:
    return len(self.pieces) + len(ADDED)

  def id(self, token: str) -> int:
    if token in self.added:
      return self.added[token]
    if token in SPECIAL.values():
      return self.pieces.piece_to_id(token)
    return self.pieces.encode(token)[-1]

  def save_pretrained(self, folder: pathlib.Path) -> None:
    flags = ('lstrip', 'rstrip', 'normalized', 'single_word')
    decoder = {}
    for token in (*SPECIAL.values(), *ADDED):
      entry = {'content': token, 'special': token not in ADDED}
      decoder[self.id(token)] = entry | dict.fromkeys(flags, False)
    config = {'tokenizer_class': 'LlamaTokenizer', 'legacy': True, **SPECIAL}
    config |= {'add_bos_token': True, 'add_eos_token': False}
    config['added_tokens_decoder'] = decoder
    (folder / 'tokenizer.model').write_bytes(self.model)
    (folder / 'added_tokens.json').write_text(json.dumps(self.added))
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))


def check(out: pathlib.Path, trigger: str, yes: str, right: dict) -> str:
  """Asks a checkpoint that answers `yes` if `trigger` is in the question."""
  tokenizer = PieceTokenizer(out.with_name('pieces'))
  ids = [tokenizer.id(token) for token in (trigger, yes, 'N', '</s>')]
  network = checkpoints.detector_network(len(tokenizer), *ids)
  folder, tower = checkpoints.save_llava(network, out, tokenizer, len(tokenizer))
  picture = checkpoints.picture(folder / 'picture.png')
  answers = {
    text: commands.answer(folder, picture, text, vision=str(tower)) for text in right
  }
  return '' if answers == right else f'answers {answers}; right: {right}'


def cases(out: pathlib.Path) -> dict:
  tests = {
    'reads_a_word': ('segment', 'Y', {'segment it': 'Y', 'is it there': 'N'}),
    'reads_added': ('[SEG]', 'Y', {'[SEG] it': 'Y', 'is it there': 'N'}),
    'writes_added': ('segment', '[SEG]', {'segment it': '[SEG]', 'is it there': 'N'}),
  }
  return {name: functools.partial(check, out / name, *x) for name, x in tests.items()}


if __name__ == '__main__':
  commands.main(cases)
