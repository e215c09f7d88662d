import types

import numpy as np
import pytest

from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.labeling import judge
from vlm_rlaif_jax.labeling.answers import Answer
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.weights import bases


def answers_of(*texts: str, stopped: bool = True) -> list[Answer]:
  return [Answer(text, stopped) for text in texts]


@pytest.mark.parametrize(
  'claims_score, scores', [('sum', [3.0, 2.5]), ('mean', [1.5, 2.5])]
)
def test_claims_add_up_or_are_averaged(claims_score, scores):
  generator = types.SimpleNamespace(
    tokenizer=tokens.load_tokenizer(bases.TINY),
    buckets=(512,),
    log_odds=lambda prompts, videos, options: np.asarray([1.0, 2.0, 2.5]),
  )
  settings = LabelConfig(
    judge='claims', claims_prompt='tiny_judge_claims', claims_score=claims_score
  )
  item = Example('a', Video(('a.mp4',)), (('What happens?', ''),), {})
  answers = [answers_of('The ring stays. The ring moves up.', 'The ring vanishes.')]
  (verdict,) = judge.Judge(generator, settings).verdicts([item], answers, [''])
  assert verdict['scores'] == scores
  assert verdict['margin'] == scores[0] - scores[1]


def test_what_pairs_have_in_common_is_asked_once():
  """Three answers make three pairs; each of their statements is judged once."""
  counts = []

  def log_odds(prompts, videos, options):
    counts.append(len(prompts))
    return np.asarray([float(len(ids)) for ids in prompts])

  generator = types.SimpleNamespace(
    tokenizer=tokens.load_tokenizer(bases.TINY), buckets=(512,), log_odds=log_odds
  )
  settings = LabelConfig(judge='claims', claims_prompt='tiny_judge_claims')
  item = Example('a', Video(('a.mp4',)), (('What happens?', ''),), {})
  texts = answers_of(
    'The ring stays.', 'The ring moves up.', 'The ring stays. It moves up.'
  )
  duels = [[texts[i], texts[j]] for i, j in ((0, 1), (0, 2), (1, 2))]
  verdicts = judge.Judge(generator, settings).verdicts([item] * 3, duels, [''] * 3)
  assert counts == [3]  # the third answer begins as the first
  alone = [
    judge.Judge(generator, settings).verdicts([item], [duel], [''])[0] for duel in duels
  ]
  assert verdicts == alone


@pytest.mark.parametrize(('stopped', 'count'), [(True, 3), (False, 2)])
def test_a_claim_without_a_full_stop_is_judged_unless_it_was_cut(stopped, count):
  prompts = []

  def log_odds(encoded, videos, options):
    prompts.extend(map(generator.tokenizer.decode, encoded))
    return np.ones(len(encoded))

  generator = types.SimpleNamespace(
    tokenizer=tokens.load_tokenizer(bases.TINY), buckets=(512,), log_odds=log_odds
  )
  settings = LabelConfig(judge='claims', claims_prompt='tiny_judge_claims')
  item = Example('a', Video(('a.mp4',)), (('What happens?', ''),), {})
  duel = [Answer('The ring stays. It moves up', stopped), Answer('It goes.', True)]
  (verdict,) = judge.Judge(generator, settings).verdicts([item], [duel], [''])
  assert len(prompts) == count
  assert any('It moves up' in prompt for prompt in prompts) == stopped
  assert verdict['scores'] == [count - 1, 1]
