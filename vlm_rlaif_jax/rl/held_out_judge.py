"""The judge's score of single answers: how many of their claims it holds to be true.

The tuned model captions the clips of each video once; then it is asked of every
statement of an answer whether it is right, with the narrative, as in the stage label.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data import batches, prompts, readers
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.labeling import narrative
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.rl.prompts import PromptDataset
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.train import loop
from vlm_rlaif_jax.train.run_context import RunContext


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


def open_judge(
  settings: PpoRun, run: RunContext, dataset: PromptDataset, base: Any
) -> AnswerJudge | None:
  """Returns the tuned model as the judge of held-out answers, if one is to be kept.

  Args:
    base: weights `{'llama': ...}` of the actor, on the devices.
  """
  if settings.ppo.select != 'judge':
    return None
  items = [prompt.example for prompt in dataset.eval]
  features = dataset.actor_features
  windows = narrative.clip_windows(run.data.frames, settings.judge.clip_frames)
  clips = [
    clip
    for video in narrative.videos_of(items)
    for clip in narrative.clips_of(video, windows)
  ]
  readers.drop_unreadable(
    items,
    features.encode(
      clips,
      'tokens',
      loop.bar('ppo: encoding clips', settings.log, 'clip'),
    ),
    run.skipped,
  )
  generator = Generator(
    Vlm(settings.model),
    {'params': base},
    dataset.tokenizer,
    features,
    run.data.buckets,
    settings.judge.batch,
  )
  return AnswerJudge(generator, settings.judge, items)
