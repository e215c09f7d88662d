"""The judge's score of single answers: how many of their claims it holds to be true.

The tuned model is asked of every statement of an answer whether it is right, with the
narrative of the video (`rl.narration`), as in the stage label.
"""

from collections.abc import Sequence

import numpy as np

from vlm_rlaif_jax.data import batches, prompts, readers
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.labeling import narrative
from vlm_rlaif_jax.labeling.answers import Answer
from vlm_rlaif_jax.rl.narration import ByVideo, Narration
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.settings.ppo import PpoRun


class AnswerJudge:
  """Scores answers to questions about videos.

  Args:
    generator: of the tuned model; its features have the videos.
    settings: of claims.
    narratives: of the videos that may be asked about.
  """

  def __init__(self, generator: Generator, settings: LabelConfig, narratives: ByVideo):
    self.generator, self.settings = generator, settings
    self.narratives = narratives
    self.claims = prompts.load(settings.claims_prompt)

  def scores(self, items: Sequence[Example], answers: Sequence[Answer]) -> list[float]:
    """Returns for each answer claims held to be true - claims held to be false.

    A claim counts as 2 p - 1, where p is the probability of Yes against No. One whose
    prompt fits no bucket counts as false. An empty answer has no claims.
    """
    return [sum(values) for values in self._claims(items, answers)]

  def rewards(self, items: Sequence[Example], answers: Sequence[Answer]) -> np.ndarray:
    """Returns the reward of each answer, `float32[N]`, for `ppo.reward='judge'`.

    It is the sum or the mean, by `judge.claims_score`, of what its claims count in
    `scores`. An empty answer counts as one false claim.
    """
    reduce = np.sum if self.settings.claims_score == 'sum' else np.mean
    claims = self._claims(items, answers)
    return np.asarray([reduce(values or [-1.0]) for values in claims], np.float32)

  def _claims(
    self, items: Sequence[Example], answers: Sequence[Answer]
  ) -> list[list[float]]:
    """Returns 2 p - 1 of each claim of each answer."""
    tokenizer = self.generator.tokenizer
    owners, encoded, videos = [], [], []
    values: list[list[float]] = [[] for _ in items]
    rows = zip(items, narrative.videos_of(items), answers, strict=True)
    for number, (item, video, answer) in enumerate(rows):
      texts = prompts.statements(answer.text, answer.stopped) if answer.text else ()
      for beginning in texts:
        text = prompts.fill(
          self.claims,
          narrative=self.narratives[video],
          question=item.question,
          claim=beginning,
        )
        ids = readers.encode_question(tokenizer, item, text)
        try:
          batches.bucket(len(ids), self.generator.buckets)
        except ValueError:
          values[number].append(-1.0)
          continue
        owners.append(number)
        encoded.append(ids)
        videos.append(video)
    options = (tokenizer.option('Yes'), tokenizer.option('No'))
    odds = self.generator.log_odds(encoded, videos, options)
    for number, value in zip(owners, np.tanh(odds / 2), strict=True):
      values[number].append(float(value))
    return values


def open_judge(settings: PpoRun, narration: Narration | None) -> AnswerJudge | None:
  """Returns the tuned model as the judge of answers, where the settings ask for it."""
  if narration is None or 'judge' not in (settings.ppo.select, settings.ppo.reward):
    return None
  return AnswerJudge(narration.generator, settings.judge, narration.narratives)
