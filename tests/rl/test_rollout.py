"""Responses of a policy, whatever the algorithm."""

import dataclasses

from tests.rl.learner import algorithm
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
