"""What the tiny base is trained on: whole rounds, repeatable, of what is shown."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import pretrain as config
from vlm_rlaif_jax.data import prompts, tokens
from vlm_rlaif_jax.data.world import lessons, stills
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.pretrain import PretrainRun
from vlm_rlaif_jax.weights import bases

SETTINGS = from_config_dict(PretrainRun, config.get_config())
PHASES = ('tower', 'lists', 'questions', 'forms')


@pytest.fixture(scope='module')
def tokenizer():
  return tokens.load_tokenizer(bases.TINY)


@pytest.fixture(scope='module')
def talk(tokenizer):
  few = dataclasses.replace(SETTINGS.pretrain, lists_strips=64)
  settings = dataclasses.replace(SETTINGS, pretrain=few)
  width = SETTINGS.model.llama.width
  see = lambda kind, number, frames: np.full(
    (len(frames), frames.shape[1] + 16, width),
    frames.mean(axis=(1, 2, 3, 4), keepdims=True)[..., 0, 0] / 255,
    np.float16,
  )
  bar = lambda numbers, title: numbers
  return lessons.Talk(tokenizer, settings, *lessons.look(settings, see, bar))


def leaves(batch):
  return jax.tree.leaves(jax.tree.map(np.asarray, batch))


@pytest.mark.parametrize('phase', PHASES)
def test_a_batch_is_the_same_whenever_it_is_asked_for(tokenizer, talk, phase):
  make = lambda number: (
    lessons.faces(tokenizer, SETTINGS, number)
    if phase == 'tower'
    else talk.batch(phase, number)
  )
  first, other, again = (leaves(make(number)) for number in (3, 4, 3))
  for a, b, c in zip(first, other, again, strict=True):
    np.testing.assert_array_equal(a, c)
    assert a.shape == b.shape and not np.array_equal(a, b)


LAST = SETTINGS.pretrain.questions_steps - 1


@pytest.mark.parametrize(
  'phase, numbers',
  [
    ('lists', range(5)),
    ('questions', range(5)),
    ('questions', range(LAST - 5, LAST)),
    ('forms', range(5)),
  ],
)
def test_the_samples_of_a_batch_have_something_to_learn(talk, phase, numbers):
  empty = count = 0
  for number in numbers:
    batch = talk.batch(phase, number)
    assert set(batch) == {'strip', 'part', 'still', 'text'}
    for task in batch.values():
      assert (task['ids'][task['weight'] > 0] != 0).all()  # never a pad
      for ids, weight in zip(task['ids'], task['weight'], strict=True):
        count += 1
        if not weight.any():  # two long answers to compare, which do not fit
          empty += 1
          continue
        # Whole rounds: what is said last is the end of an answer.
        assert ids[np.flatnonzero(weight)[-1]] == talk.tokenizer.eos
        assert ids[0] == talk.tokenizer.bos
  assert empty < 0.02 * count


def test_whole_prompts_come_last(talk, tokenizer):
  system = tokenizer.encode(prompts.SYSTEM)
  assert len(system) + len(tokenizer.encode('USER:')) - 1 <= lessons.PREFIX
  starts = lambda batch: [
    list(ids[: len(system)]) == system for task in batch.values() for ids in task['ids']
  ]
  assert not any(starts(talk.batch('lists', 0)) + starts(talk.batch('questions', 0)))
  assert all(starts(talk.batch('questions', LAST)) + starts(talk.batch('forms', 0)))
  # Otherwise a prompt is the same but for the words before the first question.
  said = [(('Is it?', 'Yes'),)]
  bare, whole = (
    talk.encode(said, 'text', lists=True, whole=whole)['ids'][0] for whole in (0, 1)
  )
  assert [i for i in whole if i][len(system) :] == [i for i in bare if i][1:]


def test_judgments_weigh_more(talk):
  said = [(('Is it?', 'Yes'), ('What is it?', 'Red circle'))]
  weight = talk.encode(said, 'still', lists=True, whole=False)['weight'][0]
  weight = weight[weight > 0].tolist()
  heavy = SETTINGS.pretrain.judged
  assert weight[:2] == [heavy, 1] and set(weight[2:]) == {1}


def test_courses_of_a_scene():
  thing = scenes.Thing('blue', 'ring', (30, 30), ('moves left', 'stays', 'vanishes'))
  table = lessons.scene_courses(scenes.Scene((thing,)))
  blue = lessons.COLORS.index('blue')
  said = [scenes.PREDICATES[i] for i in table['does'][:, blue]]
  assert said == ['moves left', 'stays', 'vanishes']
  assert (np.delete(table['does'], blue, axis=1) == -1).all()
  seen, x, y = table['moves'][:, blue].T
  assert seen[0] == 0 and seen[1] == 1 and seen[-1] == 0  # gone from the middle on
  assert x[1] < 0 and not y.any()
  np.testing.assert_allclose(5 * x.sum(), 30 - scenes.STEP - 30 + 2.5, atol=1e-5)
  hidden = dataclasses.replace(thing, predicates=('', 'appears', 'stays'))
  table = lessons.scene_courses(scenes.Scene((hidden,)))
  assert table['does'][0, blue] == lessons.COURSES - 1


def test_attributes_say_what_was_drawn():
  picture = stills.sample_picture(np.random.default_rng(3))
  table = lessons.attributes(picture)
  assert table[:, 0].sum() == len(picture.objects) > 0
  for (color, shape), center in zip(picture.objects, picture.centers, strict=True):
    there, kind, x, y = table[lessons.COLORS.index(color)]
    assert there == 1 and lessons.SHAPES[int(kind)] == shape
    np.testing.assert_allclose([64 * x, 64 * y], center, rtol=1e-6)
