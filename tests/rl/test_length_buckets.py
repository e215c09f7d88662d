"""Short responses computed as such: the same scores, losses and gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl.learner import (
  ROWS,
  R,
  algorithm,
  rollout_of,
  score,
  state,
  up_to,
  update,
)
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.rl import length_buckets
from vlm_rlaif_jax.rl.rollout import repeat_checksum
from vlm_rlaif_jax.settings.constants import PAD

LENGTHS = [1, 6, 2, 2, 3, 1, 5, 2]
SIZES = {'micro_batch': 2, 'step_batch': 8}


@pytest.fixture(scope='module')
def rollout(prompts):
  """Responses of very different length_buckets."""
  tokens = np.random.default_rng(0).integers(3, 60, (ROWS, R))
  return rollout_of(prompts, tokens, up_to(LENGTHS))


def test_lengths_reach_to_the_last_real_token():
  mask = jnp.asarray([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
  np.testing.assert_array_equal(length_buckets.real_lengths(mask), [3, 0, 4])


def test_rows_of_a_step_come_by_length_and_stay_in_their_column():
  mask = np.arange(6) < np.asarray([[5, 4, 2, 3], [1, 6, 3, 4]])[..., None]
  chosen = jnp.asarray([[0, 1], [2, 0], [3, 2]])  # of 4 rows in either block
  ordered = length_buckets.by_length(jnp.asarray(mask), chosen)
  np.testing.assert_array_equal(ordered, [[2, 0], [3, 2], [0, 1]])


@pytest.mark.parametrize(
  'longest, columns', [(1, 2), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)]
)
@pytest.mark.slow
def test_the_shortest_bucket_that_holds_all_tokens(rollout, longest, columns):
  mask = jnp.broadcast_to(jnp.arange(R) < longest, (ROWS, R))
  part = dataclasses.replace(rollout, mask=mask)
  used = length_buckets.at_length(
    lambda rows: jnp.int32(rows.tokens.shape[1]), (2, 4), part
  )
  assert int(used) == columns


@pytest.mark.parametrize('micro, columns', [(2, {2, 4, 6}), (4, {2, 6}), (8, {6})])
def test_rows_come_back_in_their_order(rollout, micro, columns):
  """However many there are in a micro-batch; 0 fills up what was cut off."""

  def numbers(part):  # of a row, and of its tokens
    number = part.prompts.example_id
    return jnp.full(number.shape, part.tokens.shape[1]), part.mask * number[:, None]

  rows = repeat_checksum(rollout)
  used, found = length_buckets.in_micro_batches(numbers, rows, micro, (2, 4))
  expected = np.asarray(rollout.mask) * np.arange(ROWS)[:, None]
  np.testing.assert_array_equal(found, expected)
  assert (np.asarray(used) >= LENGTHS).all() and {*used.tolist()} == columns


@pytest.mark.slow
def test_scores_are_those_of_whole_rows(networks, frozen, rollout):
  """In pairs of rows, some of which are cut to 2, some to 4, and some not at all."""
  algo, short = algorithm(**SIZES), algorithm(**SIZES, length_buckets=(2, 4))
  arguments = networks, state(algo).trainable, frozen, rollout
  whole, cut = score(algo, *arguments), score(short, *arguments)
  mask = np.asarray(rollout.mask)
  for name in ('logprobs', 'reference', 'values', 'entropy'):
    expected, got = (np.where(mask, getattr(s, name), 0) for s in (whole, cut))
    np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=name)
  np.testing.assert_allclose(cut.reward, whole.reward, atol=1e-5)
  first, second = (
    one.estimate(rollout, scores, jnp.zeros(ROWS))[0]
    for one, scores in ((algo, whole), (short, cut))
  )
  for name in ('advantages', 'returns'):
    expected, got = (np.where(mask, getattr(e, name), 0) for e in (first, second))
    np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_an_update_is_that_of_whole_rows(networks, frozen, rollout):
  """In pairs of rows, some of which are cut."""
  algo, short = algorithm(**SIZES), algorithm(**SIZES, length_buckets=(2,))
  current = state(algo)
  scores = score(algo, networks, current.trainable, frozen, rollout)
  estimates, _ = algo.estimate(rollout, scores, jnp.zeros(ROWS))
  (whole, expected), (cut, got) = (
    update(one, current, networks, rollout, scores, estimates, 1e-3)
    for one in (algo, short)
  )
  for name in expected.keys() - {'adapter'}:
    np.testing.assert_allclose(got[name], expected[name], atol=1e-5, err_msg=name)
  flat = trees.flatten(whole.trainable)
  for name, leaf in trees.flatten(cut.trainable).items():
    np.testing.assert_allclose(leaf, flat[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_gradients_are_those_of_whole_rows(networks, frozen, rollout):
  """Of a micro-batch whose longest response has 3 of 6 tokens."""
  mask = rollout.mask & (jnp.arange(R)[None] < 3)
  part = dataclasses.replace(
    rollout, mask=mask, tokens=jnp.where(mask, rollout.tokens, PAD)
  )
  algo = algorithm(**SIZES)
  trainable = state(algo).trainable
  scores = score(algo, networks, trainable, frozen, part)
  estimates, _ = algo.estimate(part, scores, jnp.zeros(ROWS))

  @functools.partial(jax.jit, static_argnums=0)
  def gradient(buckets, trainable, networks, *rows):
    of_rows = functools.partial(algo.gradient, trainable, networks, radius=0.2)
    return length_buckets.at_length(of_rows, buckets, *rows)

  arguments = trainable, networks, repeat_checksum(part), scores, estimates
  whole, losses = gradient((), *arguments)
  cut, losses_cut = gradient((4,), *arguments)
  largest = {}
  for name, leaf in trees.flatten(whole).items():
    largest[name] = np.abs(leaf).max()
    found = trees.flatten(cut)[name]
    np.testing.assert_allclose(found, leaf, atol=1e-5, err_msg=name)
  assert max(largest.values()) > 1e-3  # it is no gradient of nothing
  for name in ('loss/policy', 'loss/value'):
    np.testing.assert_allclose(losses_cut[name], losses[name], atol=1e-5)


@pytest.mark.parametrize(
  'buckets, message',
  [
    ((4, 2), 'must rise'),
    ((0,), 'must rise'),
    ((R,), 'must rise between 0 and response_tokens 6'),
  ],
)
def test_buckets_that_are_none_are_refused(buckets, message):
  with pytest.raises(ValueError, match=message):
    algorithm(length_buckets=buckets)


def test_buckets_need_masked_pads():
  with pytest.raises(ValueError, match='length_buckets: need mask_pads'):
    algorithm('parity', length_buckets=(2,))
