"""Writes the video world to disk, in the layout of the released data sets.

    videos/<split>/00012.mp4            H.264, read back like any user's video
    instructions/SFT_short.json         short answers, several rounds a clip
    instructions/SFT_long.json          long answers (with the planted faults), captions
                                        of clips, judgments
    instructions/PPO_init.json          long answers, with planted faults, too
    instructions/preference_prompts.json, RL_data.json
    eval/qa.json                        video_name, question_id, question, answer
    eval/describe.json                  the same, one description a clip
    eval/<benchmark>/                   counterparts of public benchmarks: `benchmarks`
    truth.json                          the facts, by record id; no stage trains on it

Clips are numbered through all splits, so no two splits share one.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.world import (
  benchmarks,
  clips,
  folders,
  language,
  questions,
  texts,
)
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.clips import SPLITS
from vlm_rlaif_jax.data.world.questions import Qa
from vlm_rlaif_jax.settings.sections import WorldConfig


def build(
  parent: str | pathlib.Path, world: WorldConfig, frames: int, progress: bool = True
) -> pathlib.Path:
  """Returns the folder of the world; writes it first where it is missing.

  The folder is complete or absent, also after a kill.

  Args:
    frames: sampled from a clip; records of a part of a clip count in these.
  """
  folder = folders.world_folder(parent, world, frames)
  if folder.exists():
    return folder
  part = folder.with_name(folder.name + '.part')
  hosts.claim(part)

  # Folders, empty.
  for name in ('instructions', 'eval', 'videos'):  # of a run that was killed
    shutil.rmtree(part / name, ignore_errors=True)
  for name in ('instructions', 'eval', *(f'videos/{split}' for split in SPLITS)):
    (part / name).mkdir(parents=True)

  # Clips, and the records about each.
  files: dict[str, list] = {}
  truth: dict[str, dict] = {}
  test: list[scenes.Scene] = []
  bar = tqdm.tqdm(
    clips.clips_of(world), desc='video world', unit='clip', disable=not progress
  )
  with clips.written_from_the_end(part, world):
    for split, number in bar:
      scene = clips.scene_of(world, split, number)
      clips.write_clip(clips.clip_path(part, split, number), scene, 'start')
      if split == 'test':
        test.append(scene)
      rng = np.random.default_rng([world.seed, 1, SPLITS.index(split), number])
      for file, row, facts in records(world, split, number, scene, rng, frames):
        files.setdefault(file, []).append(row)
        if facts is not None:
          truth[row['question_id' if 'question_id' in row else 'id']] = facts

  # Files of records, then the name that says that all is there.
  for file, rows in files.items():
    (part / file).write_text(json.dumps(rows, indent=0), encoding='utf-8')
  truth |= _write_benchmarks(part, test, world.seed)
  (part / 'truth.json').write_text(json.dumps(truth), encoding='utf-8')
  (part / 'world.json').write_text(json.dumps(dataclasses.asdict(world), indent=2))
  (part / hosts.LOCK).unlink(missing_ok=True)
  os.replace(part, folder)
  return folder


def _write_benchmarks(
  folder: pathlib.Path, test: Sequence[scenes.Scene], seed: int
) -> dict[str, dict]:
  """Writes the counterparts of public benchmarks; returns the facts of their records.

  Args:
    test: scenes of the test clips.
  """
  texts, truth = benchmarks.files(test, seed)
  for file, text in texts.items():
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text, encoding='utf-8')
  return truth


Record = tuple[str, dict[str, Any], dict[str, Any] | None]


def records(
  world: WorldConfig,
  split: str,
  number: int,
  scene: scenes.Scene,
  rng: np.random.Generator,
  frames: int,
) -> Iterator[Record]:
  """Yields (file, row, facts or None) of every record about one clip."""
  short = questions.short_questions(scene, rng)
  long = questions.long_questions(scene, rng)
  video = f'videos/{split}/{number:05d}.mp4'
  name = f'{split}_{number:05d}'

  def row(key: str, rounds: Sequence[tuple[str, str]], **more: Any) -> dict[str, Any]:
    messages = [
      {'from': role, 'value': text}
      for question, answer in rounds
      for role, text in (('human', question), ('gpt', answer))
    ]
    messages[0]['value'] = f'{prompts.VIDEO_MARK}\n{messages[0]["value"]}'
    return {'id': f'{name}_{key}', 'video': video, 'conversations': messages, **more}

  def facts(qa: Qa) -> dict[str, Any]:
    return {'facts': scene.facts(), 'span': qa.span, 'phase': qa.phase}

  if split == 'sft':
    yield from _sft_records(world, scene, short, long, rng, frames, row)
  elif split == 'preference':
    for index, qa in enumerate(long):
      if qa.kind not in world.preference_kinds:
        continue
      prompt = row(f'q{index}', [(qa.question, '')])
      yield 'instructions/preference_prompts.json', prompt, facts(qa)
  elif split == 'rl':
    rounds = [(long[0].question, faulty_answer(world, scene, long[0], rng))]
    yield 'instructions/PPO_init.json', row('init', rounds), None
    for index, qa in enumerate(long):
      if qa.kind not in world.rl_kinds:
        continue
      uid = number * 8 + index
      prompt = row(f'q{index}', [(qa.question, '')], uid=uid)
      yield 'instructions/RL_data.json', prompt, facts(qa)
  else:
    benchmark = short[:6] + [qa for qa in long if qa.kind != 'describe']
    for index, qa in enumerate(benchmark):
      yield 'eval/qa.json', _question(video, name, index, qa), facts(qa)
    describe = next(qa for qa in long if qa.kind == 'describe')
    yield 'eval/describe.json', _question(video, name, 'd', describe), facts(describe)


def _sft_records(
  world: WorldConfig,
  scene: scenes.Scene,
  short: Sequence[Qa],
  long: Sequence[Qa],
  rng: np.random.Generator,
  frames: int,
  row: Callable[..., dict[str, Any]],
) -> Iterator[Record]:
  # Short answers, long answers with the planted faults.
  rounds = [(qa.question, qa.answer) for qa in short[:6]]
  yield 'instructions/SFT_short.json', row('short', rounds), None
  rounds = [(qa.question, faulty_answer(world, scene, qa, rng)) for qa in long[:2]]
  yield 'instructions/SFT_long.json', row('long', rounds), None
  # Captions of clips of one phase.
  for phase in range(scenes.PHASES if world.clip_captions else 0):
    clip = [int(p) * frames // scenes.PHASES for p in (phase, phase + 1)]
    rounds = [(prompts.load('tiny_caption'), language.caption(scene, phase))]
    caption = row(f'clip{phase}', rounds, clip=clip)
    yield 'instructions/SFT_long.json', caption, None
  # Judgments, mostly with the narrative.
  story = language.narrative(scene) if rng.random() < 0.7 else ''
  if rng.random() < 0.1:
    judgments = (texts.judge_options(scene, long[-1], rng, story),)
  else:
    judgments = texts.judge_claims(scene, long[-1], rng, story, rounds=2)
  yield 'instructions/SFT_long.json', row('judge', judgments), None


def _question(video: str, name: str, index: int | str, qa: Qa) -> dict[str, str]:
  return {
    'video_name': video,
    'question_id': f'{name}_{index}',
    'question': qa.question,
    'answer': qa.answer,
    'kind': qa.kind,
  }


def faulty_answer(
  world: WorldConfig, scene: scenes.Scene, qa: Qa, rng: np.random.Generator
) -> str:
  """Returns a long answer with the planted faults, which RLAIF can repair.

  The answer is that of a careless annotator, who reports motion where there is none and
  objects that do not exist, or of a pipeline that flips a video and not its text.
  """
  assert qa.answer_for is not None
  is_flipped = world.flip_rate > 0 and rng.random() < world.flip_rate
  reported = scenes.corrupt_scene(
    scenes.flip(scene, world.flip_axes) if is_flipped else scene,
    rng,
    stays_to_motion=world.motion_bias,
    phantom=world.phantom_rate if qa.kind == 'describe' else 0.0,
  )
  return qa.answer_for(reported) or qa.answer
