"""Responses of a policy, whatever the algorithm."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl.learner import algorithm, rolled
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
def test_a_response_may_end_in_another_end(networks, frozen, prompts):
  """It counts as ended, and the reward model reads the end that it knows."""
  plain = algorithm('masked', stop_at='eos')
  _, whole, _ = rolled(plain, networks, frozen, prompts)
  other = int(whole.tokens[0, 1])
  learner = dataclasses.replace(plain, other_ends=(other,))
  _, rollout, _ = rolled(learner, networks, frozen, prompts)
  first = np.asarray(rollout.tokens[0])
  assert first[:2].tolist() == np.asarray(whole.tokens[0, :2]).tolist()
  assert set(first[2:].tolist()) == {PAD} and bool(rollout.stopped[0])
  ended = jnp.where(rollout.tokens == other, learner.eos, rollout.tokens)
  np.testing.assert_allclose(
    learner.rewards(networks, frozen, prompts, rollout.tokens),
    plain.rewards(networks, frozen, prompts, ended),
    atol=1e-6,
  )
