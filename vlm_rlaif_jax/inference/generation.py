"""Running a model over lists of prompts: grouped by shape, batched, in the callers'
order. Every host calls it with the same and gets all answers; each reads the rows that
its own devices hold.

Prompts are left-padded to a few bucket lengths, so few programs are compiled; answers
depend on the prompt and on the number of the example alone, not on its batch.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import batches, readers
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn.vlm import Vlm

Progress = Callable[[Sequence, int], object]
Around = Callable[[sharding.Program], contextlib.AbstractContextManager]


class Generator:
  """One model (a base, perhaps with an adapter) and everything needed to ask it.

  Args:
    variables: `{'params': {'llama': ...}}`, and `lora` where there is an adapter.
    seen: visual tokens of the videos; `encode` must have been called for them.
    batch: prompts at a time, over all devices.
    progress: wraps the list of batches.
    done: told of every batch: its prompts, their positions, answers of each and the
      mean tokens of an answer.
    around: entered for every batch, with the program that it runs.
  """

  def __init__(
    self,
    model: Vlm,
    variables: dict,
    tokenizer: Tokenizer,
    seen: VisualFeatures,
    buckets: Sequence[int],
    batch: int,
    progress: Progress = lambda items, total: items,
    done: Callable[[int, int, int, float], None] = lambda *counts: None,
    around: Around = contextlib.nullcontext,
  ):
    self.model, self.variables, self.tokenizer = model, variables, tokenizer
    self.seen, self.buckets, self.batch = seen, buckets, batch
    self.progress, self.done, self.around = progress, done, around

  def generate(
    self,
    prompts: Sequence[np.ndarray],
    videos: Sequence[Video],
    numbers: Sequence[int],
    settings: sampler.Sampling,
    key,
    copies: int = 1,
  ) -> list[list[np.ndarray]]:
    """For each prompt, `copies` answers as arrays of ids.

    Args:
      numbers: of the examples; with the key they decide what is drawn.
    """
    mesh = self.seen.mesh
    step = answer_program(self.model, settings, copies, mesh)  # type: ignore
    key = sharding.put(key, sharding.replicated(mesh))
    answers: list[list[np.ndarray]] = [[] for _ in prompts]
    for indices, arrays in self._batches(prompts, videos):
      picked = np.asarray([numbers[max(i, 0)] for i in indices], np.int32)
      picked = sharding.put(picked, sharding.by_batch(mesh))
      with self.around(step):
        out = step(self.variables, arrays, picked, key)
        tokens, mask = sharding.to_host((out.tokens, out.mask))
      self._count(indices, arrays, copies, mask.sum(axis=1).mean())
      for row, index in enumerate(indices):
        if index != batches.BLANK:
          rows = range(row * copies, (row + 1) * copies)
          answers[index] = [tokens[r][mask[r]] for r in rows]
    return answers

  def log_odds(
    self,
    prompts: Sequence[np.ndarray],
    videos: Sequence[Video],
    options: tuple[int, int],
  ) -> np.ndarray:
    """log p(first option) - log p(second) as the next token, `float32[prompts]`."""
    step = next_token_program(self.model, self.seen.mesh)  # type: ignore[arg-type]
    odds = np.zeros(len(prompts), np.float32)
    for indices, arrays in self._batches(prompts, videos):
      with self.around(step):
        logits = sharding.to_host(step(self.variables, arrays))
      self._count(indices, arrays, 0, 0.0)
      for row, index in enumerate(indices):
        if index != batches.BLANK:
          odds[index] = logits[row, options[0]] - logits[row, options[1]]
    return odds

  def _count(self, indices, arrays, answers: int, tokens: float) -> None:
    positions = arrays['ids'].shape[1] + arrays['visual'].shape[1] - 1
    real = int(np.sum(indices != batches.BLANK))
    self.done(real, positions, answers, float(tokens))

  def _batches(self, prompts, videos):
    shapes = []
    for number, (prompt, item) in enumerate(zip(prompts, videos, strict=True)):
      try:
        length = batches.bucket(len(prompt), self.buckets)
      except ValueError as error:
        raise DataError(f'prompt {number}: {error}') from None
      shapes.append((item.frames(self.seen.data.frames), length))
    steps = batches.in_order(shapes, self.batch)

    def build(step: batches.Step):
      mine = step.indices[sharding.rows_of_this_host(self.batch, self.seen.mesh)]
      rows = [step.indices[0] if i == batches.BLANK else i for i in mine]
      arrays = readers.collate_prompts([prompts[i] for i in rows], step.shape[1])  # type: ignore[index]
      arrays['visual'] = np.stack([self.seen.read('tokens', videos[i]) for i in rows])
      return step.indices, sharding.put_batch(arrays, self.seen.mesh)

    yield from self.progress(batches.prefetch(build, steps), len(steps))  # type: ignore


@functools.lru_cache(maxsize=32)
def answer_program(model: Vlm, settings: sampler.Sampling, copies: int, mesh):
  """(variables, arrays of prompts, numbers of examples, key) -> answers."""

  def step(variables, arrays, numbers, key):
    keys = sampler.example_keys(key, numbers)
    if copies > 1:
      keys = jax.vmap(
        lambda k: jax.vmap(lambda c: jax.random.fold_in(k, c))(jnp.arange(copies))
      )(keys).reshape(-1)
    return sampler.sample(
      model, variables, arrays['ids'], arrays['valid'], arrays['visual'], keys, settings
    )

  rows = sharding.by_batch(mesh)
  return sharding.Program('answer', step, mesh, (None, rows, rows, None), rows)


@functools.lru_cache(maxsize=32)
def next_token_program(model: Vlm, mesh):
  """(variables, arrays of prompts) -> logits of the next token."""

  def step(variables, arrays):
    return sampler.next_logits(
      model, variables, arrays['ids'], arrays['valid'], arrays['visual']
    )

  rows = sharding.by_batch(mesh)
  return sharding.Program('next_token', step, mesh, (None, rows), rows)
