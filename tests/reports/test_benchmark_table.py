"""The tables of benchmarks say judge, date, n of N and intervals."""

from vlm_rlaif_jax.reports import benchmark_table

NUMBERS = (('accuracy', 0.5), ('score', 2.5))  # of the same verdicts


def number(value, **more):
  return {'value': value, 'interval': [value - 0.1, value + 0.1], 'n': 8, 'unscored': 0,
          **more}  # fmt: skip


def change(value):
  return {'change': value, 'interval': [value - 0.1, value + 0.1], 'n': 8}


def entry(**more):
  models = {
    name: {metric: number(value + i / 10, unscored=i) for metric, value in NUMBERS}
    for i, name in enumerate(('rlaif', 'sft', 'init'))
  }
  changes = {
    name: {'accuracy': change(0.125), 'score': change(-0.5), 'changed': change(0.25)}
    for name in ('sft', 'init')
  }
  return {
    'items': 6900, 'of': 8000, 'videos': 690, 'missing': ['a', 'b'],
    'headline': ['accuracy', 'score', 'contains_answer'], 'scores': ['score'],
    'judge': {'name': 'gpt', 'version': '0613', 'date': '2026-11-27'},
    'models': models, 'changes': changes, **more,
  }  # fmt: skip


def test_a_table_has_models_changes_judge_and_denominator():
  text = benchmark_table.lines({'benchmarks': {'activitynet_qa': entry()}})
  assert text[1] == (
    'activitynet_qa: 6,900 of 8,000 items, 690 videos, 2 videos missing; '
    'judge gpt 0613, 2026-11-27, 3 verdicts missing'
  )
  assert text[2].split() == ['accuracy', 'score']
  assert [line.split()[0] for line in text[3:6]] == ['sft', 'init', 'rlaif']
  assert '50.0% [40.0%, 60.0%]' in text[5] and '2.50 [2.40, 2.60]' in text[5]
  assert text[6].startswith('sft -> rlaif') and '+12.5% [+2.5%, +22.5%]' in text[6]
  assert '-0.50 [-0.60, -0.40]' in text[6]
  assert text[7].endswith('answers that differ 25.0% [15.0%, 35.0%], n=8')


def test_many_benchmarks_are_one_table_with_a_row_each():
  names = ('msvd_qa', 'msrvtt_qa', 'generic', 'ucf101')
  benchmarks = {name: entry() for name in names}
  benchmarks['generic'] |= {'headline': ['score']}
  benchmarks['ucf101'] |= {'judge': None}
  text = benchmark_table.lines({'benchmarks': benchmarks})
  assert text[1].split()[:6] == ['benchmark', 'number', 'items', 'sft', 'init', 'rlaif']
  assert text[2].split() == [
    'msvd_qa', 'accuracy', '6,900', 'of', '8,000', '60.0%', '70.0%', '50.0%',
    '+12.5%', '[+2.5%,', '+22.5%]',
  ]  # fmt: skip
  assert text[4].split()[1] == 'score' and '2.50' in text[4] and '-0.50' in text[4]
  judge = 'judge gpt 0613, 2026-11-27, 3 verdicts missing: msvd_qa, msrvtt_qa, generic'
  assert text[6] == judge and len(text) == 8


def test_own_files_show_wins_and_examples():
  example = {
    'video_name': 'v', 'question': 'What?', 'reference': 'A dog.',
    'answers': {'sft': 'A cat.', 'rlaif': 'A dog.'},
  }  # fmt: skip
  one = entry(examples=[example], judge=None)
  one['changes']['sft']['win_rate'] = number(0.75)
  text = benchmark_table.lines({'benchmarks': {'own': one}})
  assert any('wins 75.0% [65.0%, 85.0%], n=8; answers' in line for line in text)
  assert text[-4:] == [
    '  v: What?', '    reference A dog.', '    sft       A cat.',
    '    rlaif     A dog.',
  ]  # fmt: skip


def test_summaries_of_before_have_no_tables():
  assert benchmark_table.lines({'stage': 'eval'}) == []


def test_an_interval_that_is_not_known_is_said_to_be_none():
  unknown = {'value': 0.5, 'change': 0.5, 'interval': None, 'n': 6, 'unscored': 0}
  one = entry(
    models={name: {'accuracy': unknown} for name in ('sft', 'rlaif')},
    changes={'sft': {'accuracy': unknown}},
  )
  text = benchmark_table.lines({'benchmarks': {'msvd_qa': one}})
  assert text[3].split() == ['sft', '50.0%', '[not', 'known]']
  assert text[5].endswith('+50.0% [not known]')
  many = benchmark_table.lines({'benchmarks': dict.fromkeys('abcd', one)})
  assert many[2].split()[-4:] == ['50.0%', '+50.0%', '[not', 'known]']
