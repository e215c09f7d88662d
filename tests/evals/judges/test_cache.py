"""Verdicts on disk: cut lines, other processes, and what is no verdict."""

import json
import subprocess
import sys

import pytest

from vlm_rlaif_jax.evals.judges.cache import Entry, VerdictCache
from vlm_rlaif_jax.evals.records import Verdict
from vlm_rlaif_jax.settings.build import UserError

ONE = Entry(Verdict(4.8, True, 'raw "text"\n', ''), 'v1', '2026-01-02')
TWO = Entry(Verdict(1.0, None, 'other', ''), 'v2', '2026-01-03')
BAD = Entry(Verdict(raw='what?', error='no verdict in the reply'), 'v1', '2026-01-02')


def test_what_is_put_is_there_for_the_next_process(tmp_path):
  path = tmp_path / 'new' / 'cache.jsonl'
  cache = VerdictCache(path)
  for key, entry in (('a', ONE), ('b', TWO), ('c', BAD)):
    assert cache.get(key) is None
    assert cache.put(key, entry) == entry
  later = VerdictCache(path)
  assert [later.get(key) for key in 'abcd'] == [ONE, TWO, BAD, None]
  assert VerdictCache(path, keep_unscored=False).get('c') is None


def test_a_line_that_a_kill_cut_is_dropped_and_the_next_is_whole(tmp_path):
  path = tmp_path / 'cache.jsonl'
  VerdictCache(path).put('a', ONE)
  whole = path.read_bytes()
  for cut in range(len(whole)):
    path.write_bytes(whole[:cut])
    cache = VerdictCache(path)
    assert cache.get('a') is None
    cache.put('b', TWO)
    later = VerdictCache(path)
    is_whole = cut == len(whole) - 1  # the line end alone is missing
    assert (later.get('a'), later.get('b')) == (ONE if is_whole else None, TWO)
    assert path.read_bytes().startswith(whole[:cut])


def test_lines_that_are_no_verdicts_are_left_out(tmp_path):
  path = tmp_path / 'cache.jsonl'
  VerdictCache(path).put('a', ONE)
  row = json.loads(path.read_text())
  bad = [
    'text', '[]', '{}', '\x00',
    *(json.dumps({**row, 'key': 'x', **change}) for change in (
      {'score': 9}, {'score': None}, {'score': '4'}, {'score': True}, {'error': 'e'},
      {'correct': 'yes'}, {'raw': None}, {'key': 5},
    )),
  ]  # fmt: skip
  path.write_text('\n'.join(bad) + '\n' + path.read_text())
  cache = VerdictCache(path)
  assert cache.get('a') == ONE and cache.get('x') is None


def test_the_first_verdict_counts_for_all_processes(tmp_path):
  path = tmp_path / 'cache.jsonl'
  first, second = VerdictCache(path), VerdictCache(path)
  first.put('a', ONE)
  assert second.get('a') is None, 'not read yet'
  assert second.put('a', TWO) == ONE and second.get('a') == ONE
  assert len(path.read_text().splitlines()) == 1
  second.put('b', TWO)
  first.refresh()
  assert first.get('b') == TWO


def test_a_score_replaces_a_malformed_verdict_and_not_the_other_way(tmp_path):
  path = tmp_path / 'cache.jsonl'
  cache = VerdictCache(path, keep_unscored=False)
  cache.put('a', BAD)
  assert cache.put('a', ONE) == ONE
  assert cache.put('a', BAD) == ONE
  assert VerdictCache(path).get('a') == ONE


def test_without_a_file_verdicts_stay_in_memory():
  cache = VerdictCache(None)
  cache.put('a', ONE)
  assert cache.get('a') == ONE


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='the cache of verdicts cannot be written'):
    VerdictCache(tmp_path / 'file' / 'cache.jsonl')


PROGRAM = """
import sys
from vlm_rlaif_jax.evals.judges.cache import Entry, VerdictCache
from vlm_rlaif_jax.evals.records import Verdict
import pathlib
cache = VerdictCache(pathlib.Path(sys.argv[1]))
for number in range(200):
  own = Entry(Verdict(float(sys.argv[2]), None, 'x' * 500), sys.argv[2], '')
  cache.put(f'key {number}', own)
print(''.join(cache.get(f'key {number}').version for number in range(200)))
"""


def test_two_processes_write_at_once(tmp_path):
  path = tmp_path / 'cache.jsonl'
  both = [
    subprocess.Popen(
      [sys.executable, '-c', PROGRAM, str(path), name],
      stdout=subprocess.PIPE,
      text=True,
    )
    for name in ('1', '2')
  ]
  outputs = [process.communicate()[0] for process in both]
  assert [process.returncode for process in both] == [0, 0]
  assert outputs[0] == outputs[1], 'both use the same verdicts'
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(rows) == len({row['key'] for row in rows}) == 200
