"""The error of checkpoints that cannot be read, and how its messages list names."""

from collections.abc import Iterable

from vlm_rlaif_jax.settings.build import UserError


class ConvertError(UserError):
  """A checkpoint that is damaged, incomplete, or of another kind or size."""


def join_names(names: Iterable[str], limit: int = 6) -> str:
  """Returns 'a, b, c and 4 more'."""
  names = list(names)
  more = f' and {len(names) - limit} more' if len(names) > limit else ''
  return ', '.join(names[:limit]) + more
