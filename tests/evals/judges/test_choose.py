"""Which judge settings open, and where it keeps its verdicts."""

import pytest

from tests.evals.judges.chat_server import ChatServer, case, config, served
from vlm_rlaif_jax.evals.judges.choose import CACHE, OwnModel, open_judge
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.judge import JudgeConfig

RECORDS = {'q0': {'facts': [], 'span': [], 'phase': -1}}


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('exact', 'exact'),
    ('normalized', 'normalized'),
    ('world', 'world'),
    ('model', 'model-sft'),
  ],
)
def test_each_kind_says_who_it_is(kind, name, tmp_path):
  own_model = OwnModel('f1', lambda cases, prompts: [1.0] * len(prompts))
  judge = open_judge(
    JudgeConfig(kind=kind), tmp_path, records=RECORDS, own_model=own_model
  )
  assert {'name', 'kind', 'version', 'prompt'} <= judge.identity.keys()
  assert (judge.identity['name'], judge.identity['kind']) == (name, kind)
  assert all(isinstance(value, str) for value in judge.identity.values())
  (verdict,) = judge.verdicts([case()])
  assert verdict.score is not None and verdict.correct is not None


def test_verdicts_are_kept_in_the_folder_or_in_a_file_of_ones_own(tmp_path):
  pytest.importorskip('urllib3', reason='needs the extra [judge]')
  with served(ChatServer()) as server:
    for settings in (config(server), config(server, cache=str(tmp_path / 'own.jsonl'))):
      for _ in range(2):
        open_judge(settings, tmp_path, environment={}).verdicts([case()])
    assert len(server.requests) == 2, 'one for each file'
    open_judge(config(server), None, environment={}).verdicts([case()])
    assert len(server.requests) == 3, 'where nothing is kept'
  assert {p.name for p in tmp_path.iterdir()} == {CACHE, 'own.jsonl'}


@pytest.mark.parametrize('kind', ['world', 'model'])
def test_what_a_judge_needs_is_named(kind, tmp_path):
  with pytest.raises(UserError, match=f'config.judge.kind={kind}: ') as error:
    open_judge(JudgeConfig(kind=kind), tmp_path)
  assert '\n' not in str(error.value)
