import types

from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.labeling import narrative
from vlm_rlaif_jax.settings.label import LabelConfig


def test_fifty_frames_are_three_clips():
  assert narrative.clip_windows(50, 20) == [(0, 20), (20, 40), (40, 50)]
  assert narrative.clip_windows(12, 4) == [(0, 4), (4, 8), (8, 12)]
  assert narrative.clip_windows(5, 20) == [(0, 5)]


def test_clips_of_a_part_are_inside_it():
  windows = narrative.clip_windows(50, 20)
  whole, part = Video(('v.mp4',)), Video(('v.mp4',), (10, 25))
  assert [clip.clip for clip in narrative.clips_of(whole, windows)] == windows
  assert [clip.clip for clip in narrative.clips_of(part, windows)] == [
    (10, 20),
    (20, 25),
  ]


class CaptionGenerator:
  """A generator that writes the clip as its caption, and counts."""

  def __init__(self):
    self.tokenizer = types.SimpleNamespace(
      eos=2, decode=lambda ids: f'frames {ids}', encode=lambda text: [1]
    )
    self.clips: list[Video] = []

  def generate(self, prompts, videos, *settings):
    self.clips += videos
    return [[video.clip] for video in videos]


def test_a_narrative_is_generated_once_a_run_and_after_a_kill():
  """However many questions a video has, and however far apart they are."""
  windows = [(0, 4), (4, 8)]
  items = [
    Example(str(i), Video((f'{i % 3}.mp4',)), (('What?', ''),), {}) for i in range(9)
  ]
  settings = LabelConfig(caption_prompt='tiny_caption')
  generator = CaptionGenerator()
  stories = narrative.Narratives(generator, settings, windows, {})
  first = [text for item in items for text in stories.of([item])]
  assert len(generator.clips) == 3 * 2
  assert first[0] == first[3] == 'Clip 1: frames (0, 4)\nClip 2: frames (4, 8)'

  rows = [
    {'id': item.key, 'record': {'video': item.video.paths[0]}, 'narrative': text}
    for item, text in zip(items[:2], first, strict=False)
  ]
  resumed = CaptionGenerator()
  texts = narrative.narratives_of(rows)
  again = narrative.Narratives(resumed, settings, windows, texts).of(items)
  assert again == first
  assert [clip.paths for clip in resumed.clips] == [('2.mp4',)] * 2

  # A question about a part of a video is not judged by what the rest shows
  part = Example('p', Video(('0.mp4',), (2, 6)), (('What?', ''),), {})
  both = narrative.Narratives(resumed, settings, windows, texts).of([part, items[0]])
  assert both == ['Clip 1: frames (2, 4)\nClip 2: frames (4, 6)', first[0]]
