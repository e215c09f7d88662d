"""The world is deterministic, its truths are true, its files are like any user's."""

import dataclasses
import json
import re

import numpy as np
import pytest

from vlm_rlaif_jax.data import examples, video
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world import build, language, render, stills
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.scene import Scene, Thing
from vlm_rlaif_jax.settings.sections import WorldConfig

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
  centers, visible, _ = scenes.trajectory(SCENE.things[0])
  assert centers[0][0] > centers[7][0]  # left
  assert (centers[8:16] == centers[8]).all()  # stays
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
    centers, visible, _ = scenes.trajectory(thing)
    assert (centers[visible] >= scenes.LOW - 1).all()
    assert (centers[visible] <= scenes.HIGH + 1).all()
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
  honest = WorldConfig(motion_bias=0.0, phantom_rate=0.0)
  assert build.faulty_answer(honest, stays, qa, rng) == qa.answer
  faulty = build.faulty_answer(WorldConfig(motion_bias=1.0), stays, qa, rng)
  assert faulty.count('moves') == 3 and 'stays' not in faulty


def test_judgments_of_the_base_texts_are_right():
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


SMALL = WorldConfig(sft=3, preference=2, rl=2, test=2)


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


def test_a_still_answers_from_what_is_drawn():
  rng = np.random.default_rng(0)
  picture = stills.sample_picture(rng)
  assert picture.frame.shape == (64, 64, 3)
  said = dict(stills.picture_rounds(picture, rng))
  (color, shape), *_ = picture.objects
  assert f'{color} {shape} at the' in said['What is in the picture?'].lower()
  assert (
    said['How many objects are there?'].lower()
    == language.NUMBERS[len(picture.objects)]
  )
  assert stills.place((10, 10)) == 'top left'
  assert stills.place((32, 32)) == 'middle'
  assert stills.place((60, 32)) == 'right'
  assert Video(('a.mp4',)).frames(12) == 12


@pytest.mark.parametrize('seed', range(20))
def test_strips_show_a_scene_and_say_how_it_differs(seed):
  made = scene(seed)
  frames = stills.strip_pictures(made)
  assert frames.shape == (12, scenes.CANVAS, scenes.CANVAS, 3)
  np.testing.assert_array_equal(frames[[0, -1]], render.render(made)[[0, -1]])
  for phase in range(scenes.PHASES):  # a part has its own pictures, of that phase only
    ends = [8 * phase, 8 * phase + 7]
    shown = stills.part_pictures(made, phase)[[0, -1]]
    np.testing.assert_array_equal(shown, render.render(made)[ends])
  rounds = stills.strip_rounds(made, np.random.default_rng(seed), looks=8)
  courses = {
    thing.name: ', '.join(p or 'gone' for p in thing.predicates)
    for thing in made.things
  }
  told = [
    (found[1], answer.lower().strip('.'))
    for asked, answer in rounds
    if (found := re.fullmatch(r'How does the (\w+ \w+) differ\?', asked))
  ]
  if not told:
    asked, answer = rounds[-1]
    assert asked == 'How do they differ?'
    told = [
      (' '.join(one.split()[:2]), ' '.join(one.split()[2:]))
      for one in answer.lower().strip('.').split('. ')
    ]
    last = 1
  else:
    last = len(told)
  assert dict(told) == courses and len(told) == len(courses)
  # Short questions come first: after the courses they could be read off.
  for asked, answer in rounds[:-last]:
    assert asked.startswith(('In the', 'Do the'))
    found = re.fullmatch(r'In the (\w+) pictures the (\w+ \w+) (.*)\?', asked)
    if found:
      fact = (found[2], stills.PARTS.index(found[1]), found[3])
      assert answer == ('Yes' if fact in made.facts() else 'No')


def test_lists_end_with_everything():
  rng = np.random.default_rng(0)
  for seed in range(20):
    *_, (asked, answer) = stills.list_rounds(scene(seed), rng)
    facts = sum(len(t.predicates) for t in scene(seed).things)
    assert asked == 'How do they differ?'
    assert answer.count(',') + answer.count('.') == facts


@pytest.mark.parametrize('judged', [0.0, 0.5])
def test_about_half_of_what_is_said_about_a_narrative_is_right(judged):
  rng = np.random.default_rng(0)
  texts = [stills.reading(scene(seed), rng, judged) for seed in range(300)]
  for seed, (first, *_) in enumerate(texts):
    assert language.narrative(scene(seed)) in first[0]
  verdicts = [answer for text in texts for _, answer in text]
  verdicts = [answer for answer in verdicts if answer in ('Yes', 'No')]
  assert len(verdicts) > 300
  assert 0.45 < verdicts.count('Yes') / len(verdicts) < 0.54
  for first, *rest in texts if not judged else ():
    asked = [first[0].split('\n')[-1], *(question for question, _ in rest)]
    assert len(set(asked)) == len(asked)


def test_a_narrative_is_asked_all_that_it_can_answer():
  rng, kinds = np.random.default_rng(0), set()
  for seed in range(40):
    made = scene(seed)
    rounds = stills.answering(made, rng)
    story = language.narrative(made)
    assert rounds[0][0].startswith(f'{story}\n')
    asked = {question.split('\n')[-1] for question, _ in rounds}
    crossings = {
      f'The {a} and the {b} cross.' for a, b in map(sorted, made.crossings())
    }
    assert {line for line in rounds[0][0].split('\n') if 'cross.' in line} == crossings
    for question, answer in rounds:
      if found := re.search(r'Do the (\w+ \w+) and the (\w+ \w+) cross\?', question):
        pair = frozenset(found.groups())
        assert answer == ('Yes' if pair in made.crossings() else 'No')
        kinds.add(answer)
    kinds |= {question.split()[0] for question in asked}
  assert {'What', 'Which', 'How', 'Is', 'Does', 'Compare', 'Describe'} <= kinds
  assert {'Do', 'Yes', 'No'} <= kinds
