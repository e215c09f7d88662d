import json

from vlm_rlaif_jax.reports import study_default


def model(accuracy, invented, recalled):
  part = {'n': 10, 'hallucination_rate': invented, 'fact_recall': recalled}
  return {
    'qa_accuracy': accuracy,
    'hallucination_rate': invented,
    'fact_recall': recalled,
    'faults': {'swapped': {'right': accuracy}},
    'long': {**part, 'accuracy': accuracy},
    'short': {**part, 'accuracy': 1 - accuracy},
  }


def write(root, seed, after, stages=study_default.STAGES):
  history = {f'held_out/{name}': {'0': 0.1, '5': 0.2, '10': 0.9}
             for name in ('reward', 'judge', 'true_quality')}  # fmt: skip
  change = {'interval': [0.01, 0.2]}
  summaries = {
    'label': {'questions': 1001, 'pairs': 1950, 'agreement_kept': 0.72},
    'reward': {
      **{'accuracy': 0.8, 'accuracy_without_video': 0.55, 'held_out': 231},
      **{'accuracy_other_video': 0.5, 'accuracy_shorter': 0.56},
      'truth': {'own': 0.7, 'blank': 0.5, 'other': 0.6, 'shorter': 0.65, 'n': 170},
    },
    'ppo': {
      **{'reward_model': {'accuracy': 0.78}, 'final_iteration': 5},
      'history': history,
    },
    'eval': {
      **{'lineage': {'seed': seed}, 'base': model(0.45, 0.6, 0.2)},
      **{'sft': model(0.2, 0.5, 0.4), 'rlaif': model(after, 0.4, 0.6)},
      'changes': {'sft': {name: change for name in ('all', 'long', 'short')}},
      'benchmarks': {
        'generative': {
          'items': 128,
          'models': {
            'sft': {'mean': {'value': 2.7}},
            'rlaif': {'mean': {'value': 3.4}},
          },
          'changes': {'sft': {'mean': {'change': 0.7, 'interval': [0.4, 1.0]}}},
        },
        'msvd_qa': {},
      },
    },
  }
  for stage in stages:
    folder = root / f'default-{seed}' / 'tiny' / stage
    folder.mkdir(parents=True)
    (folder / 'summary.json').write_text(json.dumps(summaries[stage]))


def test_seeds_stand_side_by_side_and_those_that_are_not_done_are_left_out(tmp_path):
  write(tmp_path, 42, 0.35)
  write(tmp_path, 43, 0.3)
  write(tmp_path, 44, 0.9, stages=('label',))
  runs = study_default.read(tmp_path, 'default', (42, 43, 44))
  lines = study_default.results(runs)
  assert lines[0].startswith('| seeds 42, 43 |')
  assert lines[3] == (
    '| long answers right (10 questions) | 20.0 % | 35.0, 30.0 % '
    '| +15.0 [+1.0, +20.0], +10.0 [+1.0, +20.0] points |'
  )
  assert lines[4] == (
    '| claims invented in them | 50.0 % | 40.0 % | -10.0, -10.0 points |'
  )
  assert '(base: 45.0 %)' in lines[7]
  assert lines[8].endswith(
    '| 2.70 | 3.40 | +0.70 [+0.40, +1.00], +0.70 [+0.40, +1.00] |'
  )


def test_what_stages_report(tmp_path):
  write(tmp_path, 42, 0.35)
  lines = study_default.by_stage(study_default.read(tmp_path, 'default', (42,)))
  assert '| questions labeled, pairs kept | 1,001, 1,950 |' in lines
  assert '| reward model on held-out pairs | 80.0 % of 231 |' in lines
  shares = '70.0; 50.0; 60.0; 65.0 % of 170'
  assert any(line.endswith(f'shorter | {shares} |') for line in lines)
  # Of the policy that is left, iteration 5 of 10.
  assert '| the truth | 0.10, 0.20 |' in lines


def test_numbers_are_those_of_the_tables(tmp_path):
  write(tmp_path, 42, 0.35)
  numbers = study_default.numbers(study_default.read(tmp_path, 'default', (42,)))
  evaluation = numbers[42]['eval']
  assert 'lineage' not in evaluation and list(evaluation['benchmarks']) == [
    'generative'
  ]
  assert study_default.results({}) == study_default.by_stage({}) == []
