"""Batched generation: answers and next-token odds for lists of prompts.

Prompts are grouped by shape and left-padded to a few bucket lengths, so that few
programs are compiled. Results come in the order of the prompts; an answer depends on
its prompt and the example id only, not on its batch. Every host calls with the same
arguments and gets all results; each host reads only the rows that its devices compute.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import batches, readers
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference import decoding, file_contents, sampler
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.build import UserError

Progress = Callable[[Any, int], Iterable]
BatchContext = Callable[[sharding.Program], contextlib.AbstractContextManager]


class GenerationError(UserError):
  """A model whose outputs are no numbers."""


class Generator:
  """Generates with one model, a base with or without an adapter.

  Answers stop at whatever the tokenizer has as an end, and end in its `eos` then, which
  is the one that everything else reads.

  Args:
    variables: `{'params': {'llama': ...}}`, and `lora` if there is an adapter.
    features: visual tokens of the videos, encoded before (`VisualFeatures.encode`).
    buckets: lengths that prompts are padded to, ascending.
    batch: prompts at a time, over all devices.
    progress: wraps the batches; the second argument is how many.
    on_batch: called after every batch with its prompts, the positions of each, the
      answers of each and the mean tokens of an answer.
    batch_context: returns a context manager that is entered around every batch, given
      the program that the batch runs.
  """

  def __init__(
    self,
    model: Vlm,
    variables: dict,
    tokenizer: Tokenizer,
    features: VisualFeatures,
    buckets: Sequence[int],
    batch: int,
    progress: Progress = lambda steps, total: steps,
    on_batch: Callable[[int, int, int, float], None] = lambda *counts: None,
    batch_context: BatchContext = contextlib.nullcontext,
  ):
    self.model, self.variables, self.tokenizer = model, variables, tokenizer
    self.features, self.buckets, self.batch = features, buckets, batch
    self.progress, self.on_batch, self.batch_context = progress, on_batch, batch_context

  def contents(self, item: Video) -> str:
    """Returns what stands for the files that outputs about a video depend on."""
    return file_contents.digest(self.features, self.tokenizer, item)

  def generate(
    self,
    prompts: Sequence[np.ndarray],
    videos: Sequence[Video],
    example_ids: Sequence[int],
    settings: sampler.Sampling,
    key: jax.Array,
    copies: int = 1,
    on_answers: Callable[[int, list[np.ndarray]], None] = lambda index, ids: None,
  ) -> list[list[np.ndarray]]:
    """Samples `copies` answers for each prompt.

    Args:
      prompts: token ids `int32[T]` of each.
      videos: the video that each prompt is about.
      example_ids: with the key, they determine what is sampled.
      on_answers: called with the index of a prompt and its answers, once a batch has
        them; the answers of the last batches may still be to come.

    Returns:
      for each prompt the ids of its answers, without padding.
    """
    self._check_room(prompts, videos, settings.max_tokens)
    mesh, others = self.features.mesh, self.tokenizer.other_ends
    settings = dataclasses.replace(settings, other_ends=others)
    step = answer_program(self.model, settings, copies, mesh)  # type: ignore
    key = sharding.put(key, sharding.replicated(mesh))
    answers: list[list[np.ndarray]] = [[] for _ in prompts]
    for indices, arrays in self._batches(prompts, videos):
      ids = np.asarray([example_ids[max(i, 0)] for i in indices], np.int32)
      ids = sharding.put(ids, sharding.by_batch(mesh))
      with self.batch_context(step):
        out = step(self.variables, arrays, ids, key)
        tokens, mask, logprobs = sharding.to_host((out.tokens, out.mask, out.logprobs))
      check_finite(logprobs[mask], 'log-probabilities of answers')
      real = np.repeat(indices != batches.BLANK, copies)
      self._count(indices, arrays, copies, mask[real].sum(axis=1).mean())
      for row, index in enumerate(indices):
        if index != batches.BLANK:
          rows = range(row * copies, (row + 1) * copies)
          answers[index] = [self._ended(tokens[r][mask[r]]) for r in rows]
          on_answers(int(index), answers[index])
    return answers

  def _check_room(
    self, prompts: Sequence[np.ndarray], videos: Sequence[Video], answer: int
  ) -> None:
    """Raises DataError for answers that could go past the last position."""
    cfg, sampled = self.model.cfg, self.features.data.frames
    length = max(map(len, prompts), default=0)
    padded = next((size for size in self.buckets if length <= size), length)
    frames = max((item.frames(sampled) for item in videos), default=0)
    visual, room = frames + cfg.vision.patches, cfg.llama.max_positions
    if visual + padded + answer > room:
      raise DataError(
        f'{visual} visual tokens, a prompt in a bucket of {padded} and {answer} of an '
        f'answer exceed model.llama.max_positions {room}'
      )

  def _ended(self, ids: np.ndarray) -> np.ndarray:
    """Returns an answer with the tokenizer's `eos` in place of another end."""
    others = self.tokenizer.other_ends
    return np.where(np.isin(ids, others), self.tokenizer.eos, ids) if others else ids

  def log_odds(
    self,
    prompts: Sequence[np.ndarray],
    videos: Sequence[Video],
    options: tuple[int, int],
  ) -> np.ndarray:
    """Returns the log-odds of two token ids as the next token.

    Returns:
      log p(first option) - log p(second option), `float32[prompts]`.
    """
    step = next_token_program(self.model, self.features.mesh)  # type: ignore[arg-type]
    odds = np.zeros(len(prompts), np.float32)
    for indices, arrays in self._batches(prompts, videos):
      with self.batch_context(step):
        logits = sharding.to_host(step(self.variables, arrays))
      self._count(indices, arrays, 0, 0.0)
      for row, index in enumerate(indices):
        if index != batches.BLANK:
          odds[index] = logits[row, options[0]] - logits[row, options[1]]
    check_finite(odds, 'log-odds of a judgment')
    return odds

  def option_logprobs(
    self,
    prompts: Sequence[np.ndarray],
    videos: Sequence[Video],
    options: Sequence[Sequence[int]],
  ) -> list[np.ndarray]:
    """Returns the log-probability of each option of a prompt as its next token.

    Args:
      options: token ids of the options of each prompt.

    Returns:
      for each prompt `float32[options]`, normalized over the whole vocabulary.
    """
    step = next_token_program(self.model, self.features.mesh)  # type: ignore[arg-type]
    result = [np.zeros(0, np.float32) for _ in prompts]
    for indices, arrays in self._batches(prompts, videos):
      with self.batch_context(step):
        logits = sharding.to_host(step(self.variables, arrays))
      self._count(indices, arrays, 0, 0.0)
      logits = np.asarray(logits, np.float32)
      logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
      for row, index in enumerate(indices):
        if index != batches.BLANK:
          result[index] = logprobs[row, list(options[index])]
          check_finite(result[index], 'log-probabilities of options')
    return result

  def _count(
    self, indices: np.ndarray, arrays: dict, answers: int, tokens: float
  ) -> None:
    """Reports a batch to `on_batch`."""
    positions = arrays['ids'].shape[1] + arrays['visual'].shape[1] - 1
    real = int(np.sum(indices != batches.BLANK))
    self.on_batch(real, positions, answers, float(tokens))

  def _batches(
    self, prompts: Sequence[np.ndarray], videos: Sequence[Video]
  ) -> Iterator[tuple[np.ndarray, dict[str, jax.Array]]]:
    """Yields the prompt indices of each batch, BLANK in filler rows, and its arrays."""
    shapes = []
    for number, (prompt, item) in enumerate(zip(prompts, videos, strict=True)):
      try:
        length = batches.bucket(len(prompt), self.buckets)
      except ValueError as error:
        raise DataError(f'prompt {number}: {error}') from None
      shapes.append((item.frames(self.features.data.frames), length))
    yield from batches_of(
      self.features, prompts, videos, shapes, self.batch, self.progress
    )


def batches_of(
  features: VisualFeatures,
  sequences: Sequence[np.ndarray],
  videos: Sequence[Video],
  shapes: Sequence[tuple[int, int]],
  size: int,
  progress: Progress,
) -> Iterator[tuple[np.ndarray, dict[str, jax.Array]]]:
  """Yields the indices of each batch, BLANK in filler rows, and its arrays.

  Args:
    features: visual tokens of the videos.
    sequences: token ids `int32[T]` of each.
    shapes: frames, and the length that the ids of each are padded to.
    size: rows of a batch, over all devices; each host reads its own.
    progress: wraps the batches; the second argument is how many.
  """
  steps, mesh = batches.in_order(shapes, size), features.mesh

  def build(step: batches.Step):
    own = step.indices[sharding.rows_of_this_host(size, mesh)]
    rows = [step.indices[0] if i == batches.BLANK else i for i in own]
    arrays = readers.collate_prompts([sequences[i] for i in rows], step.shape[1])  # type: ignore[index]
    visual = [features.read('tokens', videos[i]) for i in rows]
    arrays['visual'] = np.stack(visual)
    return step.indices, sharding.put_batch(arrays, mesh)

  yield from progress(batches.prefetch(build, steps), len(steps))  # type: ignore


def check_finite(values: np.ndarray, name: str) -> None:
  """Raises GenerationError for NaN, by which every comparison would be false."""
  if not np.isfinite(values).all():
    raise GenerationError(
      f'{name} are NaN or infinite in {np.sum(~np.isfinite(values))} of {values.size} '
      'cases; the weights are damaged, or too large for config.model.dtype'
    )


@functools.lru_cache(maxsize=32)
def answer_program(
  model: Vlm, settings: sampler.Sampling, copies: int, mesh: jax.sharding.Mesh
) -> sharding.Program:
  """Returns the program that samples answers.

  It maps (variables, arrays of prompts, example ids, key) to `sampler.Answers`.
  """

  def step(
    variables: dict, arrays: dict, example_ids: jax.Array, key: jax.Array
  ) -> sampler.Answers:
    keys = sampler.example_keys(key, example_ids)
    if copies > 1:
      keys = jax.vmap(
        lambda k: jax.vmap(lambda c: jax.random.fold_in(k, c))(jnp.arange(copies))
      )(keys).reshape(-1)
    return decoding.answer(
      model, variables, arrays['ids'], arrays['valid'], arrays['visual'], keys, settings
    )

  rows = sharding.by_batch(mesh)
  return sharding.Program('answer', step, mesh, (None, rows, rows, None), rows)


@functools.lru_cache(maxsize=32)
def next_token_program(model: Vlm, mesh: jax.sharding.Mesh) -> sharding.Program:
  """Returns the program from (variables, arrays of prompts) to next-token logits."""

  def step(variables: dict, arrays: dict) -> jax.Array:
    return sampler.next_logits(
      model, variables, arrays['ids'], arrays['valid'], arrays['visual']
    )

  rows = sharding.by_batch(mesh)
  return sharding.Program('next_token', step, mesh, (None, rows), rows)
