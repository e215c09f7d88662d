"""One compiled program of a stage, and the work in it."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.nn import cache
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.stage import Run

EOS = 2  # stands for the tokenizer's, which may not be here
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
    loop_iterations: of its loop that ends with the last answer.
    tuning_flag: the setting that its temporaries follow, and its value; '' if none
      does.
    filled: share of the slots of its cache that a decode step needs, on average.
    note: what a plan says beside its table; '' if nothing.
  """

  name: str
  program: sharding.Program
  arguments: tuple
  resident: Any
  work: tuple[Work, ...]
  times: float = 1.0
  loop_iterations: int = 1
  tuning_flag: tuple[str, int] = ('', 0)
  filled: float = 1.0
  note: str = ''


def shape_of(dtype: Any, *shape: int) -> Any:
  """Returns what stands for an array."""
  return jax.ShapeDtypeStruct(shape, dtype)


def filled_share(prompt: int, limit: int) -> float:
  """Returns the mean share of a row-major cache that holds a token while it decodes.

  Args:
    prompt: positions before the first token; limit: tokens of the longest answer.
  """
  return (prompt + limit / 2) / cache.slots(prompt + limit)


def copies(tree: Any, count: int) -> list[Any]:
  """Returns shapes of further arrays like those of a tree."""
  return [
    jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree
    )
    for _ in range(count)
  ]


def visual_tokens(settings: Run, cfg: VlmConfig) -> int:
  """Returns the visual tokens of a video: one a frame, and one a patch."""
  return settings.data.frames + cfg.vision.patches


def weight_bytes(weights: Any, mesh: Mesh) -> float:
  """Returns the bytes that one device reads to use all weights once.

  Weights are gathered over the axis `fsdp` and not over `tensor`. Of the table of
  embeddings a few rows are read, which do not count.
  """
  leaves = jax.tree_util.tree_flatten_with_path(weights)[0]
  return sum(
    sharding.bytes_per_device(leaf)
    * (mesh.shape['fsdp'] if 'fsdp' in str(leaf.sharding.spec) else 1)
    for path, leaf in leaves
    if "'tokens'" not in jax.tree_util.keystr(path)
  )
