"""Which prompts an iteration has: every row its own, each once a pass."""

import json
import types

import numpy as np
import pytest

from tests.own_data import BASE, TOKENIZER, record, workspace
from tests.tiny import CFG
from vlm_rlaif_jax.data import holdout, readers
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.labeling.answers import Answer
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.rl import prompts
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoRun


def dataset(folder, rows, train='my.json', **changes) -> prompts.PromptDataset:
  """Returns the prompts of 40 rows of a user's own file, 8 an iteration."""
  config = {
    'rollout_batch': 8, 'step_batch': 8, 'micro_batch': 8,
    'query_tokens': 128, 'response_tokens': 8, **changes,
  }  # fmt: skip
  settings = PpoRun(ppo=PpoConfig(**config))
  if not train:
    (folder / 'instructions').mkdir()
    (folder / 'instructions' / 'RL_data.json').write_text(json.dumps(rows))
  run, vlm = workspace(folder, rows, train=train), Vlm(CFG)
  return prompts.PromptDataset(settings, run, vlm, vlm, BASE, BASE)


def test_ppo_asks_every_row_its_own_question(tmp_path):
  """Rows of one id, which the released layout allows."""
  rows = [record(i, f'What about {i}?', id='same') for i in range(40)]
  batch, items = dataset(tmp_path, rows).batch(1)
  for ids, item in zip(np.asarray(batch.ids), items, strict=True):
    asked = readers.encode_question(TOKENIZER, item)
    np.testing.assert_array_equal(ids[-len(asked) :], asked)
  assert len({item.question for item in items}) == 8


def test_a_pass_has_every_prompt_once_in_an_order_of_its_own(tmp_path):
  rows = [record(i, f'What about {i}?') for i in range(40)]
  data = dataset(tmp_path, rows)
  steps = len(data.train) // 8
  assert steps >= 2

  def asked(iterations):
    return [item.question for i in iterations for item in data.batch(i)[1]]

  first, second = asked(range(1, steps + 1)), asked(range(steps + 1, 2 * steps + 1))
  assert len(set(first)) == len(first) == 8 * steps
  assert len(set(second)) == len(second) and first != second
  assert asked([2]) == asked([2])  # a resumed run reads what it would have read
  ids = np.asarray(data.batch(1)[0].example_id)
  assert [data.train[i].example.question for i in ids] == asked([1])


@pytest.mark.parametrize('train', ['my.json', ''])
def test_evaluation_has_its_videos_of_one_file_for_itself(tmp_path, train):
  """No policy is trained or chosen by them; a file for PPO alone has none of them."""
  data = dataset(tmp_path, [record(i) for i in range(90)], train=train)
  aside = [f'{i}.mp4' for i in range(90) if holdout.in_share(f'{i}.mp4', 0.1)]
  trained, chosen = (
    {prompt.example.video.paths[0] for prompt in part}
    for part in (data.train, data.eval)
  )
  assert not trained & chosen and chosen and aside
  if train:
    assert not (trained | chosen) & {*aside}
    assert len(trained | chosen) == 90 - len(aside)
    assert all(holdout.in_share(name, 0.1, 'pairs') for name in chosen)
  else:
    assert chosen == {*aside}


def test_a_file_whose_videos_evaluation_leaves_nothing_of_is_refused(tmp_path):
  free = [i for i in range(200) if not holdout.in_share(f'{i}.mp4', 0.1)]
  rows = [record(i) for i in free if not holdout.in_share(f'{i}.mp4', 0.1, 'pairs')]
  aside = next(i for i in range(200) if holdout.in_share(f'{i}.mp4', 0.1))
  with pytest.raises(DataError) as error:
    dataset(tmp_path, [*rows[:9], record(aside)])
  assert str(error.value).endswith(
    'my.json: 9 prompts to train on (config.ppo.rollout_batch is 8) and 0 held out, of '
    '9 videos, 1 further ones for evaluation; expected 8 and 1: add videos, or change '
    'config.data.holdout=0.1 or config.ppo.rollout_batch'
  )


def test_held_out_prompts_are_not_trained_on_and_fill_their_batch(tmp_path):
  rows = [record(i, f'What about {i}?') for i in range(60)]
  data = dataset(tmp_path, rows, eval_prompts=3)
  batches = list(data.held_out())
  items = [item for _, part in batches for item in part]
  assert 0 < len(items) <= 3
  for item in items:
    assert holdout.in_share(item.video.paths[0], data.run.data.holdout, 'pairs')
  assert not {i.video for i in items} & {p.example.video for p in data.train}
  prompts_of_batch, part = batches[0]
  assert prompts_of_batch.ids.shape[0] == 8
  first = np.asarray(prompts_of_batch.ids[0])
  np.testing.assert_array_equal(
    prompts_of_batch.ids[len(part) :], [first] * (8 - len(part))
  )


def test_held_out_prompts_draw_with_keys_of_their_own_in_batches_of_any_size(tmp_path):
  rows = [record(i, f'What about {i}?') for i in range(300)]
  numbers = {}
  for size in (8, 16):
    sizes = {'rollout_batch': size, 'step_batch': size, 'micro_batch': size}
    data = dataset(tmp_path, rows, eval_prompts=20, **sizes)
    batches = [(np.asarray(part.example_id), items) for part, items in data.held_out()]
    assert len(batches) > 1
    numbers[size] = {
      item.key: int(number)
      for ids, items in batches
      for number, item in zip(ids, items, strict=False)
    }
  assert numbers[8] == numbers[16]
  assert len(set(numbers[8].values())) == 20


def test_responses_are_told_apart_by_their_end(tmp_path):
  data = dataset(tmp_path, [record(i) for i in range(40)])
  ids = TOKENIZER.pieces('It stays.')
  rows = [[*ids, TOKENIZER.eos], [*ids, 0], [*ids, TOKENIZER.eos]]
  has_eos = np.array([True, False, True])
  rollout = types.SimpleNamespace(tokens=np.array(rows), has_eos=has_eos)
  items = [prompt.example for prompt in data.train[:2]]  # the batch is filled up
  assert data.answers(items, rollout) == [
    Answer('It stays.', True), Answer('It stays.', False)
  ]  # fmt: skip


def test_prompts_that_are_too_long_are_counted_and_dropped(tmp_path):
  rows = [record(i) for i in range(40)]
  rows[3] = record(3, 'Red? ' * 300)
  assert dataset(tmp_path, rows).too_long == 1


def test_too_few_prompts_are_refused(tmp_path):
  rows = [record(i) for i in range(9)]
  with pytest.raises(DataError, match=r'my\.json: \d prompts to train on .*is 16'):
    dataset(tmp_path, rows, rollout_batch=16, step_batch=16, micro_batch=16)
