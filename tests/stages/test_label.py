"""What the stage label hands to its judge, with a generator that is faked."""

import types

import jax
import numpy as np
import pytest

from tests.own_data import TOKENIZER
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.labeling.costs import Costs
from vlm_rlaif_jax.labeling.judge import Judge
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.stages import label
from vlm_rlaif_jax.train.profiling.flops import Meter


@pytest.mark.parametrize(('cut', 'claims'), [(False, 2), (True, 1)])
def test_the_rest_of_an_answer_is_judged_if_it_ended(cut, claims):
  """What follows the last full stop is a claim, or the beginning of one."""
  ids = list(TOKENIZER.pieces('The ring stays. It moves up'))
  other = [*TOKENIZER.pieces('It stays.'), TOKENIZER.eos]
  answers = [[np.array(ids if cut else [*ids, TOKENIZER.eos]), np.array(other)]]
  generator = types.SimpleNamespace(
    tokenizer=TOKENIZER,
    buckets=(512,),
    generate=lambda *_, copies: answers,
    log_odds=lambda prompts, videos, options: np.ones(len(prompts)),
  )
  settings = LabelConfig(judge='claims', claims_prompt='tiny_judge_claims', answers=2)
  narratives = types.SimpleNamespace(of=lambda items: ['Clip 1: red'] * len(items))
  item = Example('a', Video(('a.mp4',)), (('What happens?', ''),), {})
  costs = Costs(Meter())
  (row,) = label._label(
    settings, generator, Judge(generator, settings), narratives, [item], range(1),
    jax.random.key(0), costs,
  )  # fmt: skip
  assert row['stopped'] == [not cut, True]
  assert row['answers'] == ['The ring stays. It moves up', 'It stays.']
  assert row['scores'] == [claims, 1]
  assert set(costs.parts) == {'answers', 'narratives', 'judgments'}
  assert costs.questions == 1
