"""Clips of a video, their captions, and the narrative that the judge reads."""

import contextlib
from collections.abc import Sequence
from typing import Any

import jax

from vlm_rlaif_jax.data import examples, fields, prompts, tokens
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.settings.label import LabelConfig

Window = tuple[int, int]  # first frame of a clip, and the one after its last


def videos_of(items: Sequence[Example]) -> list[Video]:
  """Returns the video of each example; all that are labeled have one."""
  return [item.video for item in items if item.video is not None]


def clip_windows(frames: int, longest: int) -> list[Window]:
  """Returns clips of at most `longest` frames: 50 -> (0, 20), (20, 40), (40, 50)."""
  return [(start, min(start + longest, frames)) for start in range(0, frames, longest)]


def clips_of(video: Video, windows: Sequence[Window]) -> list[Video]:
  """Returns the clips of a video, in order; of a part of one, those inside it."""
  start, stop = video.clip or (0, windows[-1][1])
  parts = [(max(first, start), min(end, stop)) for first, end in windows]
  return [Video(video.paths, part) for part in parts if part[0] < part[1]]


def caption_sampling(settings: LabelConfig, eos: int) -> sampler.Sampling:
  """Returns how the clips are captioned: greedily."""
  return sampler.Sampling(settings.caption_tokens, 0.0, eos=eos)


def caption_clips(
  generator: Generator,
  settings: LabelConfig,
  videos: Sequence[Video],
  windows: Sequence[Window],
) -> list[list[str]]:
  """Returns the captions of the clips of each video."""
  of_each = [clips_of(video, windows) for video in videos]
  clips = [clip for some in of_each for clip in some]
  tokenizer = generator.tokenizer
  prompt = tokens.encode_prompt(tokenizer, prompts.load(settings.caption_prompt))
  outputs = generator.generate(
    [prompt] * len(clips),
    clips,
    [0] * len(clips),
    caption_sampling(settings, tokenizer.eos),
    jax.random.key(0),
  )
  captions = iter([tokenizer.decode(ids) for (ids,) in outputs])
  return [[next(captions) for _ in some] for some in of_each]


class Narratives:
  """The narrative of each video, or of a part of it, which is generated once a run.

  Args:
    texts: those that exist, as `narratives_of` returns them.
  """

  def __init__(
    self,
    generator: Generator,
    settings: LabelConfig,
    windows: Sequence[Window],
    texts: dict[Video, str],
  ):
    self.generator, self.settings, self.windows = generator, settings, windows
    self.texts = texts

  def of(self, items: Sequence[Example]) -> list[str]:
    """Returns the narrative of the video of each example."""
    videos = dict.fromkeys(videos_of(items))
    missing = [video for video in videos if video not in self.texts]
    if missing:
      captions = caption_clips(self.generator, self.settings, missing, self.windows)
      for video, parts in zip(missing, captions, strict=True):
        self.texts[video] = prompts.narrative(parts)
    return [self.texts[video] for video in videos_of(items)]


def narratives_of(rows: Sequence[dict[str, Any]]) -> dict[Video, str]:
  """Returns the narratives in the audit of a run that goes on, by their videos."""
  texts = {}
  for row in rows:
    # A row of an earlier version may be one that is refused today.
    with contextlib.suppress(examples.DataError):
      video = fields.video_of(row['record'], f'record {row["id"]}')
      if video is not None:
        texts[video] = row['narrative']
  return texts
