"""The judge: which of two answers is better."""

import re

import jax
import numpy as np

from vlm_rlaif_jax.data import batches, examples, prompts, readers, tokens
from vlm_rlaif_jax.data.examples import Example, Skipped
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.labeling.narrative import answer_sampling, caption_sampling
from vlm_rlaif_jax.objectives import preference
from vlm_rlaif_jax.settings.label import LabelConfig


class Judge:
  """Answers, narrates and judges a chunk of questions.

  Args:
    policy: `data.on_bad_sample`: what a judge's prompt that fits no bucket does.
  """

  def __init__(
    self,
    asked: Generator,
    settings: LabelConfig,
    clips: list[tuple[int, int]],
    policy: str = 'stop',
  ):
    self.asked, self.settings, self.clips = asked, settings, clips
    self.policy = policy
    self.tokenizer = asked.tokenizer
    self.caption = prompts.load(settings.caption_prompt)
    self.options = prompts.load(settings.options_prompt)
    self.claims = prompts.load(settings.claims_prompt)

  def rows(self, items: list[Example], numbers: range, key) -> list[dict]:
    """One audit row a question."""
    answers = self.answers(items, numbers, key)
    narratives = self.narratives(items)
    shown = narratives if self.settings.context == 'narrative' else [''] * len(items)
    verdicts = self.verdicts(items, answers, shown)
    rows = []
    for item, pair, narrative, verdict in zip(
      items, answers, narratives, verdicts, strict=True
    ):
      rows.append(
        {
          'id': item.key,
          'question': item.question,
          'answers': pair,
          'narrative': narrative,
          **verdict,
          'record': item.record,
        }
      )
    count = min(max(self.settings.compare - numbers.start, 0), len(items))
    if count:
      other = [''] * count if shown is narratives else narratives[:count]
      compared = self.verdicts(items[:count], answers[:count], other)
      for row, verdict in zip(rows, compared, strict=False):
        if 'margin' in row and 'margin' in verdict:
          row['margin_other_context'] = verdict['margin']
    return rows

  def answers(self, items, numbers, key) -> list[list[str]]:
    """Two samples a question."""
    drawn = self.asked.generate(
      [readers.encode_question(self.tokenizer, item) for item in items],
      [item.video for item in items],
      list(numbers),
      answer_sampling(self.settings, self.tokenizer.eos),
      key,
      copies=2,
    )
    return [[self.tokenizer.decode(ids) for ids in pair] for pair in drawn]

  def narratives(self, items) -> list[str]:
    """The captions of the clips of each video, greedy, joined in order."""
    videos = list(dict.fromkeys(item.video.paths for item in items))
    parts = [Video(paths, clip) for paths in videos for clip in self.clips]
    prompt = tokens.encode_prompt(self.tokenizer, self.caption)
    said = self.asked.generate(
      [prompt] * len(parts),
      parts,
      [0] * len(parts),
      caption_sampling(self.settings, self.tokenizer.eos),
      jax.random.key(0),
    )
    captions = [self.tokenizer.decode(ids) for (ids,) in said]
    count = len(self.clips)
    told = {
      paths: prompts.narrative(captions[i * count : (i + 1) * count])
      for i, paths in enumerate(videos)
    }
    return [told[item.video.paths] for item in items]

  def verdicts(self, items, answers, narratives) -> list[dict]:
    """A verdict a question; or `unjudged`, why the judge could not be asked."""
    by_options = self.settings.judge == 'options'
    texts_of = self._option_texts if by_options else self._claim_texts
    texts = [texts_of(*one) for one in zip(items, answers, narratives, strict=True)]
    skipped = Skipped(self.policy)
    fitting: list[int] = []
    verdicts: list[dict] = [{} for _ in items]
    for number, (item, asked) in enumerate(zip(items, texts, strict=True)):
      if skipped.attempt(lambda item=item, asked=asked: self._fits(item, asked)):
        fitting.append(number)
      else:
        verdicts[number] = {'unjudged': skipped.reasons[-1]}
    judge = self._by_options if by_options else self._by_claims
    judged = judge([items[i] for i in fitting], [texts[i] for i in fitting])
    for number, verdict in zip(fitting, judged, strict=True):
      verdicts[number] = verdict
    return verdicts

  def _fits(self, item: Example, texts) -> bool:
    """True; raises where a text about a video fits no bucket."""
    for text in (text for side in texts for text in side):
      try:
        ids = readers.encode_question(self.tokenizer, item, text)
        batches.bucket(len(ids), self.asked.buckets)
      except ValueError as error:
        raise examples.DataError(f"{item.where}: the judge's prompt: {error}") from None
    return True

  def _option_texts(self, item, pair, story) -> tuple[list[str], ...]:
    """The prompt with the answers as they are, and swapped if both are asked."""
    orders = ((0, 1), (1, 0))[: 2 if self.settings.both_orders else 1]
    return tuple(
      [
        fill(
          self.options,
          narrative=story,
          question=item.question,
          a=pair[first],
          b=pair[second],
        )
      ]
      for first, second in orders
    )

  def _claim_texts(self, item, pair, story) -> tuple[list[str], ...]:
    """The prompts of the statements of either answer."""
    return tuple(
      [
        fill(self.claims, narrative=story, question=item.question, claim=beginning)
        for beginning in prompts.statements(answer)
      ]
      for answer in pair
    )

  def _by_options(self, items, texts) -> list[dict]:
    """log p(A) - log p(B), with the answers in either order."""
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

  def _by_claims(self, items, texts) -> list[dict]:
    """Sum over the statements of an answer of log p(Yes) - log p(No)."""
    ids = (self.tokenizer.option('Yes'), self.tokenizer.option('No'))
    asked = [
      (number, side, text)
      for number, sides in enumerate(texts)
      for side, claims in enumerate(sides)
      for text in claims
    ]
    odds = self._log_odds(
      [items[number] for number, _, _ in asked], [text for *_, text in asked], ids
    )
    scores = np.zeros((len(items), 2))
    for (number, side, _), value in zip(asked, odds, strict=True):
      scores[number, side] += value
    return [{'scores': [float(a), float(b)], 'margin': float(a - b)} for a, b in scores]

  def _log_odds(self, items, texts, ids) -> np.ndarray:
    encoded = [
      readers.encode_question(self.tokenizer, item, text)
      for item, text in zip(items, texts, strict=True)
    ]
    return self.asked.log_odds(encoded, [item.video for item in items], ids)


def fill(template: str, **values: str) -> str:
  """Puts values into a template in one pass: braces inside a value stay as they are."""
  names = '|'.join(values)
  return re.sub(rf'\{{({names})\}}', lambda m: values[m[1]], template).strip()
