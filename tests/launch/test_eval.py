"""The command that judges stored answers, against a local endpoint."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.evals.judges import stored_run
from tests.evals.judges.chat_server import ChatServer, served, status

pytest.importorskip('urllib3', reason='needs the extra [judge]')

KEY = 'sk-not-a-real-key-0123456789'


def start(*arguments, key=KEY):
  environment = {
    **os.environ, 'JUDGE_KEY': key, 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1',
  }  # fmt: skip
  return subprocess.Popen(
    [sys.executable, '-m', 'launch.eval', *map(str, arguments)],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
  )  # fmt: skip


def run(*arguments, code=0, **more):
  process = start(*arguments, **more)
  out, err = process.communicate(timeout=60)
  assert process.returncode == code, out + err
  return out, err


def endpoint(server, *more):
  return [
    '--judge=endpoint', '--model=org/judge', f'--base_url={server.url}',
    '--key_variable=JUDGE_KEY', '--noprogress', *more,
  ]  # fmt: skip


def by_question(handler, body):
  """Returns a verdict that depends on the case alone."""
  text = body['messages'][1]['content']
  number = int(text.partition('Question ')[2].partition('?')[0])
  pred = 'yes' if number % 2 else 'no'
  time.sleep(0.02)
  return json.dumps({'pred': pred, 'score': number % 6})


@pytest.mark.slow
def test_judging_is_resumed_after_a_kill_with_the_same_numbers(tmp_path):
  run_folder = stored_run.write(tmp_path / 'run', questions=40)
  arguments = ['rejudge', run_folder, '--benchmarks=msvd_qa']
  with served(ChatServer(by_question)) as server:
    reference = stored_run.write(tmp_path / 'reference', questions=40)
    run('rejudge', reference, '--benchmarks=msvd_qa', *endpoint(server))
    calls = len(server.requests)
    assert calls == len({r['messages'][1]['content'] for r in server.requests})

    server.requests.clear()
    process = start(*arguments, *endpoint(server, '--concurrency=2'))
    while len(server.requests) < 15:
      time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    time.sleep(0.2)  # a request that is under way may still arrive
    before = len(server.requests)
    cache = run_folder / 'eval' / 'verdict_cache.jsonl'
    kept = len(cache.read_text().splitlines())
    assert 5 < kept < calls

    run(*arguments, *endpoint(server, '--concurrency=2'))
    assert len(server.requests) - before == calls - kept, 'no verdict is bought twice'
    total = len(server.requests)
    out, _ = run(*arguments, *endpoint(server))
    assert len(server.requests) == total, 'a rerun costs nothing'

  name = 'summary_org-judge.json'
  entries = [
    json.loads((folder / 'eval' / name).read_text())['benchmarks']['msvd_qa']
    for folder in (run_folder, reference)
  ]
  for part in ('models', 'changes', 'items'):
    assert entries[0][part] == entries[1][part]
  for model in ('sft', 'rlaif'):
    file = f'eval/msvd_qa/verdicts_{model}_org-judge.jsonl'
    assert (run_folder / file).read_text() == (reference / file).read_text()
  assert 'judge org/judge, version judge-2024-01-02, prompt ' in out
  everything = [path.read_text() for path in run_folder.rglob('*') if path.is_file()]
  assert KEY not in out + ''.join(everything)


@pytest.mark.slow
def test_a_wrong_key_is_one_line_and_nothing_is_lost(tmp_path):
  run_folder = stored_run.write(tmp_path)
  arguments = ['rejudge', run_folder, '--benchmarks=msvd_qa']
  with served(ChatServer(status(401))) as server:
    _, err = run(*arguments, *endpoint(server), code=2)
    assert len(server.requests) == 1
  assert err.count('\n') == 1 and err.startswith('error: ') and KEY not in err
  assert 'the key in $JUDGE_KEY is not accepted' in err


@pytest.mark.slow
def test_the_commands_need_no_jax(tmp_path):
  """Judges, agreement and audit of a run, in a process that cannot load JAX."""
  run_folder = stored_run.write(tmp_path)
  program = (
    'import sys; sys.modules["jax"] = None; from launch import eval, process;'
    'process.run(eval.main)'
  )

  def without_jax(*arguments):
    done = subprocess.run(
      [sys.executable, '-c', program, *map(str, arguments)],
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout

  for judge in ('exact', 'world'):
    assert f'judge {judge}' in without_jax('rejudge', run_folder, f'--judge={judge}')
  out = without_jax('agreement', run_folder, 'exact', 'world')
  assert 'agreement of exact and world' in out and 'msvd_qa answer' in out
  out = without_jax('audit', run_folder, '--judge=world')
  assert 'reference' in out
  written = {path.name for path in (run_folder / 'eval').glob('*.json')}
  assert written == {
    'summary_exact.json', 'summary_world.json', 'agreement_exact_world.json',
    'audit_world.json',
  }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['rejudge'], 'give one of: python -m launch.eval rejudge RUN'),
    (
      ['rejudge', 'RUN', '--judge=model'],
      '--config.judge.kind=model --config.judge.model=sft. Answers that are there',
    ),
    (['rejudge', 'RUN', '--judge=endpoint'], '--base_url: kind endpoint needs'),
  ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
  place = str(stored_run.write(tmp_path))
  _, err = run(*(place if a == 'RUN' else a for a in arguments), code=2)
  assert message in err and err.count('\n') == 1
