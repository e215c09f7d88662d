"""What an evaluation leaves of a file of one's own, judged and scored by models."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from configs import models
from tests.public_benchmarks import (
  answered,
  public_data,
  public_run,
)
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.eval import EvalInputs, EvalRun
from vlm_rlaif_jax.settings.judge import JudgeConfig
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.stages import eval as stage
from vlm_rlaif_jax.weights import adapters, artifacts, bases


def own_run(root, **inputs):
  """An evaluation of a file of one's own about four videos, and their pictures."""
  public_data(root)
  rows = [
    {
      'id': f'{video}{number}',
      'images': [f'frames/v_clip{video}/{frame}.png' for frame in range(2)],
      'conversations': [
        {'from': 'human', 'value': '<image>\nWhat is it?'},
        {'from': 'gpt', 'value': answer},
      ],
    }
    for video in range(4)
    for number, answer in enumerate(('Red', 'A red circle moves and then it stays.'))
  ]
  (root / 'my.json').write_text(json.dumps(rows))
  public = public_run(root)
  return dataclasses.replace(
    public,
    data=dataclasses.replace(public.data, train='my.json', holdout=0.2),
    eval=dataclasses.replace(public.eval, benchmarks=()),
    judge=JudgeConfig(kind='model', model='base', own_model_prompt='tiny_judge_answer'),
    inputs=EvalInputs(**inputs),
  )


def reward_stage(folder, stage='reward'):
  """Leaves a reward model of random weights on the base of the package."""
  cfg, lora = models.tiny(), LoraConfig(rank=2, alpha=2.0)
  key = jax.random.key(0)
  adapter = adapters.init_adapter(cfg, lora, key, 'float32')
  moved = jax.tree.map(lambda x: np.asarray(x) + 0.02, adapter)
  head = dataclasses.asdict(heads.init_head(key, cfg.llama.width))
  info = {
    'stage': stage,
    'base': bases.fingerprint(bases.TINY),
    **bases.origin(''),
    'lora': dataclasses.asdict(lora),
    'scoring': {'prompt': 'tiny_reward'},
    'scoring_text': 'USER: Rate the answer. ASSISTANT:',
  }
  parts = {'lora': moved, 'head': head} if stage == 'reward' else {'lora': moved}
  artifacts.save(folder / 'artifact', artifacts.Artifact(parts, info))
  return folder


@pytest.mark.slow
def test_a_file_of_ones_own_is_judged_and_scored_by_models_of_the_run(tmp_path):
  place = reward_stage(tmp_path / 'runs' / 'reward')
  settings = own_run(tmp_path, reward=str(place))
  summary = stage.run(settings, tmp_path / 'run')
  assert list(summary['benchmarks']) == ['own']
  entry = summary['benchmarks']['own']
  assert entry['items'] == summary['questions']['qa'] == 6  # of three of four videos
  numbers = entry['models']['base']
  assert numbers['exact_match']['n'] == 3  # captions are descriptions
  assert numbers['judge_score']['n'] == 6 and entry['judge']['name'] == 'model-base'
  assert len(entry['examples']) == 3
  folder = tmp_path / 'run' / 'tiny' / 'eval'
  left = answered(folder)
  own, qa = left['own/answers_base.jsonl'], left['qa/answers_base.jsonl']
  assert [row['answers'] for row in own] == [row['answers'] for row in qa]
  assert len(left['own/verdicts_base_model-base.jsonl']) == 6

  # The reward model: its mean, the error of it, and a row an item.
  rows = left['own/rewards_base.jsonl']
  rewards = [row['reward'] for row in rows]
  assert [row['key'] for row in rows] == [row['key'] for row in own]
  assert len(set(rewards)) > 1
  reward, by_video = numbers['reward'], np.reshape(rewards, (3, 2))
  assert reward['value'] == pytest.approx(np.mean(rewards)) and reward['n'] == 6
  spread = np.std(by_video.mean(axis=1), ddof=1) / np.sqrt(3)  # of videos alike
  assert reward['standard_error'] == pytest.approx(spread)
  record = entry['reward_model']
  assert record['folder'] == str(place) and record['base'] == bases.fingerprint(
    bases.TINY
  )


@pytest.mark.slow
def test_own_scores_the_answers_that_the_tasks_have_now(tmp_path):
  """Those of before are of another length, which their own setting does not say."""
  settings = own_run(tmp_path)
  short = dataclasses.replace(settings, judge=JudgeConfig())

  def texts(rows):
    return [(row['answers'], row['ended']) for row in rows]

  for tokens in (1, 3):
    longer = dataclasses.replace(short.eval, answer_tokens=tokens)
    summary = stage.run(dataclasses.replace(short, eval=longer), tmp_path / 'run')
    left = answered(tmp_path / 'run' / 'tiny' / 'eval')
    own, qa = left['own/answers_base.jsonl'], left['qa/answers_base.jsonl']
    assert texts(own) == texts(qa)
    entry = summary['benchmarks']['own']
    assert entry['settings']['tokens'] == {'qa': tokens, 'describe': 512}
  former = left['own/former_answers_base.jsonl']
  assert texts(former) != texts(own)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (None, 'config.inputs.reward: .*nowhere: no such folder'),
    ('init', "config.inputs.reward=.*: stage 'init' is no reward model; expected the"),
  ],
)
def test_what_is_no_reward_model_is_one_line_before_any_work(tmp_path, make, message):
  place = tmp_path / 'nowhere'
  if make:
    reward_stage(place, make)
  with pytest.raises(UserError, match=message) as error:
    stage.run(own_run(tmp_path, reward=str(place)), tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert not list((tmp_path / 'run').rglob('*.jsonl'))


def test_a_reward_model_needs_a_file_of_ones_own():
  with pytest.raises(ValueError, match=r"inputs\.reward: scores the answers to 'own'"):
    EvalRun(inputs=EvalInputs(reward='runs/7b/reward'))
  with pytest.raises(ValueError, match=r'of inputs\.reward, which is empty'):
    EvalRun(inputs=EvalInputs(reward_base='checkpoints/13b'))
