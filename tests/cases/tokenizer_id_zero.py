"""A tokenizer whose id 0 is an ordinary token: "!" in those of Llama 3, Qwen and GPT-2.

Where id 0 is taken for padding, the network never sees it, and answers lose it. The
networks of this case answer "Y" if "!" is in the question, or "!" if "?" is; else "N".
With "!" at id 5 they do.

  python -m tests.cases.tokenizer_id_zero OUT [CASE ...]
"""

import functools
import pathlib

from tests.cases import checkpoints, commands

BEGIN, END = '<|begin_of_text|>', '<|eot_id|>'
LETTERS = ('a', 'b', 'c', 'd', 'e')
READS = {'Stop! What moves?': 'Y', 'Stop. What moves?': 'N'}
WRITES = {'What moves?': '!', 'It moves.': 'N'}


def make(
  out: pathlib.Path, first: tuple[str, ...], trigger: str, yes: str
) -> pathlib.Path:
  """Writes a checkpoint that answers `yes` if `trigger` is in the question."""
  tokenizer = checkpoints.byte_tokenizer(first, (BEGIN, END), bos=BEGIN, eos=END)
  ids = tokenizer.convert_tokens_to_ids([trigger, yes, 'N', END])
  network = checkpoints.detector_network(len(tokenizer), *ids)
  return checkpoints.save(network, out, tokenizer)


def check(
  out: pathlib.Path, first: tuple[str, ...], trigger: str, yes: str, right: dict
) -> str:
  folder = make(out, first, trigger, yes)
  picture = checkpoints.picture(folder / 'picture.png')
  answers = {text: commands.answer(folder, picture, text) for text in right}
  return '' if answers == right else f'answers {answers}; right: {right}'


def cases(out: pathlib.Path) -> dict:
  checks = {}
  for index, first in ((5, (*LETTERS, '!')), (0, ('!', *LETTERS))):
    for name, trigger, yes, right in (
      ('reads', '!', 'Y', READS),
      ('writes', '?', '!', WRITES),
    ):
      case = f'{name}_id_{index}'
      checks[case] = functools.partial(check, out / case, first, trigger, yes, right)
  return checks


if __name__ == '__main__':
  commands.main(cases)
