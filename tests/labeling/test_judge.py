import types

import numpy as np
import pytest

from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.labeling import judge
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.weights import bases


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
  answers = [['The ring stays. The ring moves up.', 'The ring vanishes.']]
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
  texts = ['The ring stays.', 'The ring moves up.', 'The ring stays. It moves up.']
  duels = [[texts[i], texts[j]] for i, j in ((0, 1), (0, 2), (1, 2))]
  verdicts = judge.Judge(generator, settings).verdicts([item] * 3, duels, [''] * 3)
  assert counts == [3]  # the third answer begins as the first
  alone = [
    judge.Judge(generator, settings).verdicts([item], [duel], [''])[0] for duel in duels
  ]
  assert verdicts == alone
