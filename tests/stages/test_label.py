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
from vlm_rlaif_jax.train.journal import ResumeError
from vlm_rlaif_jax.train.profiling.flops import Meter


@pytest.mark.parametrize(
  ('keys', 'each', 'message'),
  [
    (['z', 'a', 'b'], 1, 'row 1 is about question a, expected z'),  # a row before them
    (['a', 'b', 'c'], 3, 'row 2 is about question b, expected a, of 3 rows a question'),
    (['a'], 1, 'row 2 is about question b, expected none'),
  ],
)
def test_rows_of_other_questions_are_not_gone_on_with(keys, each, message, tmp_path):
  """With on_change=ignore, after other data or another `label.answers`."""
  items = [Example(key, None, (('What?', ''),), {}) for key in keys]
  rows = [{'id': 'a'}, {'id': 'b'}]
  path = tmp_path / 'audit.jsonl'
  with pytest.raises(ResumeError, match=rf'audit\.jsonl: {message}'):
    label._check_rows(path, rows, items, each)
  more = [Example(key, None, (('What?', ''),), {}) for key in ('a', 'b', 'c')]
  label._check_rows(path, rows, more, 1)


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
