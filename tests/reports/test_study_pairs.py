"""How sure a change is whose seeds were asked about the same clips."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from vlm_rlaif_jax.data.world import folders
from vlm_rlaif_jax.reports import study_pairs
from vlm_rlaif_jax.reports.study_pairs import Difference
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.sections import WorldConfig

VIDEOS = [f'{n}.mp4' for n in range(60)]


def seed_of(values):
  """One seed's difference at a question about each clip."""
  return [Difference(*pair) for pair in zip(VIDEOS, values, strict=True)]


def test_of_one_seed_it_is_that_of_the_clips():
  values = np.random.default_rng(0).normal(size=60)
  result = study_pairs.over_seeds([seed_of(values)])
  assert result['change'] == pytest.approx(values.mean())
  assert result['error'] == pytest.approx(values.std(ddof=1) / 60**0.5)


def test_seeds_that_answer_alike_add_no_certainty():
  values = np.random.default_rng(0).normal(size=60)
  one, three = (study_pairs.over_seeds(n * [seed_of(values)]) for n in (1, 3))
  assert three['error'] == pytest.approx(one['error'])


def test_seeds_that_differ_take_certainty_away():
  values = np.random.default_rng(0).normal(size=60)
  result = study_pairs.over_seeds([seed_of(values + shift) for shift in (-1, 0, 1)])
  assert result['error'] > 1 / 3**0.5  # of three seeds that are 1 apart


def test_intervals_cover_the_truth_where_seeds_share_their_clips():
  rng = np.random.default_rng(1)
  covered = 0
  for _ in range(400):
    clips = rng.normal(size=60)  # what a clip is like for every seed
    seeds = [seed_of(0.3 + clips + 0.7 * rng.normal(size=60)) for _ in range(3)]
    low, high = study_pairs.over_seeds(seeds)['interval']
    covered += low < 0.3 < high
  assert 0.90 <= covered / 400 <= 0.98  # as independent seeds it would be 80 %


def test_of_one_clip_nothing_is_known():
  result = study_pairs.over_seeds([[Difference('a.mp4', 1.0)] * 5])
  assert result == {'change': 1.0, 'error': None, 'interval': (-1.0, 1.0)}
  assert study_pairs.over_seeds([[]]) is None


def run(root, lineage, worlds):
  """A run with an answer that the facts of the world make right."""
  folder = root / 'tiny'
  (folder / 'eval').mkdir(parents=True)
  (folder / 'eval' / 'summary.json').write_text(json.dumps({'lineage': lineage}))
  row = {
    'question_id': 'q0', 'video_name': 'a.mp4', 'kind': 'who', 'answer': 'Red.',
    'prediction': 'Red.',
  }  # fmt: skip
  (folder / 'eval' / 'qa_rlaif.jsonl').write_text(json.dumps(row))
  for world in worlds:
    (folder / world).mkdir()
    (folder / world / 'truth.json').write_text('{}')
  return folder


def test_answers_are_graded_by_the_world_of_the_evaluation(tmp_path):
  world = WorldConfig(test=7)
  lineage = {f'world.{k}': v for k, v in dataclasses.asdict(world).items()}
  lineage['data.frames'] = 12
  own = folders.recorded_folder(tmp_path, lineage).name
  assert own == folders.world_folder(tmp_path, world, 12).name
  folder = run(tmp_path, lineage, [own, 'world-00000000'])
  (folder / 'world-00000000' / 'truth.json').write_text('damaged')
  assert study_pairs.answers(tmp_path, 'rlaif')['q0'].right == 1.0
  assert study_pairs.answers(tmp_path, 'sft') == {}
  shutil.rmtree(folder / own)
  (folder / 'world-11111111').mkdir()
  (folder / 'world-11111111' / 'truth.json').write_text('{}')
  (folder / 'eval' / 'qa_rlaif.jsonl').touch()  # read it again
  with pytest.raises(UserError, match=r'2 worlds .* name none of them'):
    study_pairs.answers(tmp_path, 'rlaif')
