"""Sentences, questions and claims follow from the facts of a scene."""

import numpy as np
import pytest

from vlm_rlaif_jax.data.world import claims, language, questions
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.scene import Scene, Thing

SCENE = Scene(
  (
    Thing('red', 'circle', (30, 30), ('moves left', 'stays', 'vanishes')),
    Thing('blue', 'ring', (50, 50), ('', 'appears', 'moves up')),
  )
)


def scene_of(seed: int) -> Scene:
  return scenes.sample_scene(np.random.default_rng([5, seed]))


def test_sentences_about_a_scene():
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


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(40))
def test_true_answers_score_perfectly_and_corrupt_ones_do_not(seed):
  scene = scene_of(seed)
  rng = np.random.default_rng(seed)
  for qa in questions.long_questions(scene, rng):
    score = claims.score_answer(scene.facts(), qa.span, qa.phase, qa.answer)
    assert score.invented == 0
    assert score.recalled == score.required > 0
    assert score.quality == 1
    wrong = scenes.corrupt_scene(scene, rng, any_predicate=1.0)
    answer = qa.answer_for(wrong)
    score = claims.score_answer(scene.facts(), qa.span, qa.phase, answer)
    assert score.recalled == 0 and score.invented >= score.required


def test_claims_are_read_whatever_their_order_and_case():
  text = 'Then IT stays. First the red circle moves left, then it stays, and more.'
  read, unread = claims.read_claims(text)
  assert read == [('red circle', 0, 'moves left'), ('red circle', 1, 'stays')]
  assert unread == 2  # "it" without an object before, "and more"


def test_invented_objects_and_repetitions():
  facts = SCENE.facts()
  answer = 'There is one object: a green square. First the red circle moves left, '
  answer += 'first it moves left.'
  score = claims.score_answer(facts, [('red circle', 0)], claims.ALL, answer)
  assert (score.right, score.invented, score.recalled) == (1, 1, 1)


@pytest.mark.slow
def test_yes_no_questions_are_balanced():
  yes, no = 0, 0
  for seed in range(400):
    for qa in questions.short_questions(scene_of(seed), np.random.default_rng(seed)):
      yes += qa.answer == 'Yes'
      no += qa.answer == 'No'
  assert 0.45 < yes / (yes + no) < 0.55


def test_short_answers_follow_from_the_facts():
  rng = np.random.default_rng(0)
  for seed in range(60):
    scene = scene_of(seed)
    facts = scene.facts()
    for qa in questions.short_questions(scene, rng):
      if qa.kind == 'count':
        assert qa.answer == language.NUMBERS[len(scene.things)].capitalize()
      if qa.kind == 'claim':
        true = any(claims.claim_question(fact) == qa.question for fact in facts)
        assert qa.answer == ('Yes' if true else 'No')
      if qa.kind == 'cross' and qa.answer == 'Yes':
        assert scene.crossings()
