import json

import pytest

from vlm_rlaif_jax.reports import study_table

CELLS = {
  'default': {'expect': 'up', 'claim': 'it helps'},
  'inverted': {'expect': 'down', 'claim': 'wrong labels hurt'},
  'honest': {'expect': 'same', 'claim': 'nothing to gain'},
  'blind': {'worse_than': 'default', 'claim': 'sight wins'},
}


def write(root, name, seed, change, half_width):
  folder = root / f'{name}-{seed}' / 'tiny'
  interval = {'change': change, 'interval': [change - half_width, change + half_width]}
  long = {'hallucination_rate': 0.4, 'fact_recall': 0.5}
  summaries = {
    'label': {'agreement_kept': 0.7},
    'reward': {'accuracy': 0.7, 'accuracy_without_video': 0.5},
    'eval': {
      'sft': {'long': long},
      'rlaif': {'long': {**long, 'hallucination_rate': 0.3}},
      'changes': {'sft': {'long': interval, 'all': interval}},
    },
  }
  for stage, summary in summaries.items():
    (folder / stage).mkdir(parents=True)
    (folder / stage / 'summary.json').write_text(json.dumps(summary))


def test_verdicts_follow_the_intervals(tmp_path):
  write(tmp_path, 'default', 42, 0.06, 0.02)
  write(tmp_path, 'default', 43, 0.04, 0.02)
  write(tmp_path, 'inverted', 42, -0.01, 0.02)
  write(tmp_path, 'blind', 42, 0.0, 0.02)
  results = study_table.read(tmp_path, CELLS, (42, 43))
  verdicts = {name: result['verdict'] for name, result in results.items()}
  assert verdicts == {
    'default': 'holds here',
    'inverted': 'not decided',
    'honest': 'not run',
    'blind': 'holds here',
  }
  mean = results['default']['long']
  assert mean['change'] == pytest.approx(0.05)
  assert mean['interval'][0] == pytest.approx(0.05 - 0.02 / 2**0.5)


def test_a_control_that_gains_does_not_behave(tmp_path):
  write(tmp_path, 'honest', 42, 0.06, 0.02)
  write(tmp_path, 'inverted', 42, 0.06, 0.02)
  write(tmp_path, 'blind', 42, 0.06, 0.02)
  results = study_table.read(tmp_path, CELLS, (42,))
  assert results['honest']['verdict'] == results['inverted']['verdict'] == 'does not'
  assert results['blind']['verdict'] == 'not decided: default has not run'


def test_the_table_has_a_row_a_cell(tmp_path):
  write(tmp_path, 'default', 42, 0.06, 0.02)
  lines = study_table.table(study_table.read(tmp_path, CELLS, (42,)))
  assert len(lines) == 2 + len(CELLS)
  assert '| +6.0 [4.0, 8.0] |' in lines[2] and '40.0% → 30.0%' in lines[2]
  assert lines[3].endswith('| not run |')
