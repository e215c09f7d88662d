"""How long the prompts of labeling can become, so that a run cannot stop at one later.

The judge reads what the model writes, so a prompt's length is known only when the
answers are there. Its longest possible length follows from the limits on what is
written.
"""

from collections.abc import Sequence

from vlm_rlaif_jax.data import batches, examples, prompts, readers
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.labeling.narrative import Window
from vlm_rlaif_jax.settings.label import LabelRun

STEP = 256  # a bucket that is proposed is a multiple of it


def longest_judge_prompt(
  tokenizer: Tokenizer, settings: LabelRun, windows: Sequence[Window], item: Example
) -> int:
  """Returns the most tokens that the judge's prompt about a question can have."""
  label = settings.label
  by_options = label.judge == 'options'
  template = prompts.load(label.options_prompt if by_options else label.claims_prompt)
  blank = prompts.fill(
    template, narrative='', question=item.question, claim='', a='', b=''
  )
  size = len(readers.encode_question(tokenizer, item, blank))
  size += label.response_tokens * (2 if by_options else 1)
  if label.context == 'narrative' or label.compare:
    empty = prompts.narrative([''] * len(windows))
    size += len(tokenizer.pieces(empty)) + label.caption_tokens * len(windows)
  return size


def check_lengths(
  tokenizer: Tokenizer, settings: LabelRun, windows: Sequence[Window], item: Example
) -> Example:
  """Returns a question whose answers and judgments are sure to have room.

  Raises:
    DataError: they are not.
  """
  data, room = settings.data, settings.model.llama.max_positions
  visual = data.frames + settings.model.vision.patches
  try:
    question = batches.bucket(
      len(readers.encode_question(tokenizer, item)), data.buckets
    )
  except ValueError as error:
    raise examples.DataError(f'{item.where}: {error}') from None
  total = visual + question + settings.label.response_tokens
  if total > room:
    raise examples.DataError(
      f'{item.where}: {visual} visual tokens, a question in a bucket of {question} and '
      f'an answer of {settings.label.response_tokens} exceed '
      f'model.llama.max_positions {room}'
    )
  size = longest_judge_prompt(tokenizer, settings, windows, item)
  if size > data.buckets[-1]:
    raise examples.DataError(
      f"{item.where}: the judge's prompt about this question can have {size} tokens, "
      f'more than the longest of data.buckets ({data.buckets[-1]}); add '
      f'{-(-size // STEP) * STEP} to them, or lower label.response_tokens or '
      'label.caption_tokens'
    )
  return item
