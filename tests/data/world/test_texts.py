"""Narratives and judgments of the tiny base agree with the facts."""

import re

import numpy as np
import pytest

from vlm_rlaif_jax.data.world import claims, language, questions, texts
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.scene import Scene


def scene_of(seed: int) -> Scene:
  return scenes.sample_scene(np.random.default_rng([5, seed]))


def test_judgments_of_the_base_texts_are_right():
  rng = np.random.default_rng(0)
  better = {'A': 0, 'B': 0}
  for seed in range(60):
    scene = scene_of(seed)
    qa = questions.long_questions(scene, rng)[0]
    text, verdict = texts.judge_options(scene, qa, rng, language.narrative(scene))
    a, b = text.split('Answer A: ')[1].split('\nWhich')[0].split('\nAnswer B: ')
    first, second = (
      claims.score_answer(scene.facts(), qa.span, qa.phase, answer).quality
      for answer in (a, b)
    )
    assert verdict == ('A' if first > second else 'B')
    better[verdict] += 1
  assert min(better.values()) > 15


@pytest.mark.slow
@pytest.mark.parametrize('judged', [0.0, 0.5])
def test_about_half_of_the_claims_about_a_narrative_are_right(judged):
  rng = np.random.default_rng(0)
  conversations = [texts.reading(scene_of(seed), rng, judged) for seed in range(300)]
  for seed, (first, *_) in enumerate(conversations):
    assert language.narrative(scene_of(seed)) in first[0]
  verdicts = [answer for rounds in conversations for _, answer in rounds]
  verdicts = [answer for answer in verdicts if answer in ('Yes', 'No')]
  assert len(verdicts) > 300
  assert 0.45 < verdicts.count('Yes') / len(verdicts) < 0.54
  for first, *rest in conversations if not judged else ():
    wordings = [first[0].split('\n')[-1], *(question for question, _ in rest)]
    assert len(set(wordings)) == len(wordings)


def test_a_narrative_is_asked_all_that_it_can_answer():
  rng, kinds = np.random.default_rng(0), set()
  for seed in range(40):
    scene = scene_of(seed)
    rounds = texts.answering(scene, rng)
    story = language.narrative(scene)
    assert rounds[0][0].startswith(f'{story}\n')
    wordings = {question.split('\n')[-1] for question, _ in rounds}
    crossings = {
      f'The {a} and the {b} cross.' for a, b in map(sorted, scene.crossings())
    }
    assert {line for line in rounds[0][0].split('\n') if 'cross.' in line} == crossings
    for question, answer in rounds:
      if match := re.search(r'Do the (\w+ \w+) and the (\w+ \w+) cross\?', question):
        pair = frozenset(match.groups())
        assert answer == ('Yes' if pair in scene.crossings() else 'No')
        kinds.add(answer)
    kinds |= {question.split()[0] for question in wordings}
  assert {'What', 'Which', 'How', 'Is', 'Does', 'Compare', 'Describe'} <= kinds
  assert {'Do', 'Yes', 'No'} <= kinds
