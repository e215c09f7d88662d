"""The world is deterministic, its truths are true, its files are like any user's."""

import dataclasses
import json

import numpy as np
import pytest

from vlm_rlaif_jax.config.sections import World
from vlm_rlaif_jax.data import examples, video
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world import build, language, render, stills
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.scene import Scene, Thing

SCENE = Scene(
  (
    Thing('red', 'circle', (30, 30), ('moves left', 'stays', 'vanishes')),
    Thing('blue', 'ring', (50, 50), ('', 'appears', 'moves up')),
  )
)


def scene(seed: int) -> Scene:
  return scenes.sample_scene(np.random.default_rng([5, seed]))


def test_facts_of_a_scene():
  assert SCENE.facts() == [
    ('red circle', 0, 'moves left'),
    ('red circle', 1, 'stays'),
    ('red circle', 2, 'vanishes'),
    ('blue ring', 1, 'appears'),
    ('blue ring', 2, 'moves up'),
  ]


def test_what_is_said_of_it():
  assert language.description(SCENE) == (
    'There are two objects: a red circle and a blue ring. First the red circle moves '
    'left, then it stays, finally it vanishes. Then the blue ring appears, finally it '
    'moves up.'
  )
  assert language.caption(SCENE, 1) == 'The red circle stays. The blue ring appears.'
  assert language.comparison(SCENE, ['red circle', 'blue ring']) == (
    'First the red circle moves left. Then the red circle stays and the blue ring '
    'appears. Finally the red circle vanishes and the blue ring moves up.'
  )


def test_the_pictures_show_the_facts():
  centres, visible, _ = scenes.trajectory(SCENE.things[0])
  assert centres[0][0] > centres[7][0]  # left
  assert (centres[8:16] == centres[8]).all()  # stays
  assert visible[:20].all() and not visible[20:].any()  # vanishes half-way
  _, visible, _ = scenes.trajectory(SCENE.things[1])
  assert not visible[:12].any() and visible[12:].all()
  frames = render.render(SCENE)
  red = (np.abs(frames.astype(int) - scenes.COLORS['red']).sum(-1) < 60).sum((1, 2))
  assert (red[:20] > 50).all() and (red[20:] == 0).all()


@pytest.mark.parametrize('seed', range(40))
def test_objects_stay_on_the_canvas_and_apart_between_phases(seed):
  made = scene(seed)
  for thing in made.things:
    centres, visible, _ = scenes.trajectory(thing)
    assert (centres[visible] >= scenes.LOW - 1).all()
    assert (centres[visible] <= scenes.HIGH + 1).all()
    assert len(thing.predicates) == scenes.PHASES and any(thing.predicates)


@pytest.mark.parametrize('seed', range(40))
def test_true_answers_score_perfectly_and_altered_ones_do_not(seed):
  made = scene(seed)
  rng = np.random.default_rng(seed)
  for qa in language.long_questions(made, rng):
    score = language.score_answer(made.facts(), qa.span, qa.phase, qa.answer)
    assert score.invented == 0
    assert score.recalled == score.required > 0
    assert score.quality == 1
    wrong = scenes.altered(made, rng, any_predicate=1.0)
    said = qa.say(wrong)
    score = language.score_answer(made.facts(), qa.span, qa.phase, said)
    assert score.recalled == 0 and score.invented >= score.required


def test_claims_are_read_whatever_their_order_and_case():
  text = 'Then IT stays. First the red circle moves left, then it stays, and more.'
  claims, unread = language.read_claims(text)
  assert claims == [('red circle', 0, 'moves left'), ('red circle', 1, 'stays')]
  assert unread == 2  # "it" without an object before, "and more"


def test_invented_objects_and_repetitions():
  facts = SCENE.facts()
  said = 'There is one object: a green square. First the red circle moves left, '
  said += 'first it moves left.'
  score = language.score_answer(facts, [('red circle', 0)], language.ALL, said)
  assert (score.right, score.invented, score.recalled) == (1, 1, 1)


def test_yes_no_questions_are_balanced():
  yes, no = 0, 0
  for seed in range(400):
    for qa in language.short_questions(scene(seed), np.random.default_rng(seed)):
      yes += qa.answer == 'Yes'
      no += qa.answer == 'No'
  assert 0.45 < yes / (yes + no) < 0.55


def test_short_answers_follow_from_the_facts():
  rng = np.random.default_rng(0)
  for seed in range(60):
    made = scene(seed)
    facts = made.facts()
    for qa in language.short_questions(made, rng):
      if qa.kind == 'count':
        assert qa.answer == language.NUMBERS[len(made.things)].capitalize()
      if qa.kind == 'claim':
        true = any(language.claim_question(fact) == qa.question for fact in facts)
        assert qa.answer == ('Yes' if true else 'No')
      if qa.kind == 'cross' and qa.answer == 'Yes':
        assert made.crossings()


def test_planted_faults_are_in_long_sft_answers_and_can_be_switched_off():
  stays = Scene((Thing('red', 'circle', (30, 30), ('stays',) * 3),))
  rng = np.random.default_rng(0)
  qa = next(q for q in language.long_questions(stays, rng) if q.kind == 'course')
  honest = World(motion_bias=0.0, phantom_rate=0.0)
  assert build.faulty_answer(honest, stays, qa, rng) == qa.answer
  faulty = build.faulty_answer(World(motion_bias=1.0), stays, qa, rng)
  assert faulty.count('moves') == 3 and 'stays' not in faulty


def test_judgements_of_the_base_texts_are_right():
  rng = np.random.default_rng(0)
  better = {'A': 0, 'B': 0}
  for seed in range(60):
    made = scene(seed)
    qa = language.long_questions(made, rng)[0]
    text, verdict = stills.judge_options(made, qa, rng, language.narrative(made))
    a, b = text.split('Answer A: ')[1].split('\nWhich')[0].split('\nAnswer B: ')
    first, second = (
      language.score_answer(made.facts(), qa.span, qa.phase, answer).quality
      for answer in (a, b)
    )
    assert verdict == ('A' if first > second else 'B')
    better[verdict] += 1
  assert min(better.values()) > 15


SMALL = World(sft=3, preference=2, rl=2, test=2)


def test_files(tmp_path):
  folder = build.build(tmp_path, SMALL, 12, progress=False)
  assert build.build(tmp_path, SMALL, 12, progress=False) == folder  # made once
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
  assert build.world_folder(tmp_path, other, 12).name != a.name


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(
    build, 'records', lambda *a: (_ for _ in ()).throw(KeyboardInterrupt)
  )
  with pytest.raises(KeyboardInterrupt):
    build.build(tmp_path, SMALL, 12, progress=False)
  assert not build.world_folder(tmp_path, SMALL, 12).exists()
  monkeypatch.undo()
  folder = build.build(tmp_path, SMALL, 12, progress=False)
  assert (folder / 'truth.json').is_file()


def test_albums_answer_from_their_pictures():
  rng = np.random.default_rng(0)
  album = stills.sample_album(rng, 4)
  assert album.frames.shape == (4, 64, 64, 3)
  where = [a for q, a in album.rounds if q.startswith('Where')]
  assert all(len(answer.split(',')) == 4 for answer in where)
  assert stills.place((10, 10)) == 'top left'
  assert stills.place((32, 32)) == 'middle'
  assert stills.place((60, 32)) == 'right'
  assert Video(('a.mp4',)).frames(12) == 12


@pytest.mark.parametrize('seed', range(20))
def test_strips_show_a_scene_and_say_how_it_differs(seed):
  rng = np.random.default_rng(seed)
  scene = scenes.sample_scene(np.random.default_rng(seed))
  frames, rounds = stills.sample_strip(rng, 12)
  assert frames.shape == (12, scenes.CANVAS, scenes.CANVAS, 3)
  np.testing.assert_array_equal(frames[[0, -1]], render.render(scene)[[0, -1]])
  said = dict(rounds)
  for thing in scene.things:
    answer = said[f'How does the {thing.name} differ?'].lower().strip('.')
    assert answer.split(', ') == [p or 'gone' for p in thing.predicates]
