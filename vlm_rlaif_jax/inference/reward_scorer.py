"""Scores given answers with a reward model, in batches of few shapes.

As with generation, every host calls with the same arguments and gets all results, and
reads only the rows that its devices compute.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import batches, pairs, prompts
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference import file_contents
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.inference.generation import Progress, batches_of
from vlm_rlaif_jax.nn import vlm
from vlm_rlaif_jax.nn.heads import ScalarHead
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.build import UserError


class RewardScorer:
  """Scores with one reward model.

  Args:
    variables: `{'params': {'llama': ...}, 'lora': ...}`.
    head: maps the last hidden state to the reward.
    suffix: `int32[S]`, ids of the turn that it reads after an answer.
    features: visual tokens of the videos, by its own base.
    buckets: of `padded_length`.
    batch: answers at a time, over all devices.
    progress: wraps the batches; the second argument is how many.
  """

  def __init__(
    self,
    model: Vlm,
    variables: dict,
    head: ScalarHead,
    tokenizer: Tokenizer,
    suffix: np.ndarray,
    features: VisualFeatures,
    buckets: Sequence[int],
    batch: int,
    progress: Progress = lambda steps, total: steps,
  ):
    self.model, self.variables, self.head = model, variables, head
    self.tokenizer, self.suffix, self.features = tokenizer, suffix, features
    self.batch, self.progress = batch, progress
    self.buckets = buckets

  def contents(self, item: Video) -> str:
    """Returns what stands for the files that scores about a video depend on."""
    return file_contents.digest(self.features, self.tokenizer, item)

  def encode(self, question: str, answer: str, closed: bool) -> np.ndarray:
    """Returns an answered question with the reward prompt, `int32[T]`.

    Args:
      closed: whether the answer ends by itself, and not at the limit of its length.
    """
    turns = ((question, prompts.unmarked(answer)),)
    return pairs.scored_ids(self.tokenizer, turns, self.suffix, closed)

  def length(self, ids: np.ndarray, item: Video) -> int:
    """Returns the length that ids are padded to; raises ValueError if none fits."""
    cfg = self.model.cfg
    visual = item.frames(self.features.data.frames) + cfg.vision.patches
    return padded_length(len(ids), self.buckets, cfg.llama.max_positions - visual)

  def score(
    self,
    sequences: Sequence[np.ndarray],
    videos: Sequence[Video],
    on_score: Callable[[int, float], None] = lambda index, score: None,
  ) -> np.ndarray:
    """Returns the reward of each sequence of `encode`, `float32[sequences]`.

    Args:
      on_score: called with the index and the reward of each, once a batch has them.

    Raises:
      UserError: a reward is no number.
    """
    program = score_program(self.model, self.features.mesh)  # type: ignore[arg-type]
    rewards = np.zeros(len(sequences), np.float32)
    frames = self.features.data.frames
    shapes = [
      (item.frames(frames), self.length(ids, item))
      for ids, item in zip(sequences, videos, strict=True)
    ]
    for indices, arrays in batches_of(
      self.features, sequences, videos, shapes, self.batch, self.progress
    ):
      out = sharding.to_host(program(self.variables, self.head, arrays))
      for row, index in enumerate(indices):
        if index == batches.BLANK:
          continue
        if not np.isfinite(out[row]):
          raise UserError(
            'a reward is NaN or infinite; the weights of the reward model are damaged, '
            'or too large for config.model.dtype'
          )
        rewards[index] = out[row]
        on_score(int(index), float(out[row]))
    return rewards


def padded_length(length: int, buckets: Sequence[int], room: int) -> int:
  """Returns the length that a question with its answer is padded to.

  Args:
    buckets: lengths of prompts, ascending; answers go to twice and four times the last
      one, as far as there are positions.
    room: positions that are left beside the visual tokens.

  Raises:
    ValueError: none fits.
  """
  longest = buckets[-1]
  sizes = (*buckets, 2 * longest, 4 * longest)
  return batches.bucket(length, [min(size, room) for size in sizes])


@functools.lru_cache(maxsize=8)
def score_program(model: Vlm, mesh: jax.sharding.Mesh) -> sharding.Program:
  """Returns the program from (variables, head, arrays) to rewards, `float32[B]`."""

  def step(variables: dict, head: ScalarHead, arrays: dict) -> jax.Array:
    visual = arrays['visual'].astype(model.cfg.dtype)
    hidden, _, _ = vlm.hidden(model, variables, arrays['ids'], arrays['valid'], visual)
    return head(hidden[:, -1])

  rows = sharding.by_batch(mesh)
  return sharding.Program('reward', step, mesh, (None, None, rows), rows)
