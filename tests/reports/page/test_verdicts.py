"""Margins of judges by hand."""

from tests.reports.page import run_fixture
from vlm_rlaif_jax.reports.page import judges, run_files, verdicts


def test_margins_are_differences_of_scores_item_by_item(tmp_path):
  folder = run_fixture.run(tmp_path / 'a' / 'tiny')
  rows = [
    {'key': f'k{i}', 'criterion': 'answer', 'score': score, 'correct': None}
    for i, score in enumerate((2, 4, None))
  ]
  run_fixture.lines(folder / 'eval' / 'msvd_qa' / 'verdicts_sft_other.jsonl', rows)
  (run,) = run_files.find([folder])
  margins = verdicts.margins(run)  # of RLAIF the scores are 5 and 4
  assert margins == {'exact': [0, 0], 'other': [3, 0]}
  parts = ''.join(map(str, judges.build([run])))
  assert 'Margins of judge other' in parts
  assert '1 of 2 pairs of scores are equal' in parts
  assert 'Margins of judge exact' not in parts  # all are equal
