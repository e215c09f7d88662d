"""What the terminal prints of the tasks qa and describe."""

import pytest

from vlm_rlaif_jax.reports import terminal


@pytest.mark.parametrize(
  ('interval', 'text'),
  [((-0.05, 0.25), '[-5.0%, +25.0%]'), (None, '[not known]')],
)
def test_the_change_of_accuracy_has_its_interval_or_none(capsys, interval, text):
  result = {'qa_accuracy': 0.5, 'qa_interval': (0.25, 0.75)}
  summary = {
    'split': 'test', 'questions': {'qa': 6, 'describe': 0}, 'videos': 1,
    'sft': result, 'rlaif': {**result, 'qa_accuracy': 0.6},
    'qa_change': 0.1, 'qa_change_interval': interval,
  }  # fmt: skip
  terminal._task_table(summary)
  lines = capsys.readouterr().out.splitlines()
  assert '50.0% [25.0%, 75.0%]' in lines[3]
  assert lines[-1] == f'QA change sft -> rlaif +10.0%, 95 % interval {text}'
