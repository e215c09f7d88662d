"""What the tiny base is trained on: complete rounds, repeatable, true of the images."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import pretrain as config
from vlm_rlaif_jax.data import prompts, tokens
from vlm_rlaif_jax.data.world import lessons, stills
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.pretrain import PretrainRun
from vlm_rlaif_jax.weights import bases

SETTINGS = from_config_dict(PretrainRun, config.get_config())
PHASES = ('tower', 'lists', 'questions', 'forms')


@pytest.fixture(scope='module')
def tokenizer():
  return tokens.load_tokenizer(bases.TINY)


@pytest.fixture(scope='module')
def sampler(tokenizer):
  few = dataclasses.replace(SETTINGS.pretrain, lists_strips=64)
  settings = dataclasses.replace(SETTINGS, pretrain=few)
  width = SETTINGS.model.llama.width

  def encode(kind, number, frames):
    return np.full(
      (len(frames), frames.shape[1] + 16, width),
      frames.mean(axis=(1, 2, 3, 4), keepdims=True)[..., 0, 0] / 255,
      np.float16,
    )

  def progress(numbers, title):
    return numbers

  images = lessons.encode_images(settings, encode, progress)
  return lessons.TextTaskSampler(tokenizer, settings, *images)


def leaves(batch):
  return jax.tree.leaves(jax.tree.map(np.asarray, batch))


@pytest.mark.parametrize('phase', PHASES)
def test_a_batch_is_the_same_whenever_it_is_sampled(tokenizer, sampler, phase):
  def batch(number):
    if phase == 'tower':
      return lessons.tower_batch(tokenizer, SETTINGS, number)
    return sampler.batch(phase, number)

  first, other, again = (leaves(batch(number)) for number in (3, 4, 3))
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
def test_the_samples_of_a_batch_have_something_to_learn(sampler, phase, numbers):
  empty = count = 0
  for number in numbers:
    batch = sampler.batch(phase, number)
    assert set(batch) == {'strip', 'part', 'still', 'text'}
    for task in batch.values():
      assert (task['ids'][task['weight'] > 0] != PAD).all()  # never a pad
      for ids, weight in zip(task['ids'], task['weight'], strict=True):
        count += 1
        if not weight.any():  # two long answers to compare, which do not fit
          empty += 1
          continue
        # Complete rounds: the last token is the end of an answer.
        assert ids[np.flatnonzero(weight)[-1]] == sampler.tokenizer.eos
        assert ids[0] == sampler.tokenizer.bos
  assert empty < 0.02 * count


def test_full_prompts_come_last(sampler, tokenizer):
  system = tokenizer.encode(prompts.SYSTEM)
  assert len(system) + len(tokenizer.encode('USER:')) - 1 <= lessons.PREFIX

  def starts(batch):
    return [
      list(ids[: len(system)]) == system
      for task in batch.values()
      for ids in task['ids']
    ]

  first = starts(sampler.batch('lists', 0)) + starts(sampler.batch('questions', 0))
  last = starts(sampler.batch('questions', LAST)) + starts(sampler.batch('forms', 0))
  assert not any(first) and all(last)
  # Otherwise a prompt is the same but for the words before the first question.
  rounds = [(('Is it?', 'Yes'),)]
  bare, full = (
    sampler.encode(rounds, 'text', lists=True, full_prompt=full_prompt)['ids'][0]
    for full_prompt in (False, True)
  )
  full, bare = ([i for i in ids if i != PAD] for ids in (full, bare))
  assert full[len(system) :] == bare[1:]


def test_judgments_weigh_more(sampler):
  rounds = [(('Is it?', 'Yes'), ('What is it?', 'Red circle'))]
  batch = sampler.encode(rounds, 'still', lists=True, full_prompt=False)
  weight = batch['weight'][0]
  weight = weight[weight > 0].tolist()
  heavy = SETTINGS.pretrain.judged
  assert weight[:2] == [heavy, 1] and set(weight[2:]) == {1}


def test_motion_labels_of_a_scene():
  thing = scenes.Thing('blue', 'ring', (30, 30), ('moves left', 'stays', 'vanishes'))
  labels = lessons.motion_labels(scenes.Scene((thing,)))
  blue = lessons.COLORS.index('blue')
  predicates = [scenes.PREDICATES[i] for i in labels['action'][:, blue]]
  assert predicates == ['moves left', 'stays', 'vanishes']
  assert (np.delete(labels['action'], blue, axis=1) == -1).all()
  visible, x, y = labels['displacement'][:, blue].T
  # Invisible from the middle of the last phase on.
  assert visible[0] == 0 and visible[1] == 1 and visible[-1] == 0
  assert x[1] < 0 and not y.any()
  np.testing.assert_allclose(5 * x.sum(), 30 - scenes.STEP - 30 + 2.5, atol=1e-5)
  hidden = dataclasses.replace(thing, predicates=('', 'appears', 'stays'))
  labels = lessons.motion_labels(scenes.Scene((hidden,)))
  assert labels['action'][0, blue] == lessons.ACTIONS - 1


def test_attributes_are_those_of_the_picture():
  picture = stills.sample_picture(np.random.default_rng(3))
  table = lessons.attributes(picture)
  assert table[:, 0].sum() == len(picture.objects) > 0
  for (color, shape), center in zip(picture.objects, picture.centers, strict=True):
    present, kind, x, y = table[lessons.COLORS.index(color)]
    assert present == 1 and lessons.SHAPES[int(kind)] == shape
    np.testing.assert_allclose([64 * x, 64 * y], center, rtol=1e-6)
