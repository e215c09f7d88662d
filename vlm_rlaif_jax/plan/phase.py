"""One compiled program of a stage, and the work in it."""

import dataclasses
from typing import Any

import jax

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.settings.stage import Run

EOS = 2


CHARS_PER_TOKEN = 4  # of the reward prompt, whose tokenizer may not be here


VIDEOS = 16  # encoded at a time


@dataclasses.dataclass(frozen=True)
class Phase:
  """A program and what it is called with.

  Attributes:
    arguments: shapes that carry a layout.
    resident: what lies on the devices during the phase, read by it or not.
    times: how often it runs in one iteration (PPO), optimizer step or batch of
      questions.
    trips: of its loop that ends with the last answer.
    knob: the setting that its temporaries follow, and its value; '' if none does.
  """

  name: str
  program: sharding.Program
  arguments: tuple
  resident: Any
  work: tuple[Work, ...]
  times: float = 1.0
  trips: int = 1
  knob: tuple[str, int] = ('', 0)


def shape_of(dtype, *shape) -> Any:  # stands for an array
  return jax.ShapeDtypeStruct(shape, dtype)


def visual_tokens(settings: Run) -> int:
  return settings.data.frames + settings.model.vision.patches


def weight_bytes(described, mesh) -> float:
  """What one device reads to use all weights once: gathered over fsdp, not tensor."""
  leaves = jax.tree.leaves(described)
  return sum(
    sharding.bytes_per_device(leaf)
    * (mesh.shape['fsdp'] if 'fsdp' in str(leaf.sharding.spec) else 1)
    for leaf in leaves
  )
