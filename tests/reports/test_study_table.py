import json

import numpy as np
import pytest

from vlm_rlaif_jax.reports import study_table

CELLS = {
  'default': {'expect': 'up', 'claim': 'it helps'},
  'inverted': {'expect': 'down', 'claim': 'wrong labels hurt'},
  'honest': {'expect': 'same', 'claim': 'nothing to gain'},
  'blind': {'worse_than': 'default', 'claim': 'sight wins'},
}


def write(root, name, seed, change):
  """What a cell leaves; it gains `change` of the long answers, 0.01 or a multiple."""
  folder = root / f'{name}-{seed}' / 'tiny'
  long = {'hallucination_rate': 0.4, 'fact_recall': 0.5}
  summaries = {
    'label': {'agreement_kept': 0.7},
    'reward': {'accuracy': 0.7, 'accuracy_without_video': 0.5},
    'eval': {
      'sft': {'long': long},
      'rlaif': {'long': {**long, 'hallucination_rate': 0.3}},
    },
  }
  for stage, summary in summaries.items():
    (folder / stage).mkdir(parents=True)
    (folder / stage / 'summary.json').write_text(json.dumps(summary))
  answer(folder / 'eval', round(400 * change))


def answer(folder, gained):
  """Answers to 400 questions about as many clips: RLAIF has so many more."""
  for model, right in (('sft', 100), ('rlaif', 100 + gained)):
    lines = [
      json.dumps(
        {
          'question_id': f'q{i}',
          'video_name': f'{i}.mp4',
          'kind': 'course',
          'answer': 'It moves.',
          'prediction': 'It moves.' if i < right else 'It stays.',
        }
      )
      for i in range(400)
    ]
    (folder / f'qa_{model}.jsonl').write_text('\n'.join(lines))


def test_verdicts_follow_the_intervals(tmp_path):
  write(tmp_path, 'default', 42, 0.06)
  write(tmp_path, 'default', 43, 0.04)
  write(tmp_path, 'inverted', 42, -0.0025)
  write(tmp_path, 'blind', 42, 0.0)
  results = study_table.read(tmp_path, CELLS, (42, 43))
  verdicts = {name: result['verdict'] for name, result in results.items()}
  assert verdicts == {
    'default': 'holds here',
    'inverted': 'not decided',
    'honest': 'not run',
    'blind': 'holds here: default leads by +6.0 [3.7, 8.3]',
  }
  mean = results['default']['long']
  assert mean['change'] == pytest.approx(0.05)
  assert mean['interval'][0] < 0.05 < mean['interval'][1]
  assert results['default']['seeds'][0]['long']['change'] == pytest.approx(0.06)
  assert results['default']['short'] is None  # no such question was asked


def test_a_control_that_gains_does_not_behave(tmp_path):
  write(tmp_path, 'honest', 42, 0.06)
  write(tmp_path, 'inverted', 42, 0.06)
  write(tmp_path, 'blind', 42, 0.06)
  results = study_table.read(tmp_path, CELLS, (42,))
  assert results['honest']['verdict'] == results['inverted']['verdict'] == 'does not'
  assert results['blind']['verdict'] == 'not decided: default has not run'


def test_cells_of_other_sft_data_are_compared_by_what_rlaif_makes_of_them(tmp_path):
  cells = {
    'default': CELLS['default'],
    'short_only': {'worse_than': 'default', 'by': 'final', 'claim': 'long is needed'},
  }
  write(tmp_path, 'default', 42, 0.06)
  write(tmp_path, 'short_only', 42, 0.01)
  results = study_table.read(tmp_path, cells, (42,))
  verdict = 'holds here: default leads by +5.0 [2.9, 7.1]'
  assert results['short_only']['verdict'] == verdict


@pytest.mark.parametrize(
  ('interval', 'decided'),
  [
    ((-0.045, 0.021), 'holds here'),
    ((-0.2, 0.2), 'not decided'),  # of a few clips, say
    ((0.001, 0.02), 'does not'),
  ],
)
def test_nothing_gained_needs_a_narrow_interval(interval, decided):
  result = {'seeds': [{}], 'expect': 'same', 'long': {'interval': interval}}
  assert study_table.verdict(result) == decided


def test_a_cell_may_claim_to_be_the_better_one(tmp_path):
  claim = {'better_than': 'default', 'claim': 'size helps'}
  cells = {'default': CELLS['default'], 'larger': claim, 'largest': claim}
  for name, change in (('default', 0.06), ('larger', 0.12), ('largest', 0.01)):
    write(tmp_path, name, 42, change)
  results = study_table.read(tmp_path, cells, (42,))
  assert results['larger']['verdict'].startswith('holds here: it leads by +6.0 [')
  assert results['largest']['verdict'].startswith('does not: it leads by -5.0 [')


def test_a_lead_is_by_question_and_over_the_seeds_that_both_have(tmp_path):
  for seed, change in ((42, 0.06), (43, 0.12)):
    write(tmp_path, 'default', seed, change)
  write(tmp_path, 'blind', 43, 0.02)
  lead = study_table.read(tmp_path, CELLS, (42, 43))['blind']['lead']
  difference = np.r_[np.ones(40), np.zeros(360)]  # 10 % of the questions
  error = difference.std(ddof=1) / 400**0.5
  assert lead['change'] == pytest.approx(0.1)
  assert lead['error'] == pytest.approx(error)
  assert lead['interval'] == pytest.approx((0.1 - 1.96 * error, 0.1 + 1.96 * error))
  (tmp_path / 'blind-43/tiny/eval/qa_rlaif.jsonl').unlink()
  results = study_table.read(tmp_path, CELLS, (42, 43))
  assert results['blind']['verdict'] == 'not decided: default has not run'


def test_a_critic_of_another_size_has_its_reward_model_elsewhere(tmp_path):
  cells = {'larger': {'critic': 'small', 'expect': 'up', 'claim': 'it helps'}}
  write(tmp_path, 'larger', 42, 0.06)
  assert study_table.read(tmp_path, cells, (42,))['larger']['verdict'] == 'not run'
  (tmp_path / 'larger-42/small').mkdir()
  (tmp_path / 'larger-42/tiny/reward').rename(tmp_path / 'larger-42/small/reward')
  assert study_table.read(tmp_path, cells, (42,))['larger']['verdict'] == 'holds here'


def test_the_table_has_a_row_a_cell(tmp_path):
  write(tmp_path, 'default', 42, 0.06)
  lines = study_table.table(study_table.read(tmp_path, CELLS, (42,)))
  assert len(lines) == 2 + len(CELLS)
  assert '| +6.0 [3.7, 8.3] |' in lines[2] and '40.0% → 30.0%' in lines[2]
  assert lines[3].endswith('| not run |')


def test_what_did_not_run_may_be_of_a_former_study(tmp_path):
  write(tmp_path / 'former', 'default', 42, 0.06)
  write(tmp_path / 'former', 'blind', 42, 0.0)
  former = json.loads(json.dumps(study_table.read(tmp_path / 'former', CELLS, (42,))))
  write(tmp_path / 'now', 'default', 43, 0.04)
  now = study_table.read(tmp_path / 'now', CELLS, (42, 43))
  both = study_table.with_former(now, former)
  assert both['default'] == now['default']
  lines = dict(zip(both, study_table.table(both)[2:], strict=True))
  assert '| 43 | +4.0' in lines['default'] and '| not run |' in lines['honest']
  assert '| 42, former study | +0.0' in lines['blind']
  assert lines['blind'].endswith('| holds here: default leads by +6.0 [3.7, 8.3] |')


def test_held_out_scores_have_the_kl_of_the_policy_that_they_are_of(tmp_path):
  rows = [
    {'step': 0, 'held_out/judge': 0.2},
    {'step': 1, 'kl': 0.0},
    {'step': 2, 'kl': 0.5},
    {'step': 2, 'held_out/judge': 0.4},
  ]
  path = tmp_path / 'metrics.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  assert study_table.held_out(path) == [
    {'step': 0, 'kl': 0.0, 'held_out/judge': 0.2},
    {'step': 2, 'kl': 0.5, 'held_out/judge': 0.4},
  ]
  assert study_table.held_out(tmp_path / 'none.jsonl') == []
