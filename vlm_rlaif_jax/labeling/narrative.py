"""Clips of a video, their captions, and the narrative that the judge reads."""

from collections.abc import Sequence

import jax

from vlm_rlaif_jax.data import prompts, tokens
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
  items: Sequence[Example],
  windows: Sequence[Window],
) -> list[list[str]]:
  """Captions the clips of every video once; returns those of each example's video."""
  videos = {video.paths: video for video in videos_of(items)}
  clips = [clip for video in videos.values() for clip in clips_of(video, windows)]
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
  by_video = {
    paths: captions[i * count : (i + 1) * count] for i, paths in enumerate(videos)
  }
  return [by_video[video.paths] for video in videos_of(items)]
