"""The judge: the tuned model says which of two answers is better, and by what margin.

Of more answers it judges pairs; what they have in common is asked once.

options   log p(A) - log p(B) of a prompt with both answers, averaged over both
          orders of the answers
claims    sum over the statements of an answer of log p(Yes) - log p(No); the
          margin is the difference of the sums
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data import batches, examples, prompts, readers
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.labeling.answers import Answer
from vlm_rlaif_jax.labeling.narrative import videos_of
from vlm_rlaif_jax.objectives import preference
from vlm_rlaif_jax.settings.label import LabelConfig

Texts = tuple[list[str], ...]  # prompts about one question: an order or an answer each
Verdict = dict[str, Any]


class Judge:
  """Judges pairs of answers by the next token after a prompt."""

  def __init__(self, generator: Generator, settings: LabelConfig):
    self.generator, self.settings = generator, settings
    self.tokenizer = generator.tokenizer
    self.options = prompts.load(settings.options_prompt)
    self.claims = prompts.load(settings.claims_prompt)

  def verdicts(
    self,
    items: Sequence[Example],
    answers: Sequence[Sequence[Answer]],
    narratives: Sequence[str],
  ) -> list[Verdict]:
    """Judges the two answers to each question.

    Args:
      narratives: of the videos; '' for a judgment without context.

    Returns:
      for each question, its `margin` (positive: the first answer is better) with what
      it is made of, or `unjudged`, the reason why a prompt fits no bucket.
    """
    by_options = self.settings.judge == 'options'
    texts_of = self._option_texts if by_options else self._claim_texts
    texts = [texts_of(*one) for one in zip(items, answers, narratives, strict=True)]

    # Prompts that fit. That they do was checked before the first (`lengths`), by the
    # limits on what the model writes; a text can have more tokens than it was written
    # with, and then its question is left out, since a run of days must not stop here.
    fitting: list[int] = []
    verdicts: list[Verdict] = [{} for _ in items]
    for number, (item, prompt) in enumerate(zip(items, texts, strict=True)):
      try:
        self._check_room(item, prompt)
        fitting.append(number)
      except examples.DataError as error:
        verdicts[number] = {'unjudged': str(error)}

    # Judgments.
    judge = self._by_options if by_options else self._by_claims
    judgments = judge([items[i] for i in fitting], [texts[i] for i in fitting])
    for number, verdict in zip(fitting, judgments, strict=True):
      verdicts[number] = verdict
    return verdicts

  def _check_room(self, item: Example, texts: Texts) -> None:
    """Raises DataError if a prompt fits no bucket."""
    for text in (text for side in texts for text in side):
      try:
        ids = readers.encode_question(self.tokenizer, item, text)
        batches.bucket(len(ids), self.generator.buckets)
      except ValueError as error:
        raise examples.DataError(f"{item.where}: the judge's prompt: {error}") from None

  def _log_odds(
    self, items: Sequence[Example], texts: Sequence[str], ids: tuple[int, int]
  ) -> np.ndarray:
    """Returns log p(first id) - log p(second id) after each prompt, `float32[N]`.

    A prompt that is repeated is asked once: pairs of several answers share claims.
    """
    encoded = [
      readers.encode_question(self.tokenizer, item, text)
      for item, text in zip(items, texts, strict=True)
    ]
    videos = videos_of(items)
    places: dict[tuple[Video, bytes], int] = {}  # of distinct prompts, in their order
    rows = [
      places.setdefault((video, prompt.tobytes()), len(places))
      for video, prompt in zip(videos, encoded, strict=True)
    ]
    _, first = np.unique(rows, return_index=True)
    odds = self.generator.log_odds(
      [encoded[i] for i in first], [videos[i] for i in first], ids
    )
    return odds[rows]

  # -------------------------------------------------------------- both answers at once

  def _option_texts(
    self, item: Example, answers: Sequence[Answer], story: str
  ) -> Texts:
    """Returns the prompt with the answers in order, and swapped if settings say so."""
    orders = ((0, 1), (1, 0))[: 2 if self.settings.both_orders else 1]
    return tuple(
      [
        prompts.fill(
          self.options,
          narrative=story,
          question=item.question,
          a=answers[first].text,
          b=answers[second].text,
        )
      ]
      for first, second in orders
    )

  def _by_options(
    self, items: Sequence[Example], texts: Sequence[Texts]
  ) -> list[Verdict]:
    """Returns log p(A) - log p(B), with the answers in either order."""
    ids = (self.tokenizer.option('A'), self.tokenizer.option('B'))
    forward = self._log_odds(items, [sides[0][0] for sides in texts], ids)
    if not self.settings.both_orders:
      return [{'forward': float(f), 'margin': float(f)} for f in forward]
    swapped = self._log_odds(items, [sides[1][0] for sides in texts], ids)
    margin, agree = preference.order_margin(forward, swapped)
    return [
      {
        'forward': float(f),
        'swapped': float(s),
        'margin': float(m),
        'orders_agree': bool(a),
      }
      for f, s, m, a in zip(forward, swapped, margin, agree, strict=True)
    ]

  # ------------------------------------------------------------ one claim after another

  def _claim_texts(self, item: Example, answers: Sequence[Answer], story: str) -> Texts:
    """Returns the prompts of the statements of either answer."""
    return tuple(
      [
        prompts.fill(
          self.claims, narrative=story, question=item.question, claim=beginning
        )
        for beginning in prompts.statements(answer.text, answer.stopped)
      ]
      for answer in answers
    )

  def _by_claims(
    self, items: Sequence[Example], texts: Sequence[Texts]
  ) -> list[Verdict]:
    """Returns the score of both answers by their statements, and their margin.

    A statement counts log p(Yes) - log p(No), and an answer its sum or its mean.
    """
    ids = (self.tokenizer.option('Yes'), self.tokenizer.option('No'))
    claims = [
      (number, side, text)
      for number, sides in enumerate(texts)
      for side, statements in enumerate(sides)
      for text in statements
    ]
    odds = self._log_odds(
      [items[number] for number, _, _ in claims], [text for *_, text in claims], ids
    )
    scores, counts = np.zeros((2, len(items), 2))
    for (number, side, _), value in zip(claims, odds, strict=True):
      scores[number, side] += value
      counts[number, side] += 1
    if self.settings.claims_score == 'mean':
      scores = scores / np.maximum(counts, 1)
    return [{'scores': [float(a), float(b)], 'margin': float(a - b)} for a, b in scores]
