"""Clips of a video, their captions, and the narrative that these make."""

from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.settings.label import LabelConfig


def clip_windows(frames: int, longest: int) -> list[tuple[int, int]]:
  """50 frames in clips of at most 20: (0, 20), (20, 40), (40, 50)."""
  return [(start, min(start + longest, frames)) for start in range(0, frames, longest)]


def answer_sampling(settings: LabelConfig, eos: int) -> sampler.Sampling:
  """How the two answers are drawn."""
  return sampler.Sampling(
    settings.response_tokens, settings.temperature, settings.top_p, eos=eos
  )


def caption_sampling(settings: LabelConfig, eos: int) -> sampler.Sampling:
  """How the clips are captioned."""
  return sampler.Sampling(settings.caption_tokens, 0.0, eos=eos)


def clip_of(video: Video, window: tuple[int, int]) -> Video:
  return Video(video.paths, window)
