"""Files of multiple-choice benchmarks: names, and how those that nest are read."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from vlm_rlaif_jax.data.examples import DataError

VIDEO_MME = (
  ('video_mme.json',),
  ('video_mme.jsonl',),
  ('videomme.json',),
  ('videomme.jsonl',),
  ('test-00000-of-00001.parquet',),  # which is refused with what to do
)
NEXT_QA = (
  ('test.csv', 'map_vid_vidorID.json'),
  ('test.csv',),
  ('val.csv', 'map_vid_vidorID.json'),
  ('val.csv',),
  ('next_qa.csv',),
)
TEMPCOMPASS = (('multi-choice.json',), ('questions/multi-choice.json',))

# Task of MVBench (Li et al. 2024) -> folder of its videos in the release.
MVBENCH_FOLDERS = {
  'action_sequence': 'star/Charades_v1_480',
  'action_prediction': 'star/Charades_v1_480',
  'action_antonym': 'ssv2_video',
  'fine_grained_action': 'Moments_in_Time_Raw/videos',
  'unexpected_action': 'FunQA_test/test',
  'object_existence': 'clevrer/video_validation',
  'object_interaction': 'star/Charades_v1_480',
  'object_shuffle': 'perception/videos',
  'moving_direction': 'clevrer/video_validation',
  'action_localization': 'sta/sta_video',
  'scene_transition': 'scene_qa/video',
  'action_count': 'perception/videos',
  'moving_count': 'clevrer/video_validation',
  'moving_attribute': 'clevrer/video_validation',
  'state_change': 'perception/videos',
  'fine_grained_pose': 'nturgbd',
  'character_order': 'perception/videos',
  'egocentric_navigation': 'vlnqa',
  'episodic_reasoning': 'tvqa/frames_fps3_hq',
  'counterfactual_inference': 'clevrer/video_validation',
}
# Tasks about a part of a video; of one of them the videos are folders of pictures.
MVBENCH_SPANS = {
  'action_sequence',
  'action_prediction',
  'object_interaction',
  'action_localization',
  'episodic_reasoning',
}
MVBENCH_FPS = 3.0
MVBENCH = (
  tuple(f'json/{task}.json' for task in MVBENCH_FOLDERS),
  tuple(f'{task}.json' for task in MVBENCH_FOLDERS),
)


def read_object(path: pathlib.Path) -> dict[str, Any]:
  """Returns a JSON file that is an object; raises DataError if it is not."""
  try:
    content = json.loads(path.read_text(encoding='utf-8-sig'))
  except (OSError, ValueError) as error:
    raise DataError(f'{path}: not JSON ({error})') from None
  if not isinstance(content, dict) or not content:
    raise DataError(f'{path}: must be an object, got {type(content).__name__}')
  return content


def entries(aspects: Any, where: str) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
  """Yields (aspect, number, row) of one video of TempCompass."""
  if not isinstance(aspects, dict):
    raise DataError(f'{where}: must be an object of aspects, got {aspects!r}')
  for aspect, rows in aspects.items():
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
      raise DataError(f'{where}: {aspect} must be a list of objects, got {rows!r}')
    yield from ((aspect, number, row) for number, row in enumerate(rows))
