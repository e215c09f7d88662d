"""Writes the video world to disk, in the layout of the released data sets.

    videos/<split>/00012.mp4            H.264, read back like any user's video
    instructions/SFT_short.json         short answers, several rounds a clip
    instructions/SFT_long.json          long answers (with the planted faults), captions
                                        of clips, judgments
    instructions/PPO_init.json          long answers, with planted faults, too
    instructions/preference_prompts.json, RL_data.json
    eval/qa.json                        video_name, question_id, question, answer
    eval/describe.json                  the same, one description a clip
    truth.json                          the facts, by record id; no stage trains on it

Clips are numbered through all splits, so no two splits share one.
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil

import numpy as np
import tqdm

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.world import language, render, stills
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.settings.sections import WorldConfig

VERSION = 2  # of everything below; a change makes another world
SPLITS = ('sft', 'preference', 'rl', 'test')


def world_folder(
  parent: str | pathlib.Path, world: WorldConfig, frames: int
) -> pathlib.Path:
  """Where this world is, or will be: its settings are in the name."""
  text = json.dumps([VERSION, dataclasses.asdict(world), frames], sort_keys=True)
  return pathlib.Path(parent) / f'world-{hashlib.sha256(text.encode()).hexdigest()[:8]}'


def build(
  parent: str | pathlib.Path, world: WorldConfig, frames: int, progress: bool = True
) -> pathlib.Path:
  """The folder of the world, made first where it is missing; whole or not at all.

  Args:
    frames: sampled from a clip; the records of parts of clips count in them.
  """
  folder = world_folder(parent, world, frames)
  if folder.exists():
    return folder
  part = folder.with_name(folder.name + '.part')
  hosts.claim(part)
  for name in ('instructions', 'eval', 'videos'):  # of a run that was killed
    shutil.rmtree(part / name, ignore_errors=True)
  for name in ('instructions', 'eval', *(f'videos/{split}' for split in SPLITS)):
    (part / name).mkdir(parents=True)
  files: dict[str, list] = {}
  truth: dict[str, dict] = {}
  jobs = [
    (split, number) for split in SPLITS for number in range(getattr(world, split))
  ]
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    clips = pool.map(lambda job: _write_clip(part, world, *job), jobs)
    bar = tqdm.tqdm(
      zip(jobs, clips, strict=True),
      desc='video world',
      total=len(jobs),
      unit='clip',
      disable=not progress,
    )
    for (split, number), scene in bar:
      rng = np.random.default_rng([world.seed, 1, SPLITS.index(split), number])
      for file, row, known in records(world, split, number, scene, rng, frames):
        files.setdefault(file, []).append(row)
        if known is not None:
          truth[row['question_id' if 'question_id' in row else 'id']] = known
  for file, rows in files.items():
    (part / file).write_text(json.dumps(rows, indent=0), encoding='utf-8')
  (part / 'truth.json').write_text(json.dumps(truth), encoding='utf-8')
  (part / 'world.json').write_text(json.dumps(dataclasses.asdict(world), indent=2))
  (part / hosts.LOCK).unlink(missing_ok=True)
  os.replace(part, folder)
  return folder


def scene_of(world: WorldConfig, split: str, number: int) -> scenes.Scene:
  """The facts of one clip, from the seed alone."""
  rng = np.random.default_rng([world.seed, 0, SPLITS.index(split), number])
  return scenes.sample_scene(rng)


def _write_clip(folder: pathlib.Path, world: WorldConfig, split: str, number: int):
  scene = scene_of(world, split, number)
  path = folder / 'videos' / split / f'{number:05d}.mp4'
  render.write_mp4(render.render(scene), path)
  return scene


def records(world: WorldConfig, split: str, number: int, scene, rng, frames: int):
  """(file, row, truth or None) of every record about one clip."""
  video = f'videos/{split}/{number:05d}.mp4'
  name = f'{split}_{number:05d}'
  short = language.short_questions(scene, rng)
  long = language.long_questions(scene, rng)
  careless = lambda qa: faulty_answer(world, scene, qa, rng)

  def row(key, rounds, **more):
    messages = [
      {'from': role, 'value': text}
      for question, answer in rounds
      for role, text in (('human', question), ('gpt', answer))
    ]
    messages[0]['value'] = f'{prompts.VIDEO_MARK}\n{messages[0]["value"]}'
    return {'id': f'{name}_{key}', 'video': video, 'conversations': messages, **more}

  def known(qa):
    return {'facts': scene.facts(), 'span': qa.span, 'phase': qa.phase}

  if split == 'sft':
    rounds = [(qa.question, qa.answer) for qa in short[:6]]
    yield 'instructions/SFT_short.json', row('short', rounds), None
    rounds = [(qa.question, careless(qa)) for qa in long[:2]]
    yield 'instructions/SFT_long.json', row('long', rounds), None
    for phase in range(scenes.PHASES):
      clip = [int(p) * frames // scenes.PHASES for p in (phase, phase + 1)]
      rounds = [(prompts.load('tiny_caption'), language.caption(scene, phase))]
      captioned = row(f'clip{phase}', rounds, clip=clip)
      yield 'instructions/SFT_long.json', captioned, None
    story = language.narrative(scene) if rng.random() < 0.7 else ''
    if rng.random() < 0.1:
      rounds = (stills.judge_options(scene, long[-1], rng, story),)
    else:
      rounds = stills.judge_claims(scene, long[-1], rng, story, rounds=2)
    yield 'instructions/SFT_long.json', row('judge', rounds), None
  elif split == 'preference':
    for index, qa in enumerate(long):
      yield (
        'instructions/preference_prompts.json',
        row(f'q{index}', [(qa.question, '')]),
        known(qa),
      )
  elif split == 'rl':
    rounds = [(long[0].question, careless(long[0]))]
    yield 'instructions/PPO_init.json', row('init', rounds), None
    for index, qa in enumerate(long):
      yield (
        'instructions/RL_data.json',
        row(f'q{index}', [(qa.question, '')], uid=number * 8 + index),
        known(qa),
      )
  else:
    asked = list(itertools.chain(short[:6], [q for q in long if q.kind != 'describe']))
    for index, qa in enumerate(asked):
      yield 'eval/qa.json', _question(video, name, index, qa), known(qa)
    described = next(qa for qa in long if qa.kind == 'describe')
    yield 'eval/describe.json', _question(video, name, 'd', described), known(described)


def _question(video: str, name: str, index, qa: language.Qa) -> dict:
  return {
    'video_name': video,
    'question_id': f'{name}_{index}',
    'question': qa.question,
    'answer': qa.answer,
    'kind': qa.kind,
  }


def faulty_answer(world: WorldConfig, scene, qa: language.Qa, rng) -> str:
  """A long answer as a careless annotator gives it: the fault that RLAIF can repair."""
  assert qa.say is not None
  reported = scenes.altered(
    scene,
    rng,
    stays_to_motion=world.motion_bias,
    phantom=world.phantom_rate if qa.kind == 'describe' else 0.0,
  )
  return qa.say(reported) or qa.answer
