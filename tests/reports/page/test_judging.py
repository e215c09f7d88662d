"""Agreement of judges, and what an order is worth, against values by hand."""

import re

import pytest

from tests.reports.page import run_fixture
from vlm_rlaif_jax.reports.page import judging, run_files, training_samples


def test_what_the_first_place_is_worth():
  """The answers cancel over both orders: what is left is the place."""
  rows = [
    {'forward': 1.0 + 0.5, 'swapped': -1.0 + 0.5},
    {'forward': -3.0 + 0.5, 'swapped': 3.0 + 0.5},
    {'margin': 1.0},
  ]
  assert judging.order_bias(rows) == {'first': 0.5, 'bias': pytest.approx(0.5)}
  assert judging.order_bias(rows[2:]) == {}


def test_the_reliability_of_a_judge():
  """All pairs that truth decides; a sure judge that is always right has no error."""
  sure = [{'margin': m, 'truth': [m, 0.0]} for m in (50.0, -50.0)]
  ties = [{'margin': 50.0, 'truth': [1.0, 1.0]}, {'margin': 50.0}]
  error, curve = judging.judge_curve([*sure, *ties])
  assert error == pytest.approx(0) and curve == [(1.0, 1.0, 2)]
  wrong, _ = judging.judge_curve([{'margin': 50.0, 'truth': [0.0, 1.0]}])
  assert wrong == pytest.approx(1)
  assert judging.judge_curve(ties) is None


def test_a_margin_of_nothing_is_half_a_hit(tmp_path):
  """As in the summaries; a model that gives all the same was 0 % right here."""
  folder = run_fixture.run(tmp_path / 'tiny')
  margins = {'own': [2.0, -1.0, 0.0], 'blank': [0.0, 0.0, 0.0]}
  margins['second_preferred'] = [True, True, False]
  run_fixture.dump(folder / 'reward' / 'margins.json', margins)
  (run,) = run_files.find([folder])
  text = re.sub('<.*?>', ' ', str(judging._reward_margins(run)))
  assert 'without the video 50.0 %' in text
  assert 'as labeled (1)' in text and 'against the label (1)' in text
  assert 'both alike (1)' in text
  rows = [
    {'margin': m, 'truth': [1.0, 0.0], 'answers': ['a', 'b']} for m in (1.0, -1.0, 0.0)
  ]
  (plot,) = judging._margin_plots(run, rows)
  text = re.sub('<.*?>', ' ', str(plot))
  assert 'right (1)' in text and 'wrong (1)' in text and 'undecided (1)' in text


def test_samples_of_labels_are_the_labels(tmp_path):
  """By the sign of the margin alone, pairs that were dropped were right or wrong."""
  folder = run_fixture.run(tmp_path / 'tiny')
  settings = {'label.min_margin': 1.0, 'label.ties': 'drop'}

  def outcomes(**changes):
    policies = {f'label.{name}': value for name, value in changes.items()}
    rows = [
      # sign of the margin: the first answer; of the order as sampled: the second
      {'margin': 1.5, 'forward': -0.5, 'swapped': -3.5, 'orders_agree': False},
      {'margin': 0.5, 'forward': 0.5, 'swapped': -0.5, 'orders_agree': True},
      {'margin': 2.0, 'forward': 2.0, 'swapped': -2.0, 'orders_agree': True},
      {'margin': 3.0, 'repeated': True},
    ]
    rows = [
      {
        'id': f'{n}', 'answers': ['a', 'b'], 'truth': [1.0, 0.0],
        'record': {'id': n, 'video': 'a.mp4'}, **row,
      }
      for n, row in enumerate(rows)
    ]  # fmt: skip
    identity = {'identity': {**settings, **policies}}
    run_fixture.lines(folder / 'label' / 'audit.jsonl', [identity, *rows])
    (run,) = run_files.find([folder])
    audit = judging.judged(run)
    assert len(audit) == 3
    samples = training_samples.preferences(run, audit, None)
    return {
      float(re.findall(r'Margin of the judge: (.*?)<', one.body[1])[0]): (
        one.outcome.removeprefix('label').strip(': '),
        re.findall(r'Answer (.) <span class="badge">preferred', one.body[0]),
      )
      for one in samples
    }

  right, tie = ('right', ['1']), ('a tie', [])
  assert outcomes(inconsistent='average') == {1.5: right, 0.5: tie, 2.0: right}
  disagree = outcomes(inconsistent='drop')
  assert disagree == {1.5: ('orders disagree', []), 0.5: tie, 2.0: right}
  assert outcomes(inconsistent='keep')[1.5] == ('wrong', ['2'])
  assert outcomes(inconsistent='average', ties='keep')[0.5] == right
