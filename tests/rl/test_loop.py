"""An iteration around programs that are faked: checks, metric names, history."""

import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.labeling.answers import Answer
from vlm_rlaif_jax.rl import loop, selection, start
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoRun
from vlm_rlaif_jax.settings.sections import CheckpointConfig, LogConfig
from vlm_rlaif_jax.train import journal, metrics
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.types import Scores

GAP = 1e-3
LOGGED = {'objective/reward': 1.5, 'objective/entropy': 2.0, 'objective/tokens': 3.0}


class FakeDataset:
  """Two batches of held-out prompts, of which the second has one row to spare."""

  def __init__(self):
    self.written = []
    self.eval = ['a', 'b', 'c']

  def batch(self, number):
    return number

  def put_everywhere(self, x):
    return x

  def correctness(self, items, tokens):
    return jnp.zeros(2), jnp.ones(2)

  def write_samples(self, path, number, items, rollout, scores):
    self.written.append(number)

  def held_out(self):
    yield 'prompts', ['a', 'b']
    yield 'prompts', ['c']

  def answers(self, items, rollout):
    return [Answer('an answer', bool(end)) for end in rollout.has_eos[: len(items)]]

  def quality(self, items, tokens):
    return [0.5] * len(items)


def iterations(gap=0.0, sampled_by=7, **changes) -> loop.Iterations:
  rollout = types.SimpleNamespace(
    tokens=jnp.zeros((2, 3)), has_eos=jnp.array([True, False]), adapter=sampled_by
  )
  row = {**LOGGED, 'objective/kl': 0.5, 'sampler/logprob_gap': gap}

  def update(state, bases, rollout, scores, estimates, rate):
    new = TrainState(state.step + 1, state.trainable, {}, state.key)
    return new, {'policy/clip_share': 0.1, 'approx_kl': 0.01, 'adapter': 7}

  phases = {
    'rollout': lambda *_: rollout,
    'score': lambda *_: 'scores',
    'estimate': lambda *_: ('estimates', dict(row)),
    'update': update,
    'reward': lambda *_: jnp.asarray([1.0, 4.0]),
  }
  config = PpoConfig(logprob_gap=GAP, **changes)
  return loop.Iterations(
    config,
    bases=None,
    frozen=None,
    phases=phases,
    dataset=FakeDataset(),
    rate=lambda step: 0.25,
    folder=pathlib.Path('no_folder'),
  )


def state(step: int) -> TrainState:
  return TrainState(jnp.int32(step), {'policy': {}}, {}, jax.random.key(0))


def test_rewards_are_the_judges_where_the_settings_say_so():
  """In the scores of an iteration, and of held-out responses."""
  one = iterations(reward='judge')
  estimated = []

  def estimate(rollout, scores, *rest):
    estimated.append(scores.reward)
    return 'estimates', {'objective/kl': 0.5, 'sampler/logprob_gap': 0.0, **LOGGED}

  one.phases['score'] = lambda *_: Scores(None, None, None, None, reward='the model')
  one.phases['estimate'] = estimate
  one.dataset.put_rows = lambda rows: rows
  one.judge = types.SimpleNamespace(
    rewards=lambda items, answers: np.asarray(
      [-0.5 if answer.stopped else -0.25 for answer in answers], np.float32
    )
  )
  one.run(state(4), (None, ['a', 'b']))
  (rewards,) = estimated
  np.testing.assert_array_equal(rewards, [-0.5, -0.25])
  row = one.evaluate_held_out(state(5))  # of the last batch, one row is to spare
  assert row['held_out/reward'] == pytest.approx(-(0.5 + 0.25 + 0.5) / 3)


def test_a_judge_that_is_the_reward_chooses_no_policy():
  with pytest.raises(ValueError, match="select: 'judge' is what reward='judge' trains"):
    PpoConfig(reward='judge', select='judge')


def test_an_iteration_has_the_names_that_people_search_for():
  one = iterations()
  new, metrics = one.run(state(4), (None, []))
  assert one.response_length == metrics['objective/tokens']  # rates are of those
  assert int(new.step) == 5 and one.dataset.written == [5]
  assert metrics['reward'] == metrics['objective/reward'] == 1.5
  assert metrics['kl'] == metrics['objective/kl'] == 0.5
  assert metrics['entropy'] == metrics['objective/entropy'] == 2.0
  assert metrics['response_length'] == metrics['objective/tokens'] == 3.0
  assert metrics['clip_fraction'] == metrics['policy/clip_share'] == 0.1
  assert metrics['lr'] == metrics['learning_rate'] == 0.25
  assert metrics['approx_kl'] == 0.01
  assert 'adapter' not in metrics and metrics['sampler/adapter'] == 7


def test_a_sampler_that_differs_from_the_trainer_stops_the_run():
  one = iterations(gap=2 * GAP)
  with pytest.raises(loop.SamplerError, match=r'iteration 1: .*differ by 0\.0020 nats'):
    one.run(state(0), (None, []))
  assert one.history == {} and one.dataset.written == []


def test_a_gap_that_is_no_number_stops_the_run():
  one = iterations(gap=float('nan'))
  with pytest.raises(loop.SamplerError, match=r'iteration 1: .*differ by nan nats'):
    one.run(state(0), (None, []))


def test_a_sampler_with_an_old_adapter_stops_the_run():
  one = iterations(sampled_by=8)
  new, _ = one.run(state(0), (None, []))  # nothing was updated before
  assert one.history['adapter'] == 7
  with pytest.raises(RuntimeError, match=r'used adapter 00000008, .*wrote 00000007'):
    one.run(new, (None, []))


def test_held_out_rewards_are_means_over_real_rows_by_step():
  one = iterations()
  assert one.evaluate_held_out(state(0)) == {
    'held_out/reward': pytest.approx(np.mean([1.0, 4.0, 1.0])),
    'held_out/true_quality': 0.5,
  }
  new, _ = one.run(state(0), (None, []))
  one.evaluate_held_out(new)
  summary = one.summary(1)
  assert summary['reward_before'] == summary['reward_after'] == pytest.approx(2.0)
  assert set(summary['history']['held_out/reward']) == {'0', '1'}
  assert summary['adapter'] == '00000007' and summary['held_out'] == 3


def test_the_run_ends_after_the_iteration_that_went_too_far():
  one = iterations(kl_stop=0.4)  # the rollout has 0.5
  given = one.batches(3, 10)
  assert next(given) == 4
  one.run(state(3), (None, []))
  assert one.history['stopped'] == 4
  assert list(given) == [] and list(one.batches(4, 10)) == []  # also when resumed
  assert list(iterations().batches(3, 6)) == [4, 5, 6]


def test_the_last_evaluation_of_a_run_that_ended_early_is_a_row(tmp_path, monkeypatch):
  """Like the others, with its media; and the checkpoint has it."""
  one = iterations(kl_stop=0.4, eval_every=10)  # the first rollout has 0.5
  one.samples, one.compile_ahead = tmp_path / loop.SAMPLES, lambda *_: None
  one.dataset.batch = lambda number: (None, [])
  one.dataset.fingerprint, one.dataset.suffix_tokens = 'none', 1
  one.dataset.actor_features = types.SimpleNamespace(contents={})
  one.dataset.videos = set()
  displayed = []
  monkeypatch.setattr(loop, 'Iterations', lambda *_: one)
  monkeypatch.setattr(loop, 'programs', lambda *_: one.phases)
  monkeypatch.setattr(loop.flops, 'step_flops', lambda *_: (1.0, 1.0, 0.0))
  monkeypatch.setattr(
    metrics.Metrics, 'write_media', lambda self, step, media: displayed.append(step)
  )
  settings = PpoRun(ppo=one.config, log=LogConfig(progress=False, tensorboard=False))
  network = types.SimpleNamespace(lora=None)
  learner = types.SimpleNamespace(actor=network, critic=network, devices=1)
  run = types.SimpleNamespace(folder=tmp_path, mesh=None)
  initial = TrainState(
    jnp.int32(0), {'policy': {'a': jnp.ones(2)}}, {}, jax.random.key(0)
  )
  _, summary = loop.train_loop(
    settings, run, learner, None, None, initial, one.dataset, 8, {}
  )
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  evaluated = [row['step'] for row in rows if 'held_out/reward' in row]
  assert summary['stopped'] == summary['iterations'] == 1
  assert evaluated == displayed == [0, 1]
  assert summary['reward_after'] == rows[-1]['held_out/reward']
  (saved,) = tmp_path.glob('checkpoints/1/extra/metadata')
  assert '1' in json.loads(saved.read_text())['held_out/reward']


def test_a_killed_run_leaves_the_policy_that_its_summary_names(tmp_path, monkeypatch):
  """Killed after a better evaluation that it does not come to once more."""

  def train(qualities):
    one = iterations(select='truth', eval_every=1)
    one.samples, one.compile_ahead = tmp_path / loop.SAMPLES, lambda *_: None
    one.selection.folder = tmp_path / selection.FOLDER
    data = one.dataset
    data.batch, data.truth = lambda number: (None, []), {'a': {}}
    data.eval = [types.SimpleNamespace(example=types.SimpleNamespace(key='a'))]
    data.fingerprint, data.suffix_tokens, data.videos = 'none', 1, set()
    data.actor_features = types.SimpleNamespace(contents={})
    number = iter(qualities)
    data.held_out = lambda: iter([('prompts', ['a'])])
    data.quality = lambda items, tokens: [next(number)]

    def update(state, *_):
      moved = {'policy': {'a': state.trainable['policy']['a'] + 1}}
      new = TrainState(state.step + 1, moved, {}, state.key)
      return new, {'policy/clip_share': 0.1, 'approx_kl': 0.01, 'adapter': 7}

    one.phases['update'] = update
    settings = PpoRun(
      ppo=one.config,
      log=LogConfig(progress=False, tensorboard=False),
      checkpoint=CheckpointConfig(every=4),
    )
    network = types.SimpleNamespace(lora=None)
    learner = types.SimpleNamespace(actor=network, critic=network, devices=1)
    run = types.SimpleNamespace(folder=tmp_path, mesh=None)
    initial = TrainState(
      jnp.int32(0), {'policy': {'a': jnp.zeros(2)}}, {}, jax.random.key(0)
    )
    with monkeypatch.context() as patch:
      patch.setattr(loop, 'Iterations', lambda *_: one)
      patch.setattr(loop, 'programs', lambda *_: one.phases)
      patch.setattr(loop.flops, 'step_flops', lambda *_: (1.0, 1.0, 0.0))
      return loop.train_loop(
        settings, run, learner, None, None, initial, one.dataset, 8, {}
      )

  with pytest.raises(StopIteration):  # at the evaluation after iteration 7
    train([0.1, 0.2, 0.6, 0.3, 0.4, 0.5, 0.9])
  parts, summary = train([0.3, 0.2, 0.1, 0.3])  # after the checkpoint of iteration 4
  assert summary['final_iteration'] == 2
  np.testing.assert_array_equal(parts['policy']['a'], 2)
  assert [path.name for path in (tmp_path / selection.FOLDER).iterdir()] == ['2']


@pytest.mark.parametrize('scope, differs', [('batch', False), ('device', True)])
def test_devices_decide_a_run_where_each_has_statistics_of_its_own(scope, differs):
  dataset = types.SimpleNamespace(
    fingerprint='w', videos=set(), actor_features=types.SimpleNamespace(contents={})
  )
  settings = PpoRun(ppo=PpoConfig(whiten_scope=scope))
  eight, four = (
    start.identity_of(settings, dataset, 10, devices, {}) for devices in (8, 4)
  )
  assert bool(journal.changes(eight, four)) == differs
  eight.pop(journal.DEVICES, None)  # of a run before it was recorded
  assert not journal.changes(eight, four)


def test_the_weight_of_the_penalty_follows_its_target():
  one = iterations(kl_coef=0.2, kl_target=0.25, kl_horizon=256.0)
  _, metrics = one.run(state(0), (None, []))
  assert metrics['kl_coef'] == 0.2
  assert one.history['kl_coef'] == pytest.approx(0.2 * 1.2)  # 256 answers, all of 20 %
  fixed = iterations(kl_coef=0.2)
  fixed.run(state(0), (None, []))
  assert fixed.history['kl_coef'] == 0.2


def test_an_alarm_where_the_reward_rises_and_the_truth_falls(capsys):
  one = iterations()
  one.selection.score = 'held_out/true_quality'
  one.history['best'] = {'iteration': 0, 'score': 0.9}
  for step, (reward, quality) in enumerate(((1, 0.9), (2, 0.8), (3, 0.7), (4, 0.6))):
    one.history.setdefault('held_out/reward', {})[str(step)] = reward
    one.history.setdefault('held_out/true_quality', {})[str(step)] = quality
    one.selection.check_optimization()
  assert one.history['over_optimized'] == 2
  assert capsys.readouterr().out.count('the reward rises while') == 1  # said once


@pytest.mark.parametrize(
  ('select', 'held_out', 'message'),
  [
    ('judge', [], r'select=judge: no prompt is held out'),
    ('truth', ['a'], r'select=truth: the data have no truth\.json'),
  ],
)
def test_a_score_that_cannot_be_measured_selects_no_policy(select, held_out, message):
  dataset = types.SimpleNamespace(eval=held_out, truth=None)
  with pytest.raises(DataError, match=message):
    selection.check(select, dataset)
  selection.check('last', dataset)


def test_a_truth_of_other_prompts_selects_no_policy():
  prompt = types.SimpleNamespace(example=types.SimpleNamespace(key='a'))
  dataset = types.SimpleNamespace(eval=[prompt], truth={'b': {}})
  with pytest.raises(DataError, match=r'truth\.json has the id of none of 1 held-out'):
    selection.check('truth', dataset)
  dataset.truth['a'] = {}
  selection.check('truth', dataset)
