"""The judge's score of single answers: how many of their claims it holds to be true.

The tuned model captions the clips of each video once; then it is asked of every
statement of an answer whether it is right, with the narrative, as in the stage label.
"""

from collections.abc import Sequence

import numpy as np

from vlm_rlaif_jax.data import batches, prompts, readers
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.labeling import narrative
from vlm_rlaif_jax.settings.label import LabelConfig


class AnswerJudge:
  """Scores answers to questions about videos.

  Args:
    generator: of the tuned model; its features have the videos and their clips.
    settings: of captions and claims.
    items: questions that may be asked about.
  """

  def __init__(
    self, generator: Generator, settings: LabelConfig, items: Sequence[Example]
  ):
    self.generator = generator
    self.claims = prompts.load(settings.claims_prompt)
    windows = narrative.clip_windows(
      generator.features.data.frames, settings.clip_frames
    )
    narratives = narrative.Narratives(generator, settings, windows, {}).of(items)
    self.narratives = {
      item.key: text for item, text in zip(items, narratives, strict=True)
    }

  def scores(self, items: Sequence[Example], answers: Sequence[str]) -> list[float]:
    """Returns for each answer claims held to be true - claims held to be false.

    A claim counts as 2 p - 1, where p is the probability of Yes against No. One whose
    prompt fits no bucket counts as false.
    """
    tokenizer = self.generator.tokenizer
    owners, encoded, videos = [], [], []
    totals = np.zeros(len(items))
    for number, (item, answer) in enumerate(zip(items, answers, strict=True)):
      for beginning in prompts.statements(answer) if answer else ():
        text = prompts.fill(
          self.claims,
          narrative=self.narratives[item.key],
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
        videos.append(item.video)
    options = (tokenizer.option('Yes'), tokenizer.option('No'))
    odds = self.generator.log_odds(encoded, videos, options)
    np.add.at(totals, np.asarray(owners, int), np.tanh(odds / 2))
    return totals.tolist()
