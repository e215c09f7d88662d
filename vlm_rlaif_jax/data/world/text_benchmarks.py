"""Retrieval and action recognition about the test clips, in the published formats."""

import collections
import csv
import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.data.world import language
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.scene import Scene

Numbered = Sequence[tuple[int, Scene]]

NEGATIVES = 4  # wrong captions a clip, each a fact away from the right one
SPLITS = (1, 2, 3)
FEW = 6  # videos of action recognition
TEST, TRAIN, NEITHER = 2, 1, 0  # marks of HMDB51
_HEAD = '# Descriptions of the clips of the video world\n#\n# name description\n'


def files(clips: Numbered, rng: np.random.Generator, items: int) -> dict[str, str]:
  """Returns the texts of the files, by path below the world.

  Args:
    clips: number and scene of each test clip.
    items: videos of a benchmark, at most.
  """
  distinct = list(_with_own_description(clips))
  of_splits = items * len(SPLITS) // (len(SPLITS) - 1)  # each split tests two thirds
  return {
    **_msrvtt(distinct[:items]),
    **_msvd(distinct[-items:], rng),
    **_ucf101(labeled(clips, main_actions)[:of_splits]),
    **_hmdb51(labeled(clips, first_actions)[-of_splits:]),
  }


# ------------------------------------------------------------------------ retrieval


def _with_own_description(clips: Numbered) -> Iterator[tuple[int, Scene]]:
  """Yields the clips that no clip before has the description of."""
  texts: set[str] = set()
  for number, scene in clips:
    text = language.description(scene)
    if text not in texts:
      texts.add(text)
      yield number, scene


def _paraphrase(scene: Scene) -> str:
  """Returns all that happens, phase by phase."""
  return language.comparison(scene, [thing.name for thing in scene.things])


def _msrvtt(clips: Numbered) -> dict[str, str]:
  """One caption a clip in the table, and another one in the file of all captions."""
  table = io.StringIO()
  writer = csv.writer(table, lineterminator='\n')
  writer.writerow(['key', 'vid_key', 'video_id', 'sentence'])
  videos, sentences = [], []
  for index, (number, scene) in enumerate(clips):
    name = f'{number:05d}'
    writer.writerow([f'ret{index}', f'msr{number}', name, language.description(scene)])
    videos.append({'video_id': name, 'split': 'test', 'id': number})
    for text in (language.description(scene), _paraphrase(scene)):
      row = {'caption': text, 'video_id': name, 'sen_id': len(sentences)}
      sentences.append(row)
  data = {'info': {'data_info': 'video world'}, 'videos': videos}
  folder = 'eval/msrvtt_retrieval'
  return {
    f'{folder}/MSRVTT_JSFUSION_test.csv': table.getvalue(),
    f'{folder}/MSRVTT_data.json': json.dumps({**data, 'sentences': sentences}) + '\n',
  }


def _msvd(clips: Numbered, rng: np.random.Generator) -> dict[str, str]:
  """Several captions a clip; wrong ones that differ in one fact in a file of ours."""
  lines, negatives = [], {}
  for number, scene in clips:
    name = f'{number:05d}'
    names = [thing.name for thing in scene.things]
    courses = (language.course_sentences(scene, [one]) for one in names)
    captions = [language.description(scene), _paraphrase(scene), *courses]
    lines += [f'{name} {text}' for text in dict.fromkeys(captions)]
    negatives[name] = wrong_descriptions(scene, rng, NEGATIVES)
  folder = 'eval/msvd_retrieval'
  return {
    f'{folder}/test_list.txt': ''.join(f'{number:05d}\n' for number, _ in clips),
    f'{folder}/AllVideoDescriptions.txt': _HEAD + '\n'.join(lines) + '\n',
    f'{folder}/hard_negatives.json': json.dumps(negatives, indent=0) + '\n',
  }


def wrong_descriptions(scene: Scene, rng: np.random.Generator, count: int) -> list[str]:
  """Returns distinct descriptions of scenes that differ from this one in one fact."""
  texts: dict[str, None] = {}
  while len(texts) < count:
    texts[language.description(with_one_change(scene, rng))] = None
  return list(texts)


def with_one_change(scene: Scene, rng: np.random.Generator) -> Scene:
  """Returns a scene with another color or shape of an object, or one other action."""
  things = list(scene.things)
  index = int(rng.integers(len(things)))
  thing = things[index]
  kind = str(rng.choice(['action', 'action', 'color', 'shape']))
  change: dict[str, Any]
  if kind == 'action':
    phases = [phase for phase, action in enumerate(thing.predicates) if action]
    phase = int(rng.choice(phases))
    actions = list(thing.predicates)
    actions[phase] = scenes.another_predicate(rng, thing, actions[phase])
    change = {'predicates': tuple(actions)}
  elif kind == 'color':
    present = {one.color for one in things}
    change = {'color': str(rng.choice([c for c in scenes.COLORS if c not in present]))}
  else:
    others = [shape for shape in scenes.SHAPES if shape != thing.shape]
    change = {'shape': str(rng.choice(others))}
  things[index] = dataclasses.replace(thing, **change)
  return Scene(tuple(things))


# --------------------------------------------------------------------------- actions


def action_of(predicate: str) -> str:
  """Returns the action of a predicate: 'moves left', 'stays', 'bounces', 'recolors'."""
  verb = predicate.split()[0]
  return {'bounces': 'bounces', 'becomes': 'changes color'}.get(verb, predicate)


def main_actions(scene: Scene) -> list[str]:
  """Returns what happens most often in a scene, several actions if equally often.

  To stay is the action of a scene in which nothing else happens.
  """
  actions = [action_of(action) for _, _, action in scene.facts()]
  counts = collections.Counter(a for a in actions if a != scenes.STAYS)
  most = max(counts.values(), default=0)
  return [a for a, times in counts.items() if times == most] or [scenes.STAYS]


def first_actions(scene: Scene) -> list[str]:
  """Returns what happens first in a scene, several actions if at the same time.

  To stay is the action of a scene in which nothing else happens.
  """
  facts = [(when, action_of(action)) for _, when, action in scene.facts()]
  facts = [(when, action) for when, action in facts if action != scenes.STAYS]
  start = min((when for when, _ in facts), default=0)
  actions = dict.fromkeys(action for when, action in facts if when == start)
  return list(actions) or [scenes.STAYS]


def labeled(
  clips: Numbered, actions_of: Callable[[Scene], list[str]]
) -> list[tuple[int, str]]:
  """Returns (number, action) of the clips with one action.

  Where there are less than `FEW`, the first of several actions stands in.
  """
  actions = [(number, actions_of(scene)) for number, scene in clips]
  clear = [(number, names[0]) for number, names in actions if len(names) == 1]
  others = [(number, names[0]) for number, names in actions if len(names) > 1]
  return clear + others[: max(0, FEW - len(clear))]


def _is_test(index: int, split: int) -> bool:
  """Returns whether a video is a test video of a split: two of three are."""
  return index % len(SPLITS) != len(SPLITS) - split


def _ucf101(videos: Sequence[tuple[int, str]]) -> dict[str, str]:
  """The most frequent action of a clip as its class, named as those of UCF101."""
  classes = sorted({_camel(label) for _, label in videos})
  texts = {'classInd.txt': ''.join(f'{i} {c}\n' for i, c in enumerate(classes, 1))}
  for split in SPLITS:
    texts[f'testlist0{split}.txt'] = ''.join(
      f'{_camel(label)}/{number:05d}.mp4\n'
      for index, (number, label) in enumerate(videos)
      if _is_test(index, split)
    )
  return {f'eval/ucf101/{name}': text for name, text in texts.items() if text}


def _camel(label: str) -> str:
  """Returns 'MovesLeft' of 'moves left'."""
  return ''.join(word.capitalize() for word in label.split())


def _hmdb51(videos: Sequence[tuple[int, str]]) -> dict[str, str]:
  """The first action of a clip as its class; a file a class and split."""
  lines: dict[str, str] = {}
  for split in SPLITS:
    for index, (number, label) in enumerate(videos):
      mark = TEST if _is_test(index, split) else (TRAIN, NEITHER)[index % 2]
      path = f'eval/hmdb51/{label.replace(" ", "_")}_test_split{split}.txt'
      lines[path] = lines.get(path, '') + f'{number:05d}.mp4 {mark} \n'
  return lines
