"""Texts that the tiny base reads before it sees a video: narratives and judgments.

The judgments, of two answers or of one claim, are also part of the data of SFT: the
tuned model is the judge of the label stage.
"""

import numpy as np

from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.world import claims, language, questions
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.questions import Qa, Rounds
from vlm_rlaif_jax.data.world.stills import list_round, shuffled


def reading(scene: scenes.Scene, rng: np.random.Generator, judged: float) -> Rounds:
  """Returns a narrative, then questions about it or judgments of claims and answers.

  Args:
    judged: probability of judgments; else, the answers only have to be looked up.
  """
  story = language.narrative(scene)
  long = questions.long_questions(scene, rng)
  if rng.random() < judged:
    if rng.random() < 0.1:
      return (judge_options(scene, long[0], rng, story),)
    return judge_claims(scene, long[0], rng, story, rounds=6)
  kind = rng.choice(['facts', 'list', 'read'], p=[0.4, 0.4, 0.2])
  count = {'facts': 9, 'list': 4, 'read': 2}[kind]
  facts = scene.facts()
  rounds = [
    _fact_question(scene, facts[i], rng) for i in rng.permutation(len(facts))[:count]
  ]
  if kind == 'list':
    rounds.append(list_round(scene, rng))
  elif kind == 'read':
    rounds += [(qa.question, qa.answer) for qa in long[:2]]
  (question, answer), *rest = rounds
  return ((f'{story}\n{question}', answer), *rest)


def answering(scene: scenes.Scene, rng: np.random.Generator) -> Rounds:
  """Returns a narrative, which objects cross, and all questions of the video data.

  It teaches which form of answer each form of question has, before any question about
  a video; without it, whatever form was tuned last was the answer to everything.
  """
  short = questions.short_questions(scene, rng)
  everything = short + questions.long_questions(scene, rng)
  rounds = shuffled([(qa.question, qa.answer) for qa in everything], rng)
  (question, answer), *rest = rounds
  crossings = [f'The {a} and the {b} cross.' for a, b in map(sorted, scene.crossings())]
  story = '\n'.join([language.narrative(scene), *sorted(crossings), question])
  return ((story, answer), *rest)


def _fact_question(
  scene: scenes.Scene, fact: claims.Claim, rng: np.random.Generator
) -> tuple[str, str]:
  """'What does the red circle do in clip 1?'; 'Does the red circle stay at first?'."""
  name, phase, predicate = fact
  if rng.random() < 0.35:
    question = f'What does the {name} do in clip {phase + 1}?'
    return question, language.sentence(predicate)
  true = rng.random() < 0.5
  if not true:
    thing = next(thing for thing in scene.things if thing.name == name)
    predicate = scenes.another_predicate(rng, thing, predicate)
  return claims.claim_question((name, phase, predicate)), 'Yes' if true else 'No'


# ---------------------------------------------------------------- judgments


def judge_options(
  scene: scenes.Scene, qa: Qa, rng: np.random.Generator, story: str
) -> tuple[str, str]:
  """Returns the judge's prompt for two answers of different quality, and the better.

  Args:
    story: narrative of the clip, '' for none.
  """
  while True:
    rates = rng.choice([0.0, 0.2, 0.5], 2, p=[0.4, 0.35, 0.25])
    answers = [careless_answer(scene, qa, rng, rate) for rate in rates]
    a, b = (_score(scene, qa, answer).quality for answer in answers)
    if a != b:
      text = prompts.load('tiny_judge_options').format(
        narrative=story, question=qa.question, a=answers[0], b=answers[1]
      )
      return text.strip(), 'A' if a > b else 'B'


def judge_claims(
  scene: scenes.Scene, qa: Qa, rng: np.random.Generator, story: str, rounds: int
) -> Rounds:
  """Returns beginnings of answers, and whether their last statements are right.

  Half of them are. The narrative is in the first round only.
  """
  return tuple(
    _judge_claim(scene, qa, rng, '' if index else story) for index in range(rounds)
  )


def _judge_claim(
  scene: scenes.Scene, qa: Qa, rng: np.random.Generator, story: str
) -> tuple[str, str]:
  true = rng.random() < 0.5
  while True:
    answer = careless_answer(scene, qa, rng, rng.choice([0.0, 0.3, 0.6]))
    starts = prompts.statements(answer, ended=True)
    index = rng.integers(len(starts))
    before = _score(scene, qa, starts[index - 1]).invented if index else 0
    if (_score(scene, qa, starts[index]).invented <= before) == true:
      break
  text = prompts.load('tiny_judge_claims').format(
    narrative=story, question=qa.question, claim=starts[index]
  )
  return text.strip(), 'Yes' if true else 'No'


def _score(scene: scenes.Scene, qa: Qa, answer: str) -> claims.Score:
  return claims.score_answer(scene.facts(), qa.span, qa.phase, answer)


def careless_answer(
  scene: scenes.Scene, qa: Qa, rng: np.random.Generator, rate: float
) -> str:
  """Returns an answer in which each fact is replaced with probability `rate`."""
  assert qa.answer_for is not None
  is_listing = qa.kind in ('describe', 'after', 'before')
  for _ in range(20):
    wrong = scenes.corrupt_scene(
      scene,
      rng,
      any_predicate=rate,
      phantom=rate / 4 if is_listing else 0.0,
      omission=rate / 4 if is_listing else 0.0,
    )
    if answer := qa.answer_for(wrong):
      return answer
  return qa.answer
