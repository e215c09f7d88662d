import json

import pytest

from vlm_rlaif_jax.data import examples
from vlm_rlaif_jax.labeling import pairs
from vlm_rlaif_jax.settings.label import LabelConfig

RECORD = {
  'id': 'q',
  'video': 'v.mp4',
  'conversations': [
    {'from': 'human', 'value': '<image>\nWhat?'},
    {'from': 'gpt', 'value': 'old'},
  ],
}


def row(**more):
  return {
    'id': 'q', 'question': 'What?', 'answers': ['one', 'two'], 'narrative': '',
    'forward': 0.4, 'margin': 1.5, 'orders_agree': True, 'record': RECORD, **more,
  }  # fmt: skip


def test_a_pair_is_in_the_released_format():
  pair = pairs.as_pair(row(), LabelConfig())
  assert pair['output_1'] == {'value': 'one'} and pair['output_2'] == {'value': 'two'}
  assert pair['preference'] == 1
  assert pair['conversations'][1] == {'from': 'gpt', 'value': ''}
  assert pair['video'] == 'v.mp4'
  assert RECORD['conversations'][1]['value'] == 'old'  # the audit keeps the record
  assert pairs.as_pair(row(margin=-0.1), LabelConfig())['preference'] == 2
  json.dumps(pair)


@pytest.mark.parametrize(
  ('change', 'settings', 'preference'),
  [
    ({'answers': ['same', 'same']}, {}, None),
    ({'margin': 0.0}, {'ties': 'drop'}, None),
    ({'margin': 0.0}, {'ties': 'keep'}, 2),
    ({'margin': 0.3}, {'min_margin': 0.5}, None),
    ({'margin': float('nan')}, {'ties': 'keep'}, None),
    ({'margin': float('inf')}, {}, None),
    ({'orders_agree': False}, {'inconsistent': 'drop'}, None),
    ({'orders_agree': False, 'margin': -1.0}, {'inconsistent': 'average'}, 2),
    ({'orders_agree': False, 'margin': -1.0}, {'inconsistent': 'keep'}, 1),
  ],
)
def test_policies(change, settings, preference):
  pair = pairs.as_pair(row(**change), LabelConfig(**settings))
  assert (pair['preference'] if pair else None) == preference


def test_a_run_without_pairs_is_explained(tmp_path):
  unjudged = {k: v for k, v in row().items() if k != 'margin'}
  rows = [row(answers=['same', 'same']), row(margin=0.1), row(margin=0.2), unjudged]
  settings = LabelConfig(min_margin=0.5)
  assert not any(pairs.as_pair(one, settings) for one in rows)
  message = pairs.no_pairs_message(rows, settings, tmp_path)
  assert message.startswith(
    f'{tmp_path}/audit.jsonl: 0 pairs of 4 questions: 1 not judged'
  )
  assert '1 with two identical answers, 2 dropped by' in message
  assert 'min_margin=0.5' in message and '\n' not in message


def test_agreement_with_truth_and_between_orders():
  rows = [
    row(truth=[1.0, 0.0], margin_other_context=-1.0),
    row(truth=[0.0, 1.0], margin_other_context=-1.0, orders_agree=False),
    row(truth=[0.5, 0.5]),
    row(answers=['x', 'x'], truth=[1.0, 1.0]),
  ]
  result = pairs.agreement(rows, LabelConfig(inconsistent='drop'))
  assert result['identical'] == 1
  assert result['informative'] == 2
  assert result['agreement'] == 0.5
  assert result['compared'] == {'n': 2, 'narrative': 0.5, 'none': 0.5}
  assert result['order_agreement'] == pytest.approx(2 / 3)
  assert result['agreement_kept'] == 1.0


def test_ties_count_for_neither_side():
  """Of the truth: left out and counted. Of the judge: half right."""
  ties = LabelConfig(ties='keep')
  first, second = {'truth': [1.0, 0.0]}, {'truth': [0.0, 1.0]}
  for margin_of_tie in (first, second):
    rows = [row(**first), row(margin=0.0, **margin_of_tie), row(truth=[0.5, 0.5])]
    result = pairs.agreement(rows, ties)
    assert result['agreement'] == result['agreement_kept'] == 0.75
    assert result['truth_ties'] == 1


def test_which_answers_were_cut_is_kept_and_counted():
  cut, ended = row(id='cut', stopped=[True, False]), row(stopped=[True, True])
  former = row()  # of a run before answers said it
  equal = row(id='equal', stopped=[False, False], answers=['x', 'x'])
  rows = [cut, ended, former, equal]
  made = [pairs.as_pair(one, LabelConfig()) for one in rows]
  assert made[0]['output_1'] == {'value': 'one', 'stopped': True}
  assert made[0]['output_2'] == {'value': 'two', 'stopped': False}
  assert made[2]['output_1'] == {'value': 'one'}
  read = [examples.parse_pair(pair, 'f').stopped for pair in made if pair]
  assert read == [(True, False), (True, True), (True, True)]
  counts = pairs.cut_answers(rows, LabelConfig())
  assert counts == {'questions': 2, 'pairs': 1, 'ids': ['cut', 'equal']}


def test_questions_with_cut_answers_are_counted_where_they_share_an_id():
  """As of files whose ids are those of videos; three pairs are one question."""
  rows = [row(stopped=[True, False]), row(), row(stopped=[False, True])] * 2
  counts = pairs.cut_answers(rows, LabelConfig(answers=3))
  assert counts == {'questions': 2, 'pairs': 4, 'ids': ['q']}


def test_a_record_with_messages_by_another_name():
  messages = [{'role': 'user', 'content': '<image>What?'}]
  record = {'id': 'q', 'video': 'v.mp4', 'messages': messages, 'image': None}
  pair = pairs.as_pair(row(record=record), LabelConfig())
  assert examples.parse_pair(pair, 'f').example.question == 'What?'


# ---------------------------------------------------------------- more than two answers


def duels(margins, texts=('a', 'b', 'c')):
  """Returns the rows of all pairs of three answers; a margin of None is not judged."""
  rows = []
  for (i, j), margin in zip(pairs.pairs_of(3), margins, strict=True):
    verdict = {'unjudged': 'too long'} if margin is None else {'margin': margin}
    shared = {'id': 'q', 'record': RECORD, 'narrative': ''}
    rows.append({**shared, 'answers': [texts[i], texts[j]], **verdict})
  return rows


def test_every_answer_meets_every_other():
  assert pairs.pairs_of(2) == [(0, 1)]
  assert pairs.pairs_of(3) == [(0, 1), (0, 2), (1, 2)]
  for answers, count in ((2, 1), (3, 3), (4, 6)):
    assert pairs.rows_per_question(LabelConfig(answers=answers)) == count
    settings = LabelConfig(answers=answers, pairs='extremes')
    assert pairs.rows_per_question(settings) == 1
  with pytest.raises(ValueError, match='answers: must be >= 2, got 1'):
    LabelConfig(answers=1)


def test_all_pairs_are_kept_once():
  rows = duels([1.0, -2.0, -3.0], texts=('a', 'b', 'b'))
  kept = pairs.chosen_rows(rows, LabelConfig(answers=3))
  assert [row.get('repeated', False) for row in kept] == [False, True, False]
  made = [pairs.as_pair(row, LabelConfig()) for row in kept]
  assert [pair and pair['preference'] for pair in made] == [1, None, None]  # b with b
  result = pairs.agreement(
    [{**row, 'truth': [1.0, 0.0]} for row in kept], LabelConfig()
  )
  assert result['informative'] == 1 and result['identical'] == 1


@pytest.mark.parametrize(
  ('margins', 'kept'),
  [
    ([1.0, 3.0, 2.0], ['a', 'c']),  # a > b > c
    ([-1.0, 2.0, 3.0], ['b', 'c']),  # b > a > c: in the order that they were sampled in
    ([0.0, 0.0, 0.0], ['a', 'b']),
    ([None, None, None], ['a', 'b']),
  ],
)
def test_the_best_meets_the_worst(margins, kept):
  (row,) = pairs.chosen_rows(duels(margins), LabelConfig(answers=3, pairs='extremes'))
  assert row['answers'] == kept
