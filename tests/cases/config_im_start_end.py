"""A LLaVA 1.0 checkpoint: config.json asks for <im_start> and <im_end> around pictures.

Where the field is ignored, the network does not see the two tokens that it was trained
with. Right: it sees them, or one line refuses the field by name. The network of this
case answers "Y" if <im_start> reached it, else "N".

  python -m tests.cases.config_im_start_end OUT [CASE ...]
"""

import functools
import pathlib

from tests.cases import checkpoints, commands

FIELD = 'mm_use_im_start_end'


def make(out: pathlib.Path, value: bool) -> tuple[pathlib.Path, pathlib.Path]:
  """Writes a checkpoint with the field in its config.json, and its vision tower."""
  last = ('<im_patch>', '<im_start>', '<im_end>')
  tokenizer = checkpoints.byte_tokenizer(last=last)
  ids = tokenizer.convert_tokens_to_ids(['<im_start>', 'Y', 'N', '</s>'])
  network = checkpoints.detector_network(len(tokenizer), *ids)
  rows = len(tokenizer)
  return checkpoints.save_llava(network, out, tokenizer, rows, **{FIELD: value})


def check(out: pathlib.Path, value: bool) -> str:
  folder, tower = make(out, value)
  picture = checkpoints.picture(folder / 'picture.png')
  answer = commands.answer(folder, picture, 'What is it?', vision=str(tower))
  refused = value and answer.startswith('refused') and FIELD in answer
  if refused or answer == ('Y' if value else 'N'):
    return ''
  right = f"'Y', or one line that refuses {FIELD}" if value else "'N'"
  return f'answer {answer!r}; right: {right}'


def cases(out: pathlib.Path) -> dict:
  return {
    str(value).lower(): functools.partial(check, out / str(value).lower(), value)
    for value in (False, True)
  }


if __name__ == '__main__':
  commands.main(cases)
