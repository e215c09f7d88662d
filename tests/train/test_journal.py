"""The journal of a long inference run."""

import json

import pytest

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.settings.init import InitRun
from vlm_rlaif_jax.settings.label import LabelConfig, LabelRun
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.settings.reward import RewardConfig, RewardPrompt, RewardRun
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.settings.sft import SftRun
from vlm_rlaif_jax.train import journal, metrics, run_context
from vlm_rlaif_jax.train.journal import Journal
from vlm_rlaif_jax.weights import artifacts

WHO = {'weights': 'abc', 'label.temperature': 1.0}


def test_rows_survive_and_a_torn_line_is_forgotten(tmp_path):
  path = tmp_path / 'audit.jsonl'
  log = Journal(path, WHO, 'stop')
  log.extend([{'q': 1}, {'q': 2}])
  with path.open('a') as file:
    file.write('{"q": 3, "answers": ["The red')  # killed here
  again = Journal(path, WHO, 'stop')
  assert again.rows() == [{'q': 1}, {'q': 2}]
  again.truncate(1)
  again.extend([{'q': 5}])
  assert Journal(path, WHO, 'stop').rows() == [{'q': 1}, {'q': 5}]


@pytest.mark.parametrize('damaged', [0, 1])
def test_rows_behind_a_damaged_line_are_not_dropped_unsaid(tmp_path, damaged):
  path = tmp_path / 'audit.jsonl'
  Journal(path, WHO, 'stop').extend([{'q': 1}, {'q': 2}])
  lines = path.read_bytes().split(b'\n')
  lines[damaged] = b'\xff\x00<<<<<<< HEAD'
  whole = b'\n'.join(lines)
  path.write_bytes(whole)
  message = rf'audit\.jsonl: line {damaged + 1} is damaged, .* {2 - damaged} rows are'
  for on_change in ('stop', 'ignore'):
    with pytest.raises(journal.ResumeError, match=message):
      Journal(path, WHO, on_change)
  assert path.read_bytes() == whole
  assert len(Journal(path, WHO, 'restart')) == 0


def test_other_settings_are_refused_or_start_anew(tmp_path):
  path = tmp_path / 'audit.jsonl'
  Journal(path, WHO, 'stop').extend([{'q': 1}])
  other = {**WHO, 'label.temperature': 0.7}
  with pytest.raises(journal.ResumeError, match=r'label.temperature: 1.0 -> 0.7'):
    Journal(path, other, 'stop')
  assert len(Journal(path, other, 'ignore')) == 1
  assert len(Journal(path, {**WHO, 'x': 1}, 'restart')) == 0


def test_a_restart_drops_rows_though_nothing_changed(tmp_path, capsys):
  path, summary = tmp_path / 'audit.jsonl', tmp_path / 'summary.json'
  Journal(path, WHO, 'stop').extend([{'q': 1}])
  summary.write_text('{}')
  assert len(Journal(path, WHO, 'restart')) == 0
  assert 'audit.jsonl (1 rows) is dropped: the stage starts' in capsys.readouterr().out
  assert not summary.exists()  # the stage is not done any more


def test_what_changed_is_said_where_it_is_ignored(tmp_path, capsys):
  path = tmp_path / 'audit.jsonl'
  Journal(path, WHO, 'stop').extend([{'q': 1}])
  assert len(Journal(path, {**WHO, 'label.temperature': 0.7}, 'ignore')) == 1
  assert 'although label.temperature: 1.0 -> 0.7' in capsys.readouterr().out


def test_a_setting_that_came_later_is_no_difference_at_its_default():
  old = journal.identity(RewardRun(), 'abc')
  del old['reward.train_pairs']
  assert journal.changes(old, journal.identity(RewardRun(), 'abc')) == []
  fewer = RewardRun(reward=RewardConfig(train_pairs=9))
  differing = journal.changes(old, journal.identity(fewer, 'abc'))
  assert differing == ['reward.train_pairs: None -> 9']


def test_a_gate_decides_whether_a_run_starts_and_not_which_it_is():
  old = {**WHO, 'gate.reward_accuracy': 0.6}
  assert not journal.changes(old, WHO)
  assert not [n for n in journal.identity(PpoRun(), 'w') if n.startswith('gate.')]


@pytest.mark.parametrize('kind', [SftRun, InitRun, LabelRun])
@pytest.mark.parametrize('train', ['', 'my.json'])
def test_edited_data_do_not_resume(tmp_path, kind, train):
  settings = kind(data=DataConfig(root=str(tmp_path), train=train))
  (tmp_path / 'instructions').mkdir()
  names = ('SFT_short', 'PPO_init', 'preference_prompts')
  mine = train or f'instructions/{names[(SftRun, InitRun, LabelRun).index(kind)]}.json'
  other = tmp_path / 'instructions' / 'RL_data.json'
  for path in (tmp_path / mine, other):
    path.write_text('[1]')
  identity = lambda: json.loads(json.dumps(journal.identity(settings, 'w')))
  before = identity()
  (tmp_path / mine).write_text('[1]')  # touched
  other.write_text('[2]')  # of another stage
  assert journal.changes(before, identity()) == []
  (tmp_path / mine).write_text('[3]')
  (said,) = journal.changes(before, identity())
  assert said.startswith('contents of the data files: ')
  del before[journal.DATA]  # of a run from before data were compared
  assert journal.changes(before, identity()) == []


def test_edited_pairs_do_not_resume(tmp_path):
  path = tmp_path / 'pairs.json'
  identity = lambda: journal.identity(
    RewardRun(), 'w', **{journal.DATA: hosts.files_fingerprint([path])}
  )
  path.write_text('[1]')
  before = identity()
  assert journal.changes(before, identity()) == []
  path.write_text('[2]')
  assert len(journal.changes(before, identity())) == 1


def test_the_text_of_a_prompt_is_compared_and_not_its_name(tmp_path):
  texts = {'a.txt': 'Which is better?', 'b.txt': 'Which is better?'}
  for name, text in texts.items():
    (tmp_path / name).write_text(text)

  def identity(name: str) -> dict:
    prompt = RewardPrompt(prompt=str(tmp_path / name))
    return journal.identity(RewardRun(scoring=prompt), 'w')

  before = identity('a.txt')
  assert journal.changes(before, identity('b.txt')) == []  # another name, one text
  (tmp_path / 'a.txt').write_text('Which is worse?')
  (message,) = journal.changes(before, identity('a.txt'))
  assert message.startswith('text of scoring.prompt: ')


def test_another_tokenizer_does_not_resume(tmp_path):
  (tmp_path / 'tokenizer.json').write_text('{}')
  settings = SftRun(base=str(tmp_path))
  before = journal.identity(settings, 'w')
  (tmp_path / 'added_tokens.json').write_text('{"[SEG]": 32000}')
  (message,) = journal.changes(before, journal.identity(settings, 'w'))
  assert message.startswith('tokenizer: ')


@pytest.mark.parametrize('text', ['{"stage": "lab', '[1]', '\xff'])
def test_a_damaged_summary_is_one_line(tmp_path, text):
  (tmp_path / 'summary.json').write_text(text, encoding='latin-1')
  with pytest.raises(artifacts.ArtifactError, match=r'summary\.json: ') as error:
    artifacts.read_summary(tmp_path)
  assert '\n' not in str(error.value)


def test_a_resumed_run_keeps_the_rows_behind_a_damaged_one(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1}\n\xff\x00\n{"step": 3}\n{"step": 4}\n{"st')
  metrics.rewind(path, 3)
  assert path.read_text() == '{"step": 1}\n{"step": 3}\n'


def test_a_resumed_run_writes_no_row_twice(tmp_path):
  path = tmp_path / 'samples.jsonl'
  metrics.rewind(path, 3, 'iteration')
  assert path.read_text() == ''
  lines = [json.dumps({'iteration': i, 'answer': 'Yes'}) for i in (1, 1, 2, 2, 3)]
  whole = '\n'.join(lines) + '\n'
  path.write_text(whole + '{"iteration": 4, "ans')  # killed here
  metrics.rewind(path, 3, 'iteration')
  assert path.read_text() == whole
  metrics.rewind(path, 1, 'iteration')
  assert path.read_text() == '\n'.join(lines[:2]) + '\n'
  metrics.rewind(path, 0, 'iteration')
  assert path.read_text() == ''


@pytest.mark.parametrize(
  ('settings', 'field'),
  [
    (LabelRun(label=LabelConfig(options_prompt='nope')), 'config.label.options_prompt'),
    (RewardRun(scoring=RewardPrompt(prompt='nope')), 'config.scoring.prompt'),
  ],
)
def test_a_prompt_that_is_not_there_is_refused_before_the_work(
  settings, field, tmp_path
):
  with pytest.raises(prompts.PromptError, match="'nope': neither a file nor") as error:
    run_context.RunContext(settings, tmp_path, reads_data=False)
  assert str(error.value).startswith(f'{field}: ')


@pytest.mark.parametrize(
  ('text', 'change', 'place'),
  [
    ('{question} A: {a} {narrative}', {'options_prompt': 0}, '{b}'),
    ('{question} A: {a} B: {b}', {'options_prompt': 0}, '{narrative}'),
    ('{question} {claims} {narrative}', {'claims_prompt': 0}, '{claim}'),
    ('{question} A: {a} B: {b}', {'options_prompt': 0, 'context': 'none'}, ''),
    # of two contexts that are compared, one is a narrative
    (
      '{question} A: {a} B: {b}',
      {'options_prompt': 0, 'context': 'none', 'compare': 3},
      '{narrative}',
    ),
  ],
)
def test_a_prompt_without_a_place_for_what_it_is_about_is_refused(
  tmp_path, text, change, place
):
  """A judge that is not shown one of the answers has an opinion, too."""
  (tmp_path / 'mine.txt').write_text(text)
  path = str(tmp_path / 'mine.txt')
  label = LabelConfig(**{name: value or path for name, value in change.items()})
  if not place:
    run_context.check_prompts(LabelRun(label=label))
    return
  with pytest.raises(prompts.PromptError, match=rf'mine\.txt. has no {place},'):
    run_context.check_prompts(LabelRun(label=label))


def test_captions_have_a_place_in_the_prompt_of_a_reward(tmp_path):
  (tmp_path / 'mine.txt').write_text('USER: Rate it. ASSISTANT: It is')
  scoring = RewardPrompt(prompt=str(tmp_path / 'mine.txt'), placeholder='captions')
  with pytest.raises(prompts.PromptError, match=r'has no \{factual_prompt\} or'):
    run_context.check_prompts(RewardRun(scoring=scoring))


@pytest.mark.parametrize('prompt', ['reward_judge', 'reward'])
def test_a_head_that_starts_as_the_judge_has_a_question_before_it(prompt):
  """After 'The overall score is' no Yes and no No can come."""
  settings = RewardRun(
    reward=RewardConfig(head_start='judge'), scoring=RewardPrompt(prompt=prompt)
  )
  if prompt == 'reward_judge':
    run_context.check_prompts(settings)
    return
  run_context.check_prompts(RewardRun(scoring=RewardPrompt(prompt=prompt)))
  with pytest.raises(
    prompts.PromptError, match="'reward' does not end in 'ASSISTANT:'"
  ):
    run_context.check_prompts(settings)


def test_the_text_itself_is_no_name_of_a_prompt():
  with pytest.raises(prompts.PromptError, match='neither a file nor one of'):
    prompts.load('Say which of the answers is better. ' * 20)


def test_other_ends_of_an_answer_do_not_resume(tmp_path):
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [7, 9]}')
  settings = SftRun(base=str(tmp_path))
  before = journal.identity(settings, 'w')
  (tmp_path / 'generation_config.json').write_text('{"eos_token_id": [7]}')
  (message,) = journal.changes(before, journal.identity(settings, 'w'))
  assert message.startswith('ids that end an answer: ')
  del before[journal.ENDS]  # of a run from before they were compared
  assert journal.changes(before, journal.identity(settings, 'w')) == []


def test_replaced_videos_do_not_resume(tmp_path):
  """Their features are computed anew, and the first steps were of the old ones."""
  (tmp_path / 'my.json').write_text('[1]')
  settings = SftRun(data=DataConfig(root=str(tmp_path), train='my.json'))

  def identity(used=None, **contents: str) -> dict:
    by_paths = {(f'{name}.mp4',): text for name, text in contents.items()}
    paths = None if used is None else [(f'{name}.mp4',) for name in used]
    said = journal.videos(settings, by_paths, paths)
    return journal.identity(settings, 'w', **said)

  before = identity(v='a', w='b')
  assert journal.changes(before, identity(w='b', v='a')) == []
  for other in (
    identity(v='a', w='c'),
    identity(v='b', w='a'),
  ):  # two that were swapped
    (message,) = journal.changes(before, other)
    assert message.startswith('contents of the videos by name: ')
  # What only a gate looks at, which may be left out, is no part of a run.
  measured = identity('vw', v='a', w='b', of_a_pair='c')
  assert journal.changes(before, measured) == []
  assert journal.changes(measured, before) == []
  del before[journal.NAMED_VIDEOS]  # of a run from before names were compared
  (message,) = journal.changes(before, identity(v='a', w='c'))
  assert message.startswith('contents of the videos: ')
  del before[journal.VIDEOS]
  assert journal.changes(before, identity(v='a', w='c')) == []
  assert journal.videos(SftRun(), {('of the built-in world',): 'a'}) == {}
