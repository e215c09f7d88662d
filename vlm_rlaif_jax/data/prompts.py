"""The texts around a question: conversation template and stage prompts.

The template is Vicuna v1, as in training and so in evaluation:

    {system} USER: <image>\\n{question} ASSISTANT: {answer}</s>USER: ...

The prompts of labeling and scoring are text files in `prompts/`, one a purpose; a
config names the file (without .txt) or gives the path of the user's own.
"""

import pathlib
import re
from collections.abc import Sequence

from vlm_rlaif_jax.settings.build import UserError

VIDEO_MARK = '<image>'  # where the visual tokens go; the released data's name for it
MARKS = (VIDEO_MARK, '<video>')  # what files may call it
BOS, EOS = '<s>', '</s>'
ANSWER = 'ASSISTANT:'  # where an answer begins
SYSTEM = (
  'A chat between a curious user and an artificial intelligence assistant. The '
  "assistant gives helpful, detailed, and polite answers to the user's questions."
)
TEMPLATE = 'vicuna_v1'  # recorded with every checkpoint; never guessed from a path
V0_SEPARATOR = '###'  # ends every turn of the template llava_v0, the system text too

_FOLDER = pathlib.Path(__file__).with_name('prompts')

# Setting of a prompt -> what it has to have a place for, as {question}.
PLACES = {
  'choice_prompt': ('question', 'options'),
  'options_prompt': ('question', 'a', 'b'),
  'claims_prompt': ('question', 'claim'),
  'own_model_prompt': ('prediction',),
}

Turns = tuple[tuple[str, str | None], ...]  # (question, answer), ...

# Where a statement ends: at punctuation with the brackets and quotation marks that it
# closes; scripts without spaces have none after it. And at the end of a line, as items
# of a list and paragraphs often have no punctuation.
_CLOSERS = r'["\'’”»)\]}*_」』）】》]*'
_STATEMENT_END = re.compile(
  rf'[.,;!?…।،؛؟]{_CLOSERS}(?=\s|$)|[。，；！？]{_CLOSERS}|(?=[ \t]*\n)'
)
# The 1. of an item of a list says nothing
_ITEM = re.compile(r'(?:^|\n)[ \t]*\(?\d{1,3}[.)](?=[ \t]+\S)')


class PromptError(UserError):
  """A prompt that cannot be read; the message names those that exist."""


def unmarked(question: str) -> str:
  """Returns a question without its video mark, by either name."""
  for mark in MARKS:
    question = question.replace(mark, '')
  return question.strip()


def render(turns: Turns, *, video: bool = True) -> str:
  """Returns a conversation as one text; an answer of None ends it at `ANSWER`.

  The video mark moves to the front of the first question, followed by a newline.

  Raises:
    ValueError: a mark in an answer, where it would be a second video.
  """
  text = SYSTEM + ' '
  for index, (question, answer) in enumerate(turns):
    question = unmarked(question)
    if index == 0 and video:
      question = f'{VIDEO_MARK}\n{question}'
    text += f'USER: {question} {ANSWER}'
    if answer is not None:
      if VIDEO_MARK in answer:
        raise ValueError(f'video mark {VIDEO_MARK} in an answer')
      text += f' {answer}{EOS}'
  return text


def ask(question: str, template: str = TEMPLATE, *, video: bool = True) -> str:
  """Returns a question up to where its answer starts.

  Args:
    template: `vicuna_v1`, or `llava_v0` as the reference's evaluation (register B31).
  """
  if template == TEMPLATE:
    return render(((question, None),), video=video)
  system = SYSTEM.replace('user', 'human')
  mark = f'{VIDEO_MARK}\n' if video else ''
  question = mark + unmarked(question)
  return f'{system}{V0_SEPARATOR}Human: {question}{V0_SEPARATOR}Assistant:'


def answer_of(text: str, template: str = TEMPLATE) -> str:
  """Returns an answer without the separator that ends a turn of `llava_v0`."""
  return text if template == TEMPLATE else text.split(V0_SEPARATOR)[0].strip()


def find(name: str) -> pathlib.Path:
  """Returns the file of a prompt: a name in `prompts/`, or a path."""
  for path in (_FOLDER / f'{name}.txt', pathlib.Path(name)):
    try:
      if path.is_file():
        return path
    except OSError:  # too long for a name: the text itself, most likely
      continue
  names = ', '.join(sorted(p.stem for p in _FOLDER.glob('*.txt')))
  raise PromptError(f'prompt {name!r}: neither a file nor one of {names}')


def load(name: str) -> str:
  """Returns the text of a prompt, stripped; see `find`."""
  path = find(name)
  try:
    return path.read_text(encoding='utf-8-sig').strip()
  except (OSError, UnicodeDecodeError) as error:
    raise PromptError(f'prompt {name!r}: cannot be read ({error})') from None


def check_places(text: str, names: Sequence[str], prompt: str) -> None:
  """Raises PromptError for a prompt without a place for something that it is about.

  Args:
    names: of the places.
    prompt: its name or path.
  """
  for name in names:
    check_any_place(text, (name,), prompt)


def check_any_place(text: str, names: Sequence[str], prompt: str) -> None:
  """Raises PromptError for a prompt that has none of some places."""
  places = [f'{{{name}}}' for name in names]
  if not any(place in text for place in places):
    raise PromptError(
      f'prompt {prompt!r} has no {" or ".join(places)}, so that what belongs there is '
      'not shown; write it where it is to stand'
    )


def check_end(text: str, prompt: str) -> None:
  """Raises PromptError for a reward prompt after which no Yes or No can come."""
  if not text.endswith(ANSWER):
    raise PromptError(
      f'prompt {prompt!r} does not end in {ANSWER!r}, behind which '
      'config.reward.head_start=judge reads Yes or No; use reward_judge, or '
      'head_start=random'
    )


def narrative(captions: list[str]) -> str:
  """Returns the captions of the clips of a video as 'Clip 1: ...', a line each."""
  return '\n'.join(f'Clip {i}: {text}' for i, text in enumerate(captions, 1))


def statements(text: str, ended: bool) -> list[str]:
  """Returns the beginnings of an answer, each with one more statement.

  'It stays, then it goes. It is red.' -> 'It stays,', 'It stays, then it goes.', all;
  'It says "Stop." It goes.' -> 'It says "Stop."', all; '- a ring\n- a ball' -> '- a
  ring', all.

  Args:
    ended: whether the answer ended by itself. Then what follows its last punctuation is
      a statement, too, else a false one could hide by leaving out the full stop. Of an
      answer that was cut at its limit, that rest is unfinished and says nothing yet;
      one without any punctuation is a single statement.
  """
  items = [match.end() for match in _ITEM.finditer(text)]
  markers = items if len(items) > 1 else []  # one '3.' answers how many
  ends: list[int] = []
  for match in _STATEMENT_END.finditer(text):
    line = text[ends[-1] if ends else 0 : match.end()].strip()
    says_nothing = not re.search(r'\w', line) or line.endswith(':')
    if match.end() in markers or (not match[0] and says_nothing):
      continue
    ends.append(match.end())
  if ended and ends and re.search(r'\w', text[ends[-1] :]):
    ends.append(len(text))
  return [text[:end] for end in ends] or [text]


def fill(template: str, **values: str) -> str:
  """Puts values into a template in one pass: braces inside a value stay as they are."""
  names = '|'.join(values)
  return re.sub(rf'\{{({names})\}}', lambda m: values[m[1]], template).strip()
