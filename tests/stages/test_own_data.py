"""What stages make of a user's own file: splits, repeated ids, bad rows, none at all.

Videos are never decoded here: a stub says which of them can be seen.
"""

import dataclasses
import itertools
import json
import types

import numpy as np
import pytest

from configs import label as label_config
from tests.own_data import BASE, TOKENIZER, record, workspace
from tests.tiny import CFG
from vlm_rlaif_jax.data import examples, holdout, readers
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import predictions, questions
from vlm_rlaif_jax.labeling import pairs
from vlm_rlaif_jax.labeling.answers import Answer
from vlm_rlaif_jax.labeling.judge import Judge
from vlm_rlaif_jax.labeling.narrative import clip_windows
from vlm_rlaif_jax.labeling.questions import read_questions as read_label_questions
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.rl import prompts
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.settings.init import InitRun
from vlm_rlaif_jax.settings.label import LabelConfig, LabelRun
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoRun
from vlm_rlaif_jax.settings.reward import RewardInputs, RewardPrompt, RewardRun
from vlm_rlaif_jax.settings.sft import SftRun
from vlm_rlaif_jax.stages import eval as evaluation
from vlm_rlaif_jax.stages import init, label, reward, sft
from vlm_rlaif_jax.weights import bases

# ---------------------------------------------------------------- label -> reward


def audit_row(item: examples.Example) -> dict:
  answers = ['The red circle moves left.', 'The red circle stays.']
  return {
    'id': item.key, 'question': item.question, 'answers': answers, 'margin': 1.0,
    'narrative': 'Clip 1: red', 'record': item.record,
  }  # fmt: skip


def test_pairs_of_own_videos_have_a_held_out_share_of_their_own(tmp_path):
  """Labeling leaves out those that evaluation is to see, so none of them is left."""
  run = workspace(tmp_path, [record(i) for i in range(60)])
  labeled = readers.read(run.data, 'preference', run.skipped, held_out=False)
  assert 0 < len(labeled) < 60
  made = [pairs.as_pair(audit_row(item), LabelConfig()) for item in labeled]
  (tmp_path / 'pairs.json').write_text(json.dumps(made))
  settings = RewardRun(scoring=RewardPrompt(prompt='tiny_reward'))
  train, held_out = reward._pairs(settings, run, BASE, run.features())
  assert train and held_out and len(train) + len(held_out) == len(made)
  videos = [{s.pair.example.video for s in part} for part in (train, held_out)]
  assert not videos[0] & videos[1]


def test_what_evaluation_is_to_see_is_neither_trained_on_nor_measured_before(tmp_path):
  """Of pairs that somebody else made, too."""
  run = workspace(tmp_path, [record(i) for i in range(60)])
  unsplit = readers.read(run.data, 'preference', run.skipped)
  made = [pairs.as_pair(audit_row(item), LabelConfig()) for item in unsplit]
  (tmp_path / 'theirs.json').write_text(json.dumps(made))
  settings = RewardRun(
    scoring=RewardPrompt(prompt='tiny_reward'),
    inputs=RewardInputs(pairs=str(tmp_path / 'theirs.json')),
  )
  train, held_out = reward._pairs(settings, run, BASE, run.features())
  assert train and held_out
  for sample in (*train, *held_out):
    assert not holdout.in_share(sample.pair.example.video.paths[0], run.data.holdout)


def test_a_copy_is_held_out_with_the_video_of_the_own_file_that_it_is_of(tmp_path):
  """As PPO holds it out, also where there are no pairs about the other one."""
  run = workspace(tmp_path, [record(i) for i in range(60)])
  share = [holdout.in_share(f'{i}.mp4', 0.1, holdout.OTHER_SHARE) for i in range(60)]
  evaluated = [holdout.in_share(f'{i}.mp4', 0.1) for i in range(60)]
  numbers = sorted(range(60), key=lambda i: f'{i}.mp4')
  first, copy = next(
    (a, b) for a in numbers for b in numbers
    if a != b and f'{a}.mp4' < f'{b}.mp4' and share[a] and not share[b]
    and not evaluated[a] and not evaluated[b]
  )  # fmt: skip
  (tmp_path / f'{copy}.mp4').write_bytes((tmp_path / f'{first}.mp4').read_bytes())
  items = [examples.parse_example(record(i), 'f') for i in range(60) if i != first]
  made = [pairs.as_pair(audit_row(item), LabelConfig()) for item in items]
  (tmp_path / 'pairs.json').write_text(json.dumps(made))
  settings = RewardRun(scoring=RewardPrompt(prompt='tiny_reward'))
  train, held_out = reward._pairs(settings, run, BASE, run.features())
  keys = [{s.pair.example.key for s in part} for part in (train, held_out)]
  assert f'own{copy}' in keys[1] and f'own{copy}' not in keys[0]


def test_without_an_own_file_the_split_is_that_of_the_videos(tmp_path):
  run = workspace(tmp_path, [record(i) for i in range(60)], train='')
  items = [examples.parse_example(record(i), 'f') for i in range(60)]
  made = [pairs.as_pair(audit_row(item), LabelConfig()) for item in items]
  (tmp_path / 'pairs.json').write_text(json.dumps(made))
  settings = RewardRun(scoring=RewardPrompt(prompt='tiny_reward'))
  train, held_out = reward._pairs(settings, run, BASE, run.features())
  aside = [holdout.in_share(item.video.paths[0], run.data.holdout) for item in items]
  assert [s.pair.example.key for s in held_out] == [
    item.key for item, held in zip(items, aside, strict=True) if held
  ]
  assert len(train) == 60 - sum(aside)


def test_pairs_know_the_name_that_copies_of_their_video_share(tmp_path):
  """Intervals and the videos of other pairs are by it."""
  run = workspace(tmp_path, [record(i) for i in range(60)], train='')
  for name in ('12.mp4', '7.mp4'):
    (tmp_path / name).write_bytes(b'the same')
  items = [examples.parse_example(record(i), 'f') for i in range(60)]
  made = [pairs.as_pair(audit_row(item), LabelConfig()) for item in items]
  (tmp_path / 'pairs.json').write_text(json.dumps(made))
  settings = RewardRun(scoring=RewardPrompt(prompt='tiny_reward'))
  samples = itertools.chain(*reward._pairs(settings, run, BASE, run.features()))
  names = {s.pair.example.key: s.pair.example.place for s in samples}
  expected = {f'own{i}': f'{i}.mp4' for i in range(60)} | {'own7': '12.mp4'}
  assert names == expected


def test_the_first_pairs_of_a_file(tmp_path):
  """As of every file that a stage learns from; a bad row is none of them."""
  run = workspace(tmp_path, [record(i) for i in range(60)], train='')
  run.data = dataclasses.replace(run.data, max_samples=40, on_bad_sample='skip')
  run.skipped = examples.Skipped('skip')
  items = [examples.parse_example(record(i), 'f') for i in range(60)]
  made = [pairs.as_pair(audit_row(item), LabelConfig()) for item in items]
  del made[3]['preference']
  (tmp_path / 'pairs.json').write_text(json.dumps(made))
  settings = RewardRun(scoring=RewardPrompt(prompt='tiny_reward'))
  train, held_out = reward._pairs(settings, run, BASE, run.features())
  keys = {sample.pair.example.key for sample in (*train, *held_out)}
  assert keys == {item.key for item in (*items[:3], *items[4:41])}
  counts = run.skipped.files['pairs.json']
  assert (counts['rows'], counts['bad']) == (41, 1)


def test_a_pairs_narrative_reaches_the_reward_prompt(tmp_path):
  """Register B02, `captions`."""
  run = workspace(tmp_path, [record(i) for i in range(60)])
  items = readers.read(run.data, 'preference', run.skipped, held_out=False)
  made = [pairs.as_pair(audit_row(item), LabelConfig()) for item in items]
  (tmp_path / 'pairs.json').write_text(json.dumps(made))
  (tmp_path / 'prompt.txt').write_text('USER: {factual_prompt}Rate. ASSISTANT: It is')
  prompt = RewardPrompt(prompt=str(tmp_path / 'prompt.txt'), placeholder='captions')
  settings = RewardRun(scoring=prompt)
  train, _ = reward._pairs(settings, run, BASE, run.features())
  said = TOKENIZER.decode([i for i in train[0].ids[0] if i != TOKENIZER.eos])
  assert '- Clip 1: red' in said
  plain = reward._without_narrative(settings, run, BASE, train)
  texts = [TOKENIZER.decode(one.ids[0]) for one in plain]
  assert len(plain) == len(train) and not any('Clip 1' in text for text in texts)
  assert reward._without_narrative(RewardRun(), run, BASE, train) == []

  made[0]['narrative'] = None  # of a file of one's own
  (tmp_path / 'pairs.json').write_text(json.dumps(made))
  with pytest.raises(DataError, match='row 0: no narrative, which config'):
    reward._pairs(RewardRun(scoring=prompt), run, BASE, run.features())


def test_a_clip_outside_the_frames_is_a_bad_pair(tmp_path):
  run = workspace(tmp_path, [])
  item = examples.parse_example(record(0, clip=[0, 50]), 'f')
  pair = pairs.as_pair(audit_row(item), LabelConfig())
  (tmp_path / 'pairs.json').write_text(json.dumps([pair]))
  with pytest.raises(DataError, match=r'pairs\.json row 0: clip must be within'):
    reward._pairs(RewardRun(), run, BASE, run.features())


# ---------------------------------------------------------------- repeated ids


def echo(prompts, videos, numbers, settings, key, on_answers):
  """Each prompt as its own answer."""
  for index, ids in enumerate(prompts):
    on_answers(index, [ids[ids != VIDEO]])


def generator():
  return types.SimpleNamespace(
    tokenizer=TOKENIZER, buckets=(256,), generate=echo, contents=lambda video: 'a'
  )


def held_out_record(question='What happens?', **more) -> dict:
  paths = (f'{i}.mp4' for i in range(10**6))
  video = next(path for path in paths if holdout.in_share(path, 0.1))
  return {**record(0, question, **more), 'video': video}


def test_fewer_samples_to_learn_from_are_no_fewer_questions_of_the_own_file(tmp_path):
  run = workspace(tmp_path, [record(i) for i in range(60)])
  few = dataclasses.replace(run.data, max_samples=1)
  counts = [
    len(questions.read_questions(data, 'qa', run.skipped)) for data in (run.data, few)
  ]
  assert counts[0] == counts[1] > 1


def test_evaluation_keeps_every_answer_beside_its_question(tmp_path):
  rows = [held_out_record(f'What about the {word}?') for word in ('circle', 'square')]
  rows.append(record(1))
  run = workspace(tmp_path, rows)
  read = questions.read_questions(run.data, 'qa', run.skipped)
  assert [one.row['question_id'] for one in read] == ['own0_0', 'own0_0']
  path = tmp_path / 'answers_sft.jsonl'
  rows = predictions.answer(generator(), EvalRun(), 'qa', read, path, 'one')
  answers = [row['answers'][0] for row in rows]
  assert 'circle' in answers[0] and 'square' in answers[1]
  predictions.write(tmp_path / 'qa_sft.jsonl', read, rows)
  lines = map(json.loads, (tmp_path / 'qa_sft.jsonl').read_text().splitlines())
  assert [(one['prediction'], one['ended']) for one in lines] == [
    (answer, False)
    for answer in answers  # an echo has no end of sequence
  ]


def test_repeated_questions_of_a_benchmark_are_refused(tmp_path):
  row = {'video_name': 'v.mp4', 'question_id': 'q', 'question': 'W?', 'answer': 'A'}
  (tmp_path / 'eval').mkdir()
  (tmp_path / 'eval' / 'qa.json').write_text(json.dumps([row, row]))
  run = workspace(tmp_path, [], train='')
  with pytest.raises(DataError, match=r"row 1: question_id 'q' .*qa\.json row 0") as e:
    questions.read_questions(run.data, 'qa', run.skipped)
  assert '\n' not in str(e.value)


# ---------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'kind': [1]}, r'kind must be a str, got \[1\]'),
    ({'answer': ' '}, 'the answer is blank, and it is compared'),
    ({'question': '<video>'}, 'the question is blank'),
    ({'question': '<video><video> W?'}, '2 marks for one video'),
    ({'question': 'W\ud83d?'}, 'question: character 1 is a lone surrogate'),
    ({'start': 3.0}, 'start could say what is to be seen'),
    ({'video': 'w.mp4', 'images': ['1.jpg', '2.jpg']}, 'name different files'),
    ({'clip': [0, 50]}, r'clip must be within \[0, 12\]'),
    ({'video_name': 'nowhere.mp4'}, 'nowhere.mp4: no such file'),
    ({'video': 'nowhere.mp4'}, 'nowhere.mp4: no such file'),
  ],
)
def test_questions_of_a_benchmark_that_mean_something_else(tmp_path, change, message):
  row = {'video_name': 'v.mp4', 'question_id': 'q', 'question': 'W?', 'answer': 'A'}
  (tmp_path / 'eval').mkdir()
  (tmp_path / 'eval' / 'qa.json').write_text(json.dumps([{**row, **change}]))
  run = workspace(tmp_path, [], train='')
  with pytest.raises(DataError, match=f'qa.json row 0: .*{message}'):
    questions.read_questions(run.data, 'qa', run.skipped)


def test_what_a_question_of_a_benchmark_may_have(tmp_path):
  row = {
    'video_name': 'a name', 'video': 'v.mp4', 'images': None, 'clip': [0, 4],
    'question_id': 'q', 'question': '<image>\nW?', 'answer': 'A', 'duration': 3.0,
  }  # fmt: skip
  (tmp_path / 'eval').mkdir()
  (tmp_path / 'eval' / 'qa.json').write_text(json.dumps([row]))
  run = workspace(tmp_path, [], train='')
  (one,) = questions.read_questions(run.data, 'qa', run.skipped)
  assert one.video == Video(('v.mp4',), (0, 4))
  assert run.skipped.files['qa.json'] == {'rows': 1, 'held_out': 0, 'bad': 0}


def test_evaluation_keeps_the_clip(tmp_path):
  run = workspace(tmp_path, [held_out_record(clip=[4, 8]), record(1)])
  (one,) = questions.read_questions(run.data, 'qa', run.skipped)
  assert one.video.clip == (4, 8) and one.row['clip'] == [4, 8]


@pytest.mark.parametrize('policy', ['stop', 'skip'])
def test_evaluation_obeys_the_policy(tmp_path, policy):
  rows = [
    held_out_record(),
    held_out_record(clip=[0, 2]),
    held_out_record('Red? ' * 300),
  ]
  rows.append(record(1))  # one that is not held out: all of them would be none
  run = workspace(tmp_path, rows, policy)
  read = questions.read_questions(run.data, 'qa', run.skipped)
  bad = {read[1].video: '0.mp4: cannot be decoded'}

  def usable(part):
    fitting = questions.drop_long(part, TOKENIZER, (256,), 'vicuna_v1', run.skipped)
    return questions.drop_unreadable(fitting, bad, run.skipped)

  if policy == 'stop':
    with pytest.raises(DataError, match=r'my\.json row 1: 0\.mp4: cannot'):
      usable(read[:2])
    with pytest.raises(DataError, match=r'my\.json row 2: .* do not fit'):
      usable(read)
  else:
    assert usable(read) == read[:1]
    assert len(run.skipped.reasons) == 2


@pytest.mark.parametrize('kind', ['options', 'claims'])
def test_a_judges_prompt_that_does_not_fit(kind):
  """A text can have more tokens than were sampled; labeling goes on without it."""

  def log_odds(prompts, videos, options):
    return np.arange(1, len(prompts) + 1, dtype=float)

  model = types.SimpleNamespace(tokenizer=TOKENIZER, buckets=(256,), log_odds=log_odds)
  items = [examples.parse_example(record(i), f'f row {i}') for i in range(3)]
  texts = [['Red.', 'Blue.'], ['Red. ' * 300, 'Blue.'], ['Red.', 'Blue.']]
  answers = [[Answer(text, True) for text in two] for two in texts]
  settings = LabelConfig(
    judge=kind,
    caption_prompt='tiny_caption',
    options_prompt='tiny_judge_options',
    claims_prompt='tiny_judge_claims',
  )

  judge = Judge(model, settings)
  verdicts = judge.verdicts(items, answers, [''] * 3)
  fitting = [items[0], items[2]], [answers[0], answers[2]]
  assert [verdicts[0], verdicts[2]] == judge.verdicts(*fitting, [''] * 2)
  assert "f row 1: the judge's prompt: " in verdicts[1]['unjudged']
  assert 'margin' not in verdicts[1]
  row = {**audit_row(items[1]), **verdicts[1]}
  del row['margin']
  assert pairs.as_pair(row, settings) is None
  assert pairs.agreement([row], settings)['identical'] == 0


# ---------------------------------------------------------------- late refusal


def sft_samples(run, base):
  return sft._parts(SftRun(), run, base, run.features())


def init_run(run, base):
  return init.run(InitRun(), run.data.root)


def label_questions(run, base):
  settings = from_config_dict(LabelRun, label_config.get_config())
  settings = dataclasses.replace(settings, data=run.data)
  windows = clip_windows(12, 4)
  return read_label_questions(
    settings, run.data, run.skipped, base.tokenizer, run.features(), windows, None
  )


def reward_pairs(run, base):
  settings = RewardRun(scoring=RewardPrompt(prompt='tiny_reward'))
  return reward._pairs(settings, run, base, run.features())


def ppo_prompts(run, base):
  batch = {'rollout_batch': 8, 'step_batch': 8, 'micro_batch': 8}
  lengths = {'query_tokens': 128, 'response_tokens': 8}
  settings = PpoRun(ppo=PpoConfig(**batch, **lengths, answer_types='data'))
  return prompts.PromptDataset(settings, run, Vlm(CFG), Vlm(CFG), base, base)


LONG, MISSING = record(3, 'Red? ' * 300), record(3, video='nowhere.mp4')
NO_TYPE = record(3, answer_type='none of it')


@pytest.mark.parametrize(
  ('read', 'row', 'message'),
  [
    (sft_samples, LONG, 'row 3: .* do not fit'),
    (sft_samples, MISSING, 'row 3: .*nowhere.mp4: no such file'),
    (init_run, LONG, 'row 3: .* do not fit'),
    (init_run, MISSING, 'row 3: .*nowhere.mp4: no such file'),
    (label_questions, LONG, 'row 3: .* do not fit'),
    (label_questions, MISSING, 'row 3: .*nowhere.mp4: no such file'),
    (reward_pairs, LONG, 'row 3: .* do not fit'),
    (reward_pairs, MISSING, 'row 3: .*nowhere.mp4: no such file'),
    (ppo_prompts, NO_TYPE, 'row 3: answer_type must be'),
    (ppo_prompts, MISSING, 'row 3: .*nowhere.mp4: no such file'),
  ],
)
def test_rows_are_refused_before_anything_is_encoded(
  tmp_path, monkeypatch, read, row, message
):
  rows = [record(i) for i in range(60)]
  rows[3] = row
  if read is reward_pairs:
    answers = {'output_1': {'value': 'Red.'}, 'output_2': {'value': 'Blue.'}}
    made = [{**one, **answers, 'preference': 1} for one in rows]
    (tmp_path / 'pairs.json').write_text(json.dumps(made))
    rows[3] = record(3)
  run = workspace(tmp_path, rows)
  (tmp_path / 'nowhere.mp4').unlink(missing_ok=True)
  features = run.features()
  features.encode = lambda *_: pytest.fail('encoded before all rows were checked')
  monkeypatch.setattr(init, 'RunContext', lambda *_: run)
  monkeypatch.setattr(bases, 'load', lambda *_: BASE)
  monkeypatch.setattr(bases, 'tuned', lambda *_: BASE)
  with pytest.raises(DataError, match=message):
    read(run, BASE)


def test_a_text_that_is_too_long_is_refused_before_evaluation_encodes(
  tmp_path, monkeypatch
):
  run = workspace(tmp_path, [held_out_record('Red? ' * 300), record(1)])
  monkeypatch.setattr(evaluation, 'RunContext', lambda *_: run)
  monkeypatch.setattr(bases, 'load', lambda *_: BASE)
  monkeypatch.setattr(bases, 'tuned', lambda *_: BASE)
  run.root = run.folder = tmp_path
  with pytest.raises(DataError, match=r'my\.json row 0: .* do not fit'):
    evaluation.run(EvalRun(data=run.data, eval=EvalConfig(models=('sft',))), tmp_path)


def test_a_conversation_in_a_list_is_labeled(tmp_path):
  nested = {**record(0), 'conversations': [record(0)['conversations']]}
  item = examples.parse_example(nested, 'f')
  pair = pairs.as_pair(audit_row(item), LabelConfig())
  again = examples.parse_pair(json.loads(json.dumps(pair)), 'f')
  assert again.example.question == 'What happens?'


# ---------------------------------------------------------------- nothing left


@pytest.mark.parametrize(
  ('stage', 'settings', 'message'),
  [
    (init, InitRun, 'my.json: no usable sample'),
    (label, LabelRun, 'my.json: no usable question about a video'),
    (evaluation, EvalRun, 'my.json: no usable question about a held-out video'),
  ],
)
def test_nothing_to_work_on_is_refused(tmp_path, monkeypatch, stage, settings, message):
  run = workspace(tmp_path, [])
  monkeypatch.setattr(stage, 'RunContext', lambda *_: run)
  monkeypatch.setattr(evaluation, 'check_control', lambda *_: None)
  monkeypatch.setattr(bases, 'load', lambda *_: BASE)
  monkeypatch.setattr(bases, 'tuned', lambda *_: BASE)
  with pytest.raises(DataError, match=message) as error:
    stage.run(settings(), tmp_path)
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'artifact').exists()
