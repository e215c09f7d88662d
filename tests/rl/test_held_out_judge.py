import dataclasses

import numpy as np
import pytest

from configs import models
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.labeling.answers import Answer
from vlm_rlaif_jax.rl.held_out_judge import AnswerJudge
from vlm_rlaif_jax.weights import bases

TOKENIZER = tokens.load_tokenizer(bases.TINY)
ITEMS = [
  Example('a', Video(('a.mp4',)), (('What happens?', ''),), {}),
  Example('b', Video(('b.mp4',)), (('What happens?', ''),), {}),
]


def answers_of(*texts: str, stopped: bool = True) -> list[Answer]:
  return [Answer(text, stopped) for text in texts]


STORIES = {item.video: 'Clip 1: The ring stays.' for item in ITEMS}


class FakeGenerator:
  """Holds statements true that its caption has."""

  tokenizer, buckets = TOKENIZER, (384,)

  def log_odds(self, prompts, videos, options):
    self.prompts = [TOKENIZER.decode(ids) for ids in prompts]
    return np.asarray(
      [9.0 if 'Answer: The ring stays.' in p else -9.0 for p in self.prompts]
    )


def test_an_answer_is_worth_its_true_claims_less_its_false_ones():
  generator = FakeGenerator()
  judge = AnswerJudge(generator, models.tiny_judge(), STORIES)
  answers = answers_of('The ring stays.', 'The ring moves up. The ring moves up.')
  assert judge.scores(ITEMS, answers) == pytest.approx([1, -2], abs=1e-3)
  assert 'Clip 1: The ring stays.' in generator.prompts[0]


def test_an_empty_answer_is_worth_nothing_and_one_that_fits_no_bucket_is_false():
  judge = AnswerJudge(FakeGenerator(), models.tiny_judge(), STORIES)
  too_long = 'The ring stays ' * 200
  assert judge.scores(ITEMS, answers_of('', too_long)) == [0, -1]


@pytest.mark.parametrize('claims_score', ['sum', 'mean'])
def test_the_reward_of_an_answer_is_the_sum_or_mean_of_its_claims(claims_score):
  settings = dataclasses.replace(models.tiny_judge(), claims_score=claims_score)
  judge = AnswerJudge(FakeGenerator(), settings, STORIES)
  answers = answers_of(
    'The ring stays. It moves, it stays.', 'The ring moves up. It stays.'
  )
  found = judge.rewards(ITEMS, answers)
  assert found.dtype == np.float32
  # Three beginnings that the judge believes, and two that it does not
  expected = [3, -2] if claims_score == 'sum' else [1, -1]
  np.testing.assert_allclose(found, expected, atol=1e-2)
  np.testing.assert_allclose(judge.rewards(ITEMS[:1], answers_of('')), [-1])


@pytest.mark.parametrize(('stopped', 'value'), [(True, -2), (False, -1)])
def test_a_false_claim_does_not_hide_by_leaving_out_the_full_stop(stopped, value):
  """Of an answer that was cut, the rest is unfinished and counts as nothing."""
  judge = AnswerJudge(FakeGenerator(), models.tiny_judge(), STORIES)
  answers = answers_of('The ring moves up. It moves left', stopped=stopped)
  assert judge.scores(ITEMS[:1], answers) == pytest.approx([value], abs=1e-3)
