"""What cannot have room is refused before the first answer."""

import dataclasses

import pytest

from configs import label as label_config
from vlm_rlaif_jax.data import examples, prompts, readers, tokens
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.labeling import lengths, narrative
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.label import LabelRun
from vlm_rlaif_jax.weights import bases

TOKENIZER = tokens.load_tokenizer(bases.TINY)
RUN = from_config_dict(LabelRun, label_config.get_config())
WINDOWS = narrative.clip_windows(12, 4)


def item(question: str) -> examples.Example:
  messages = [{'from': 'human', 'value': question}]
  row = {'video': 'v.mp4', 'conversations': messages}
  return examples.parse_example(row, 'f row 3')


@pytest.mark.parametrize(
  ('kind', 'context'), [('claims', 'narrative'), ('options', 'none')]
)
def test_the_longest_prompt_is_that_of_the_longest_answers(kind, context):
  changed = dataclasses.replace(RUN.label, judge=kind, context=context, compare=0)
  run = dataclasses.replace(RUN, label=changed)
  question, word = item('What happens?'), ' the'
  longest = word * run.label.response_tokens
  story = prompts.narrative([word * run.label.caption_tokens] * len(WINDOWS))
  template = prompts.load(f'tiny_judge_{kind}')
  text = prompts.fill(
    template,
    narrative=story if context == 'narrative' else '',
    question=question.question,
    claim=longest,
    a=longest,
    b=longest,
  )
  real = len(readers.encode_question(TOKENIZER, question, text))
  bound = lengths.longest_judge_prompt(TOKENIZER, run, WINDOWS, question)
  assert real - 2 <= bound <= real + 12


def test_a_question_whose_judgments_may_not_fit_is_named():
  fits = item('What happens?')
  assert lengths.check_lengths(TOKENIZER, RUN, WINDOWS, fits) is fits
  with pytest.raises(DataError, match=r"row 3: the judge's prompt .* add 512 to them"):
    lengths.check_lengths(TOKENIZER, RUN, WINDOWS, item('Where is the ring? ' * 38))
  with pytest.raises(DataError, match=r'row 3: \d+ tokens do not fit'):
    lengths.check_lengths(TOKENIZER, RUN, WINDOWS, item('Where is the ring? ' * 90))


def test_an_answer_must_have_positions_after_the_question():
  llama = dataclasses.replace(RUN.model.llama, max_positions=440)
  model = dataclasses.replace(RUN.model, llama=llama)
  run = dataclasses.replace(RUN, model=model)
  question = item('Where is the ring? ' * 60)
  with pytest.raises(DataError, match=r'an answer of 32 exceed model\.llama\.max_pos'):
    lengths.check_lengths(TOKENIZER, run, WINDOWS, question)


@pytest.mark.parametrize('size', ['7b', '13b'])
def test_a_real_question_has_room_in_the_real_sizes(size):
  """Captions, answers and the texts around them leave 1,000 tokens to a question."""
  run = from_config_dict(LabelRun, label_config.get_config(size))
  windows = narrative.clip_windows(run.data.frames, run.label.clip_frames)
  written = 2 * run.label.response_tokens + len(windows) * run.label.caption_tokens
  assert run.data.buckets[-1] - written >= 1000 + 250
