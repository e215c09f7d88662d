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
from vlm_rlaif_jax.rl.narration import Narration, Narratives
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.settings.ppo import PpoRun


class AnswerJudge:
  """Scores answers to questions about videos.

  Args:
    generator: of the tuned model; its features have the videos.
    settings: of claims.
    narratives: of the videos that may be asked about.
  """

  def __init__(
    self, generator: Generator, settings: LabelConfig, narratives: Narratives
  ):
    self.generator, self.narratives = generator, narratives
    self.claims = prompts.load(settings.claims_prompt)

  def scores(self, items: Sequence[Example], answers: Sequence[str]) -> list[float]:
    """Returns for each answer claims held to be true - claims held to be false.

    A claim counts as 2 p - 1, where p is the probability of Yes against No. One whose
    prompt fits no bucket counts as false.
    """
    tokenizer = self.generator.tokenizer
    owners, encoded, videos = [], [], []
    totals = np.zeros(len(items))
    rows = zip(items, narrative.videos_of(items), answers, strict=True)
    for number, (item, video, answer) in enumerate(rows):
      for beginning in prompts.statements(answer) if answer else ():
        text = prompts.fill(
          self.claims,
          narrative=self.narratives[video.paths],
          question=item.question,
          claim=beginning,
        )
        ids = readers.encode_question(tokenizer, item, text)
        try:
          batches.bucket(len(ids), self.generator.buckets)
        except ValueError:
          totals[number] -= 1
          continue
        owners.append(number)
        encoded.append(ids)
        videos.append(video)
    options = (tokenizer.option('Yes'), tokenizer.option('No'))
    odds = self.generator.log_odds(encoded, videos, options)
    np.add.at(totals, np.asarray(owners, int), np.tanh(odds / 2))
    return totals.tolist()


def open_judge(settings: PpoRun, narration: Narration | None) -> AnswerJudge | None:
  """Returns the tuned model as the judge of held-out answers, if one is to be kept."""
  if settings.ppo.select != 'judge' or narration is None:
    return None
  return AnswerJudge(narration.generator, settings.judge, narration.narratives)
