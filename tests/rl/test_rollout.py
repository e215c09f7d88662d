"""Responses of a policy, whatever the algorithm."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl.learner import ROWS, algorithm, rewards, rolled
from vlm_rlaif_jax.settings.constants import PAD


def test_unknown_tokens_are_suppressed_or_removed():
  """Register B36."""
  assert algorithm('masked').sampling.suppress == (0,)
  assert algorithm('parity').sampling.suppress == ()


def test_a_tokenizer_without_an_unknown_token_loses_none():
  """Id 0 is "!" in the tokenizers of Llama 3 and Qwen."""
  learner = dataclasses.replace(algorithm('masked'), unk=PAD)
  assert learner.sampling.suppress == ()
  assert learner.sampling.pad == PAD


@pytest.mark.slow
def test_a_row_may_have_a_reward_prompt_of_its_own(networks, frozen, prompts):
  """Short ones have pads before them, which change nothing."""
  algo = algorithm()
  _, rollout, _ = rolled(algo, networks, frozen, prompts)
  suffixes = [(11, 12), (9, 11, 12)]
  alone = []
  for suffix in suffixes:
    learner = dataclasses.replace(algo, suffix=suffix)
    alone.append(rewards(learner, networks, frozen, prompts, rollout.tokens))
  padded = jnp.asarray([[PAD, 11, 12], [9, 11, 12]] * (ROWS // 2), jnp.int32)
  own = dataclasses.replace(prompts, reward_suffix=padded)
  found = rewards(algo, networks, frozen, own, rollout.tokens)
  expected = jnp.where(jnp.arange(ROWS) % 2 == 0, *alone)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  assert np.abs(alone[0] - alone[1]).max() > 1e-3


@pytest.mark.slow
def test_a_response_may_end_in_another_end(networks, frozen, prompts):
  """It counts as ended, and the reward model reads the end that it knows."""
  plain = algorithm('masked', stop_at='eos')
  _, whole, _ = rolled(plain, networks, frozen, prompts)
  other = int(whole.tokens[0, 1])
  learner = dataclasses.replace(plain, other_ends=(other,))
  _, rollout, _ = rolled(learner, networks, frozen, prompts)
  first = np.asarray(rollout.tokens[0])
  assert first[:2].tolist() == np.asarray(whole.tokens[0, :2]).tolist()
  assert set(first[2:].tolist()) == {PAD} and bool(rollout.has_eos[0])
  ended = jnp.where(rollout.tokens == other, learner.eos, rollout.tokens)
  np.testing.assert_allclose(
    rewards(learner, networks, frozen, prompts, rollout.tokens),
    rewards(plain, networks, frozen, prompts, ended),
    atol=1e-6,
  )
