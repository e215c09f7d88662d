"""The page of the study."""

import re

from vlm_rlaif_jax.reports.page import study


def change(points):
  return {
    'change': points / 100,
    'error': 0.01,
    'interval': (points / 100 - 0.02, points / 100 + 0.02),
  }


def cell(points, pairs, seed=42):
  held_out = [
    {'step': 0, 'kl': 0.0, 'held_out/reward': 0.1, 'held_out/judge': 0.2},
    {'step': 5, 'kl': 1.5, 'held_out/reward': 0.6, 'held_out/judge': 0.5},
  ]
  row = {
    'seed': seed,
    'pairs': pairs,
    'reward_accuracy': 0.8,
    'reward_accuracy_blind': 0.6,
    'long': change(points),
    'held_out': held_out,
  }
  parts = {part: change(points) for part in study.NAMES}
  return {'claim': 'a <claim>', 'verdict': 'holds here', 'seeds': [row], **parts}


def test_the_page_has_every_cell_that_ran_and_curves_over_pairs_and_kl():
  not_run = {'claim': 'later', 'verdict': 'not run', 'seeds': []}
  results = {'default': cell(12, 1700), 'pairs_400': cell(5, 400), 'blind': not_run}
  changes = {model: change(-5) for model in ('sft', 'rlaif')}
  accuracy = {'base': 0.7, 'sft': 0.65, 'rlaif': 0.6}
  kind = {'long': False, 'questions': 9, 'accuracy': accuracy, 'changes': changes}
  text = study.page(results, {'color': kind})
  assert 'default default 12.0 [10.0, 14.0]' in text.replace('pairs_400', '')
  assert 'seed 42: from 5 at 400 to 12 at pairs 1,700' in text
  assert (
    'judge: from 0.2 at 0 to 0.5 at KL of an answer to the initial policy 1.5' in text
  )
  assert 'SFT; RLAIF' in text
  assert 'a &lt;claim&gt;' in text and 'not run' in text
  assert not re.search(r'(src|href)="https?:', text)


def test_a_study_without_a_run_says_so():
  text = study.page({'default': {'claim': 'x', 'verdict': 'not run', 'seeds': []}}, {})
  assert text.count('Not run.') == 4
