import copy

from vlm_rlaif_jax.reports import repair_table

RESULT = {
  'long': {'accuracy': 0.4, 'hallucination_rate': 0.3, 'fact_recall': 0.5},
  'short': {'accuracy': 0.8},
  'faults': {'swapped': {'right': 0.3}, 'stays': {'right': 0.9}},
  'qa_by_kind': {'course': 0.3, 'count': 0.9, 'shape': 0.7},
}
CHANGE = {'change': 0.06, 'interval': (0.02, 0.1)}
SUMMARY = {
  'lineage': {'world.flip_rate': 0.65, 'world.motion_bias': 0.0},
  'sft': RESULT,
  'rlaif': {
    **RESULT,
    'long': {'accuracy': 0.46, 'hallucination_rate': 0.2, 'fact_recall': 0.55},
    'faults': {'swapped': {'right': 0.6}, 'stays': {'right': 0.9}},
  },
  'changes': {
    'sft': {
      'long': CHANGE, 'short': {'change': 0, 'interval': (0, 0)}, 'course': CHANGE,
      'count': {'change': -0.02, 'interval': (-0.03, 0)},
      'shape': {'change': 0.01, 'interval': (0, 0.02)},
    }
  },
}  # fmt: skip


def row(lines, title):
  (line,) = [line for line in lines if line.strip().startswith(title)]
  return line.split()


def test_the_table_names_the_planted_fault_and_what_was_repaired():
  lines = repair_table.lines(SUMMARY)
  text = '\n'.join(lines)
  assert '65% of the long answers have left and right swapped' in text
  assert '"stays"' not in text  # that fault is not planted
  assert row(lines, 'directions as they are')[-3:] == ['30.0%', '60.0%', '+30.0%']
  assert row(lines, 'all right')[2:] == [
    '40.0%',
    '46.0%',
    '+6.0%',
    '[+2.0%,',
    '+10.0%]',
  ]
  assert row(lines, 'claims invented')[-1] == '-10.0%'
  assert row(lines, 'the kind that lost most')[-2:] == ['count', '-2.0%']


def test_init_stands_between_where_it_was_evaluated():
  lines = repair_table.lines({**SUMMARY, 'init': RESULT})
  (head,) = [line for line in lines if line.startswith('long answers')]
  assert head.split()[2:5] == ['sft', 'init', 'rlaif']


def test_without_faults_it_says_so_and_without_facts_there_is_no_table():
  honest = {**SUMMARY, 'lineage': {}}
  assert any('No fault is planted' in line for line in repair_table.lines(honest))
  unknown = copy.deepcopy(SUMMARY)
  del unknown['sft']['faults']
  assert repair_table.lines(unknown) == []
  assert repair_table.lines({'sft': RESULT}) == []


def test_a_change_over_one_video_has_no_interval():
  one = copy.deepcopy(SUMMARY)
  one['changes']['sft']['long'] = {'change': 0.06, 'interval': None}
  assert row(repair_table.lines(one), 'all right')[-3:] == ['+6.0%', '[not', 'known]']


def test_answers_that_speak_of_no_direction_have_no_share_of_right_ones():
  silent = copy.deepcopy(SUMMARY)
  silent['rlaif']['faults']['swapped'] = {'facts': 0, 'right': 0.0, 'faulty': 0.0}
  cells = row(repair_table.lines(silent), 'directions as they are')
  assert cells[-3:] == ['30.0%', 'n/a', 'n/a']


def test_the_network_is_that_of_the_run():
  def last(size):
    lineage = {**SUMMARY['lineage'], 'model.name': size}
    return repair_table.lines({**SUMMARY, 'lineage': lineage})[-1]

  assert 'a network of 2 million parameters' in last('tiny')
  assert 'a network of 8 million parameters' in last('small')
  assert 'parameters' not in last('7b')
