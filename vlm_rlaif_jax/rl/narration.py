"""Narratives of the videos of prompts, for who reads them beside an answer.

That is the judge of answers (`ppo.select='judge'` or `ppo.reward='judge'`), and the
reward model where it was trained with them (`scoring.placeholder='captions'`). The
tuned model captions the clips of each video once, as in the stage label, and
`narratives-*.jsonl` keeps what it wrote for a run that goes on.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.examples import DataError, Example
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.labeling import narrative
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.rl.prompts import PromptDataset
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.train import journal, loop
from vlm_rlaif_jax.train.run_context import RunContext

ByVideo = dict[Video, str]  # narratives by the video, or the part of one


@dataclasses.dataclass(frozen=True)
class Narration:
  """The tuned model, and the narratives that it wrote.

  Attributes:
    generator: its features have the videos and their clips.
    narratives: of the videos of all prompts that need one.
  """

  generator: Generator
  narratives: ByVideo


def narrate(
  settings: PpoRun, run: RunContext, dataset: PromptDataset, base: Any
) -> Narration | None:
  """Returns the narratives that this run needs; None if it needs none.

  Gives them to the dataset where the reward model reads them.

  Args:
    base: weights `{'llama': ...}` of the actor, on the devices.

  Raises:
    DataError: a clip cannot be read any more.
  """
  for_reward = settings.scoring.placeholder == 'captions'
  by_judge = settings.ppo.reward == 'judge'
  if not settings.narrates:
    return None
  needed = dataset.eval
  if for_reward or by_judge:
    needed = [*dataset.train, *dataset.eval]
  items = [prompt.example for prompt in needed]

  # Visual tokens of the clips
  features = dataset.actor_features
  windows = narrative.clip_windows(run.data.frames, settings.judge.clip_frames)
  clips = [
    clip
    for video in narrative.videos_of(items)
    for clip in narrative.clips_of(video, windows)
  ]
  bad = features.encode(
    clips, 'tokens', loop.bar('ppo: encoding clips', settings.log, 'clip')
  )
  if bad:
    raise DataError(next(iter(bad.values())))

  generator = Generator(
    Vlm(settings.model),
    {'params': base},
    dataset.tokenizer,
    features,
    run.data.buckets,
    settings.judge.batch,
  )
  identity = {
    'weights': dataset.fingerprint,
    'quant': dataclasses.asdict(settings.quant),
    'clip_frames': settings.judge.clip_frames,
    'caption_tokens': settings.judge.caption_tokens,
    'caption': prompts.load(settings.judge.caption_prompt),
    'frames': run.data.frames,
    'aspect': run.data.aspect,
  }
  texts = written(generator, settings.judge, windows, items, run.folder, identity)
  if for_reward:
    dataset.set_narratives(texts)
  return Narration(generator, texts)


def written(
  generator: Generator,
  settings: LabelConfig,
  windows: Sequence[narrative.Window],
  items: Sequence[Example],
  folder: pathlib.Path,
  identity: dict[str, Any],
) -> ByVideo:
  """Returns the narratives of the videos of examples; writes those that are missing.

  Args:
    windows: of the clips.
    folder: of the file, which is named by the identity.
    identity: what the narratives depend on.
  """
  record = json.dumps(identity, sort_keys=True)
  name = f'narratives-{hashlib.sha256(record.encode()).hexdigest()[:8]}.jsonl'
  if hosts.is_first():
    folder.mkdir(parents=True, exist_ok=True)
  hosts.barrier(f'folder of {name}')
  file = journal.Journal(folder / name, json.loads(record), 'stop')
  first_of = {item.video: item for item in items if item.video is not None}
  contents = {video: generator.contents(video) for video in first_of}
  texts = {
    video: row['narrative']
    for row in file.rows()
    if (video := _video_of(row)) in first_of
    and row.get('contents', contents[video]) == contents[video]
  }
  writer = narrative.Narratives(generator, settings, windows, texts)

  # A chunk of videos at a time, so that a killed run goes on.
  missing = [item for video, item in first_of.items() if video not in texts]
  size = settings.batch
  for start in range(0, len(missing), size):
    chunk = missing[start : start + size]
    videos, stories = narrative.videos_of(chunk), writer.of(chunk)
    file.extend(
      [
        {
          'paths': list(video.paths),
          **({'clip': list(video.clip)} if video.clip else {}),
          'narrative': text,
          'contents': contents[video],
        }
        for video, text in zip(videos, stories, strict=True)
      ]
    )
  return {video: texts[video] for video in first_of}


def _video_of(row: dict[str, Any]) -> Video:
  """Returns the video that a row of the file is about."""
  clip = row.get('clip')
  return Video(tuple(row['paths']), (clip[0], clip[1]) if clip else None)
