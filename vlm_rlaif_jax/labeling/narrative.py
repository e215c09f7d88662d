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
  """Returns the clips of a video, in order."""
  return [Video(video.paths, window) for window in windows]


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
  clips = [clip for video in videos for clip in clips_of(video, windows)]
  tokenizer = generator.tokenizer
  prompt = tokens.encode_prompt(tokenizer, prompts.load(settings.caption_prompt))
  outputs = generator.generate(
    [prompt] * len(clips),
    clips,
    [0] * len(clips),
    caption_sampling(settings, tokenizer.eos),
    jax.random.key(0),
  )
  captions = [tokenizer.decode(ids) for (ids,) in outputs]
  count = len(windows)
  return [captions[i * count : (i + 1) * count] for i in range(len(videos))]


class Narratives:
  """The narrative of each video, which is generated once a run.

  Args:
    texts: those that exist, by the paths of the video, as `narratives_of` returns them.
  """

  def __init__(
    self,
    generator: Generator,
    settings: LabelConfig,
    windows: Sequence[Window],
    texts: dict[tuple[str, ...], str],
  ):
    self.generator, self.settings, self.windows = generator, settings, windows
    self.texts = texts

  def of(self, items: Sequence[Example]) -> list[str]:
    """Returns the narrative of the video of each example."""
    videos = {video.paths: video for video in videos_of(items)}
    missing = [video for paths, video in videos.items() if paths not in self.texts]
    if missing:
      captions = caption_clips(self.generator, self.settings, missing, self.windows)
      for video, parts in zip(missing, captions, strict=True):
        self.texts[video.paths] = prompts.narrative(parts)
    return [self.texts[video.paths] for video in videos_of(items)]


def narratives_of(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, ...], str]:
  """Returns the narratives in the audit of a run that goes on, by paths of videos."""
  texts = {}
  for row in rows:
    # A row of an earlier version may be one that is refused today.
    with contextlib.suppress(examples.DataError):
      video = fields.video_of(row['record'], f'record {row["id"]}')
      if video is not None:
        texts[video.paths] = row['narrative']
  return texts
