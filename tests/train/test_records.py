"""The journal of a long inference run."""

import pytest

from vlm_rlaif_jax.train import records

WHO = {'weights': 'abc', 'label.temperature': 1.0}


def test_rows_survive_and_a_torn_line_is_forgotten(tmp_path):
  path = tmp_path / 'audit.jsonl'
  journal = records.Journal(path, WHO, 'stop')
  journal.extend([{'q': 1}, {'q': 2}])
  with path.open('a') as file:
    file.write('{"q": 3, "answers": ["The red')  # killed here
  again = records.Journal(path, WHO, 'stop')
  assert again.rows() == [{'q': 1}, {'q': 2}]
  again.truncate(1)
  again.extend([{'q': 5}])
  assert records.Journal(path, WHO, 'stop').rows() == [{'q': 1}, {'q': 5}]


def test_other_settings_are_refused_or_start_anew(tmp_path):
  path = tmp_path / 'audit.jsonl'
  records.Journal(path, WHO, 'stop').extend([{'q': 1}])
  other = {**WHO, 'label.temperature': 0.7}
  with pytest.raises(records.ResumeError, match=r'label.temperature: 1.0 -> 0.7'):
    records.Journal(path, other, 'stop')
  assert len(records.Journal(path, other, 'ignore')) == 1
  assert len(records.Journal(path, {**WHO, 'x': 1}, 'restart')) == 0
