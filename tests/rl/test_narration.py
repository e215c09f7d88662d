"""Narratives of the videos of prompts: written once, read by the reward model."""

import dataclasses
import json
import types

import numpy as np
import pytest

from configs import models
from tests.own_data import TOKENIZER
from vlm_rlaif_jax.data.examples import DataError, Example
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.labeling import narrative
from vlm_rlaif_jax.rl import narration, prompts
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoRun
from vlm_rlaif_jax.settings.reward import RewardPrompt

ITEMS = [
  Example(name, Video((f'{name}.mp4',)), (('What happens?', ''),), {})
  for name in ('a', 'b', 'a')
]
A, B = Video(('a.mp4',)), Video(('b.mp4',))
WINDOWS = narrative.clip_windows(8, 4)
IDENTITY = {'weights': 'x', 'quant': {'residency': 'nf4'}}


class FakeGenerator:
  """Captions a clip with its number among all that were asked for."""

  tokenizer = TOKENIZER

  def __init__(self, replaced=()):
    self.clips, self.replaced = [], replaced

  def contents(self, video):
    return 'new' if video.paths[0] in self.replaced else 'old'

  def generate(self, prompts, videos, example_ids, settings, key):
    self.clips += videos
    return [[np.asarray(TOKENIZER.pieces('The ring stays.'))] for _ in videos]


def test_a_video_is_narrated_once_and_kept_for_a_run_that_goes_on(tmp_path):
  def written(identity, replaced=()):
    generator = FakeGenerator(replaced)
    settings = models.tiny_judge()
    texts = narration.written(generator, settings, WINDOWS, ITEMS, tmp_path, identity)
    return texts, len(generator.clips)

  texts, clips = written(IDENTITY)
  story = 'Clip 1: The ring stays.\nClip 2: The ring stays.'
  assert texts == {A: story, B: story}
  assert clips == 4  # two of each video
  assert written(IDENTITY) == (texts, 0)

  # A file of which a kill left one row, and a model that narrates otherwise
  (path,) = tmp_path.glob('narratives-*.jsonl')
  lines = path.read_text().splitlines()
  path.write_text('\n'.join(lines[:2]) + '\n{"paths": ["b.mp')
  assert written(IDENTITY) == (texts, 2)
  assert [json.loads(line).get('paths') for line in path.read_text().splitlines()] == [
    None, ['a.mp4'], ['b.mp4'],
  ]  # fmt: skip
  assert written({**IDENTITY, 'weights': 'y'}) == (texts, 4)

  # A video that was replaced under its name is narrated again, the other one is not
  assert written(IDENTITY, ['b.mp4']) == (texts, 2)
  assert written(IDENTITY, ['b.mp4']) == (texts, 0)


def test_a_part_of_a_video_has_a_narrative_of_its_own(tmp_path):
  part = Video(('a.mp4',), (3, 6))
  items = [ITEMS[0], dataclasses.replace(ITEMS[0], video=part)]

  def clips():
    generator = FakeGenerator()
    settings = models.tiny_judge()
    texts = narration.written(generator, settings, WINDOWS, items, tmp_path, IDENTITY)
    assert texts.keys() == {A, part}
    return [clip.clip for clip in generator.clips]

  assert clips() == [(0, 4), (4, 8), (3, 4), (4, 6)]
  assert clips() == []


def dataset(**changes):
  """Returns what of a dataset has to do with reward prompts."""
  settings = PpoRun(
    ppo=PpoConfig(query_tokens=16, response_tokens=8),
    scoring=RewardPrompt(prompt='tiny_reward_judge', placeholder='captions'),
    **changes,
  )
  run = types.SimpleNamespace(data=settings.data)
  data = prompts.PromptDataset.__new__(prompts.PromptDataset)
  data.settings, data.run, data.tokenizer = settings, run, TOKENIZER
  return data


def test_each_video_has_a_reward_prompt_of_its_own():
  data = dataset()
  data.set_narratives({A: 'Clip 1: short.', B: 'Clip 1: a longer one.'})
  texts = {video: TOKENIZER.decode(ids) for video, ids in data.reward_suffixes.items()}
  assert 'Clip 1: short.' in texts[A] and 'longer' in texts[B]
  assert all(text.rstrip().endswith('ASSISTANT:') for text in texts.values())
  assert data.suffix_tokens == len(data.reward_suffixes[B])
  assert PAD not in data.reward_suffixes[A]


def test_a_narrative_without_room_is_named():
  data = dataset()
  stories = {A: 'Clip 1: short.', B: 'The ring stays. ' * 1200}
  with pytest.raises(
    DataError, match=r'b\.mp4: .* exceed critic\.llama\.max_positions'
  ):
    data.set_narratives(stories)


def test_a_reward_prompt_without_room_is_refused():
  data = dataset()
  critic, config = data.settings.critic, data.settings.ppo
  visual = data.settings.data.frames + critic.vision.patches
  taken = visual + config.query_tokens + config.response_tokens
  room = critic.llama.max_positions - taken
  data.check_reward_room(room, 'config.ppo.response_tokens', 'lower it')
  with pytest.raises(
    DataError, match=rf'{room + 1} of the reward prompt exceed .*; lower it$'
  ):
    data.check_reward_room(room + 1, 'config.ppo.response_tokens', 'lower it')
