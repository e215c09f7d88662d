"""The tables of judges cope with what is not known."""

from vlm_rlaif_jax.reports import judgments

JUDGE = {'name': 'exact', 'version': '1', 'prompt': '', 'date': '2026-01-02'}


def test_numbers_of_one_video_have_no_interval():
  number = {'value': 0.5, 'interval': None, 'n': 6, 'unscored': 0}
  entry = {
    'items': 6, 'videos': 1, 'judge': JUDGE,
    'models': {'sft': {'accuracy': number}, 'rlaif': {'detail': number}},
    'changes': {'sft': {'detail': {'change': -0.5, 'interval': None, 'n': 6}}},
  }  # fmt: skip
  lines = judgments.table('generic', entry)
  assert '50.0% [not known]' in lines[3] and '0.50 [not known]' in lines[4]
  assert lines[-1] == '  detail, change sft -> rlaif: -0.50 [not known], n=6'


def test_a_change_over_one_video_is_decided_by_no_judge():
  change = {'change': 0.5, 'interval': None, 'direction': 'undecided'}
  one = {
    'n': 6, 'changes': [change, change], 'difference': 0.0, 'interval': None,
    'same': True,
  }  # fmt: skip
  entry = {'criteria': {}, 'conclusions': {'sft': {'accuracy': one}}}
  lines = judgments.agreement_table({'judges': ['a', 'b'], 'benchmarks': {'qa': entry}})
  assert lines[-1] == (
    '  qa accuracy, change sft -> rlaif: +50.0% [not known] (undecided); '
    '+50.0% [not known] (undecided): the same by both; difference +0.0% [not known], '
    'n=6'
  )
