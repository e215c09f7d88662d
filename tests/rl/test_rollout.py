"""Responses of a policy, whatever the algorithm."""

from tests.rl.learner import algorithm


def test_unknown_tokens_are_suppressed_or_removed():
  """Register B36."""
  assert algorithm('masked').sampling.suppress == (0,)
  assert algorithm('parity').sampling.suppress == ()
