"""Multiple choice about the test clips, as MVBench and NExT-QA have it."""

import csv
import io
import json
from collections.abc import Sequence

import numpy as np

from vlm_rlaif_jax.data.world import questions
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.language import NUMBERS
from vlm_rlaif_jax.data.world.questions import Qa
from vlm_rlaif_jax.data.world.scene import Scene

Numbered = Sequence[tuple[int, Scene]]

MVBENCH = {  # kind of a short question -> task of MVBench that asks the like
  'direction': 'moving_direction',
  'count': 'moving_count',
  'color': 'moving_attribute',
  'exist': 'object_existence',
}
CANDIDATES = {
  'direction': tuple(name.capitalize() for name in scenes.DIRECTIONS),
  'count': tuple(number.capitalize() for number in NUMBERS[1:]),
  'color': tuple(color.capitalize() for color in scenes.COLORS),
  'exist': ('Yes', 'No'),
}
NEXT_QA = {'after': 'TN', 'before': 'TP', 'course': 'TC'}  # kind -> type of NExT-QA
OPTIONS = 5
_COLUMNS = ('video', 'frame_count', 'width', 'height', 'question', 'answer', 'qid')


def files(clips: Numbered, rng: np.random.Generator, items: int) -> dict[str, str]:
  """Returns the texts of the files, by path below the world.

  Args:
    clips: number and scene of each test clip.
    items: questions of a benchmark, at most.
  """
  return {**_mvbench(clips, rng, items), **_next_qa(clips, rng, items)}


def _mvbench(clips: Numbered, rng: np.random.Generator, items: int) -> dict[str, str]:
  """Four tasks, each a file of as many questions."""
  rows: dict[str, list[dict]] = {task: [] for task in MVBENCH.values()}
  each = -(-items // len(rows))
  for number, scene in clips:
    for qa in questions.short_questions(scene, rng):
      task = MVBENCH.get(qa.kind)
      if task is None or len(rows[task]) == each:
        continue
      order = rng.permutation(len(CANDIDATES[qa.kind]))
      rows[task].append(
        {
          'video': f'{number:05d}.mp4',
          'question': qa.question,
          'candidates': [CANDIDATES[qa.kind][i] for i in order],
          'answer': qa.answer,
        }
      )
      break  # another clip has the next question
  return {
    f'eval/mvbench/json/{task}.json': json.dumps(part, indent=0) + '\n'
    for task, part in rows.items()
    if part
  }


def _next_qa(clips: Numbered, rng: np.random.Generator, items: int) -> dict[str, str]:
  """Questions with five long answers, of which four are of scenes like this one."""
  table = io.StringIO()
  writer = csv.writer(table, lineterminator='\n')
  writer.writerow([*_COLUMNS, 'type', *(f'a{i}' for i in range(OPTIONS))])
  count = 0
  for number, scene in reversed(clips):  # mostly other clips than those of MVBench
    long = questions.long_questions(scene, rng)
    qa = next((one for one in long if one.kind in NEXT_QA), None)
    if qa is None or count == items:
      continue
    options = _options(scene, qa, rng)
    size = scenes.CANVAS
    facts = [f'{number:05d}', scenes.FRAMES, size, size, qa.question]
    answer = options.index(qa.answer)
    writer.writerow([*facts, answer, count, NEXT_QA[qa.kind], *options])
    count += 1
  return {'eval/next_qa/test.csv': table.getvalue()}


def _options(scene: Scene, qa: Qa, rng: np.random.Generator) -> list[str]:
  """Returns the right answer and four that would be right of other scenes, shuffled."""
  assert qa.answer_for is not None
  options = {qa.answer: None}
  rate = 0.3
  while len(options) < OPTIONS:
    wrong = scenes.corrupt_scene(scene, rng, any_predicate=rate)
    options[qa.answer_for(wrong)] = None
    rate = min(1.0, rate + 0.02)  # a single fact has to change to give another answer
  texts = list(options)
  return [texts[i] for i in rng.permutation(OPTIONS)]
