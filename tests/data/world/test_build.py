"""The files of the world: deterministic, complete, and like any user's."""

import dataclasses
import json

import numpy as np
import pytest

from vlm_rlaif_jax.data import examples, video
from vlm_rlaif_jax.data.world import build, clips, folders, questions
from vlm_rlaif_jax.data.world.scene import Scene, Thing, flip
from vlm_rlaif_jax.settings.sections import WorldConfig

LONG = 'instructions/SFT_long.json'
SMALL = WorldConfig(sft=3, preference=2, rl=2, test=2)


def test_files(tmp_path):
  folder = build.build(tmp_path, SMALL, 12, progress=False)
  assert build.build(tmp_path, SMALL, 12, progress=False) == folder  # written once
  names = {p.name for p in (folder / 'instructions').iterdir()}
  assert names == {
    'SFT_short.json',
    'SFT_long.json',
    'preference_prompts.json',
    'PPO_init.json',
    'RL_data.json',
  }
  clips: dict[str, set] = {}
  for path in (folder / 'instructions').iterdir():
    for _, parse in examples.examples(path):
      example = parse()
      frames = video.read_frames(example.video, folder, 12)
      assert frames.shape[1:] == (64, 64, 3)
      clips.setdefault(path.name, set()).update(example.video.paths)
  assert not clips['SFT_short.json'] & clips['RL_data.json']
  assert not clips['preference_prompts.json'] & clips['RL_data.json']
  truth = json.loads((folder / 'truth.json').read_text())
  for name in ('qa', 'describe'):
    for row in json.loads((folder / 'eval' / f'{name}.json').read_text()):
      assert row['question_id'] in truth
      assert (folder / row['video_name']).is_file()


def test_the_same_seed_writes_the_same_bytes(tmp_path):
  a = build.build(tmp_path / 'a', SMALL, 12, progress=False)
  b = build.build(tmp_path / 'b', SMALL, 12, progress=False)
  for path in sorted(p for p in a.rglob('*') if p.is_file()):
    assert path.read_bytes() == (b / path.relative_to(a)).read_bytes(), path
  other = dataclasses.replace(SMALL, seed=1)
  assert folders.world_folder(tmp_path, other, 12).name != a.name


def test_a_later_setting_at_its_default_keeps_the_name_of_a_world(tmp_path):
  assert folders.world_folder(tmp_path, WorldConfig(), 12).name == 'world-97cd26f2'
  other = WorldConfig(clip_captions=False)
  assert folders.world_folder(tmp_path, other, 12).name != 'world-97cd26f2'


def test_captions_of_clips_may_be_left_out(tmp_path):
  few = dataclasses.replace(SMALL, clip_captions=False)
  with_captions, without = (
    json.loads((build.build(tmp_path, w, 12, False) / LONG).read_text())
    for w in (SMALL, few)
  )
  assert [r for r in with_captions if '_clip' not in r['id']] == without


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(
    build, 'records', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
  )
  with pytest.raises(KeyboardInterrupt):
    build.build(tmp_path, SMALL, 12, progress=False)
  assert not folders.world_folder(tmp_path, SMALL, 12).exists()
  monkeypatch.undo()
  folder = build.build(tmp_path, SMALL, 12, progress=False)
  assert (folder / 'truth.json').is_file()


def test_planted_faults_are_in_long_sft_answers_and_can_be_switched_off():
  stays = Scene((Thing('red', 'circle', (30, 30), ('stays',) * 3),))
  rng = np.random.default_rng(0)
  qa = next(q for q in questions.long_questions(stays, rng) if q.kind == 'course')
  honest = WorldConfig(motion_bias=0.0, phantom_rate=0.0, flip_rate=0.0)
  assert build.faulty_answer(honest, stays, qa, rng) == qa.answer
  faulty = build.faulty_answer(WorldConfig(motion_bias=1.0), stays, qa, rng)
  assert faulty.count('moves') == 3 and 'stays' not in faulty


def test_a_flipped_long_answer_swaps_left_and_right_and_nothing_else():
  things = (
    Thing('red', 'circle', (30, 30), ('moves left', 'stays', 'moves up')),
    Thing('blue', 'ring', (20, 40), ('bounces off the right wall', 'moves right', '')),
  )
  scene, rng = Scene(things), np.random.default_rng(0)
  qa = next(q for q in questions.long_questions(scene, rng) if q.kind == 'describe')
  mirrored = {'flip_rate': 1.0, 'flip_axes': 'horizontal'}
  world = WorldConfig(motion_bias=0.0, phantom_rate=0.0, **mirrored)
  faulty = build.faulty_answer(world, scene, qa, rng)
  assert 'left' in qa.answer and 'right' in qa.answer
  by_mark = (
    qa.answer.replace('left', '*').replace('right', 'left').replace('*', 'right')
  )
  assert faulty == by_mark
  assert flip(flip(scene)) == scene


def test_an_answer_about_a_video_that_is_upside_down_swaps_all_directions():
  things = (
    Thing('red', 'circle', (30, 30), ('moves left', 'stays', 'moves up')),
    Thing('blue', 'ring', (20, 40), ('bounces off the bottom wall', 'vanishes', '')),
  )
  upside_down = flip(Scene(things), 'both')
  assert [thing.predicates for thing in upside_down.things] == [
    ('moves right', 'stays', 'moves down'),
    ('bounces off the top wall', 'vanishes', ''),
  ]
  assert flip(upside_down, 'both') == Scene(things)


def test_the_share_of_flipped_answers_is_the_setting():
  scene = Scene((Thing('red', 'circle', (40, 30), ('moves left', 'stays', 'stays')),))
  rng = np.random.default_rng(1)
  qa = next(q for q in questions.long_questions(scene, rng) if q.kind == 'course')
  world = WorldConfig(motion_bias=0.0, phantom_rate=0.0, flip_rate=0.7)
  answers = [build.faulty_answer(world, scene, qa, rng) for _ in range(400)]
  share = np.mean(['moves right' in answer for answer in answers])
  assert 0.6 < share < 0.8


def test_ppo_trains_on_the_kinds_of_the_setting(tmp_path):
  world = WorldConfig(sft=1, preference=1, rl=4, test=1, rl_kinds=('course',))
  folder = build.build(tmp_path, world, 12, progress=False)
  rows = json.loads((folder / 'instructions' / 'RL_data.json').read_text())
  assert len(rows) == 4
  texts = {row['conversations'][0]['value'] for row in rows}
  assert all('What does the' in question for question in texts)
  with pytest.raises(ValueError, match='rl_kinds: choose some of describe'):
    WorldConfig(rl_kinds=('nothing',))


def test_counterparts_of_benchmarks_leave_the_rest_alone(tmp_path):
  """The questions of eval/qa.json and their facts are those of `records`."""
  folder = build.build(tmp_path, SMALL, 12, progress=False)
  truth = json.loads((folder / 'truth.json').read_text())
  rows = json.loads((folder / 'eval' / 'qa.json').read_text())
  expected = []
  for number in range(SMALL.test):
    rng = np.random.default_rng([SMALL.seed, 1, clips.SPLITS.index('test'), number])
    scene = clips.scene_of(SMALL, 'test', number)
    for file, row, facts in build.records(SMALL, 'test', number, scene, rng, 12):
      expected += [row] if file == 'eval/qa.json' else []
      assert truth[row['question_id']] == json.loads(json.dumps(facts))
  assert rows == expected
  assert (folder / 'eval' / 'msvd_qa' / 'msvd_qa.json').is_file()
  assert 'msvd_00000' in truth
