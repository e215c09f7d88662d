"""The world's counterpart of each public benchmark, in the same file formats.

They are about the test clips, so that what reads, asks, judges and reports benchmarks
runs without any of their data:

    eval/msvd_qa/msvd_qa.json          attributes: color, shape, count, existence
    eval/msrvtt_qa/test_qa.json        motion: direction, who, count, crossing, claims
    eval/activitynet_qa/test_{q,a}.json    long and temporal: before, after, order
    eval/generic, temporal, consistency    five criteria; two phrasings of one question
    eval/msvd_retrieval/               several captions a clip, with hard negatives
    eval/msrvtt_retrieval/             one caption a clip, among those of random clips
    eval/ucf101/, eval/hmdb51/         the main action and the first one, three splits
    eval/mvbench/, eval/next_qa/       multiple choice

A video is named by its number ('00012'): `eval.videos='videos/test/{stem}.mp4'` finds
it. Random numbers are of their own, so everything else in the world stays as it is.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data.world import choice_benchmarks, questions, text_benchmarks
from vlm_rlaif_jax.data.world.questions import Qa
from vlm_rlaif_jax.data.world.scene import Scene

ITEMS = 60  # rows of a file; a dev split takes some of them away
STREAM = 2  # of random numbers, beside those of clips and of their records
ATTRIBUTES = ('color', 'shape', 'count', 'exist')
MOTIONS = ('direction', 'who', 'becomes', 'count', 'cross', 'turn', 'claim')
TEMPORAL = {'after': 2, 'before': 2, 'order': 2, 'course': 0, 'compare': 0}  # -> type
# A question in two wordings; the world has one.
WORDINGS = ('Describe the video in detail.', 'What happens in the video?')

Records = dict[str, dict[str, Any]]
"""Facts, span and phase of a question, by the key that its benchmark gives it."""


def files(scenes: Sequence[Scene], seed: int) -> tuple[dict[str, str], Records]:
  """Returns the texts of all files, by path below the world, and what is true of them.

  Args:
    scenes: of the test clips, by number.
    seed: of the world.
  """
  texts: dict[str, str] = {}
  truth: Records = {}
  writers: tuple[Callable[..., tuple[Mapping[str, str], Records]], ...] = (
    _msvd_qa,
    _msrvtt_qa,
    _activitynet_qa,
    _generative,
  )
  for index, write in enumerate(writers):
    part, records = write(Clips(scenes, index, seed))
    texts |= part
    truth |= records
  numbered = list(enumerate(scenes))
  rng = np.random.default_rng([seed, STREAM, len(writers)])
  texts |= text_benchmarks.files(numbered, rng, ITEMS)
  texts |= choice_benchmarks.files(numbered, rng, ITEMS)
  return texts, truth


@dataclasses.dataclass(frozen=True)
class Clips:
  """The test clips, beginning at another one for each benchmark.

  Attributes:
    index: of the benchmark.
    seed: of the world.
  """

  scenes: Sequence[Scene]
  index: int
  seed: int

  def about(
    self, kinds: Collection[str], residue: int = 0, modulus: int = 1
  ) -> Iterator[tuple[int, Scene, Qa]]:
    """Yields number, scene and a question about each clip, `ITEMS` at most.

    Args:
      kinds: of the questions; clips that admit none are left out.
      residue, modulus: of the numbers of the clips.
    """
    count, left = len(self.scenes), ITEMS
    for number in ((self.index * ITEMS + i) % count for i in range(count)):
      if number % modulus != residue:
        continue
      if not left:
        return
      scene = self.scenes[number]
      rng = np.random.default_rng([self.seed, STREAM, self.index, number])
      short = questions.short_questions(scene, rng)
      everything = short + questions.long_questions(scene, rng)
      fitting = [qa for qa in everything if qa.kind in kinds]
      if fitting:
        left -= 1
        yield number, scene, fitting[rng.integers(len(fitting))]


def video_name(number: int) -> str:
  """Returns the name of a test clip, that of its file without ending."""
  return f'{number:05d}'


def to_json(rows: Any) -> str:
  """Returns a JSON file, a line a row."""
  return json.dumps(rows, indent=0) + '\n'


def _facts(scene: Scene, qa: Qa) -> dict[str, Any]:
  return {'facts': scene.facts(), 'span': qa.span, 'phase': qa.phase}


# ------------------------------------------------------------------------ questions


def _msvd_qa(clips: Clips) -> tuple[dict[str, str], Records]:
  """Short questions about attributes, in the reference's form."""
  rows, truth = [], {}
  for number, scene, qa in clips.about(ATTRIBUTES):
    key = f'msvd_{video_name(number)}'
    rows.append(
      {
        'video_name': video_name(number),
        'question_id': key,
        'question': qa.question,
        'answer': qa.answer,
      }
    )
    truth[key] = _facts(scene, qa)
  return {'eval/msvd_qa/msvd_qa.json': to_json(rows)}, truth


def _msrvtt_qa(clips: Clips) -> tuple[dict[str, str], Records]:
  """Short questions about motion and counts, in the form of MSRVTT-QA."""
  rows, truth = [], {}
  for number, scene, qa in clips.about(MOTIONS):
    key = f'msrvtt_{video_name(number)}'
    rows.append(
      {
        'answer': qa.answer,
        'category_id': MOTIONS.index(qa.kind),
        'id': key,
        'question': qa.question,
        'video_id': video_name(number),
      }
    )
    truth[key] = _facts(scene, qa)
  return {'eval/msrvtt_qa/test_qa.json': to_json(rows)}, truth


def _activitynet_qa(clips: Clips) -> tuple[dict[str, str], Records]:
  """Long and temporal questions, in two files joined by id."""
  question_rows, answer_rows, truth = [], [], {}
  for number, scene, qa in clips.about(TEMPORAL):
    key = f'anet_{video_name(number)}'
    question_rows.append(
      {
        'question': qa.question,
        'video_name': video_name(number),
        'question_id': key,
      }
    )
    answer_rows.append(
      {'answer': qa.answer, 'type': TEMPORAL[qa.kind], 'question_id': key}
    )
    truth[key] = _facts(scene, qa)
  folder = 'eval/activitynet_qa'
  return {
    f'{folder}/test_q.json': to_json(question_rows),
    f'{folder}/test_a.json': to_json(answer_rows),
  }, truth


def _generative(clips: Clips) -> tuple[dict[str, str], Records]:
  """The three files of the generative benchmark; a clip is in one of them.

  Their rows have no ids: the key is made of name and row, so that two files about one
  clip could give the same one. Of few clips each file has all, by another name.
  """
  kinds = {
    'generic': ('describe', 'course', 'compare'),
    'temporal': ('after', 'before', 'course'),
    'consistency': ('describe',),
  }
  few = len(clips.scenes) < 2 * len(kinds)
  texts: dict[str, str] = {}
  truth: Records = {}
  for index, (name, chosen) in enumerate(kinds.items()):
    rows: list[dict[str, str]] = []
    part = clips.about(chosen) if few else clips.about(chosen, index, len(kinds))
    for number, scene, qa in part:
      video = f'{name}/{video_name(number)}' if few else video_name(number)
      truth[f'{video}_{len(rows)}'] = _facts(scene, qa)
      wording = {'Q': qa.question}
      if name == 'consistency':
        wording = {'Q1': WORDINGS[0], 'Q2': WORDINGS[1]}
      rows.append({'video_name': video, **wording, 'A': qa.answer})
    texts[f'eval/{name}/{name}_qa.json'] = to_json(rows)
  return texts, truth
