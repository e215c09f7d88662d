"""A few public benchmarks about videos of two frames, and an evaluation by them."""

import dataclasses
import json

import numpy as np
from PIL import Image

from configs import models
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.settings.judge import JudgeConfig
from vlm_rlaif_jax.settings.sections import DataConfig, LogConfig

WORDS = ('red', 'blue', 'green', 'white', 'black')
PUBLIC = ('msvd_qa', 'generic', 'temporal', 'consistency', 'video_mme')


def public_data(root):
  """Writes four videos as frames, and annotations about five."""
  rng = np.random.default_rng(0)
  for video in range(4):
    folder = root / 'frames' / f'v_clip{video}'
    folder.mkdir(parents=True)
    for frame in range(2):
      picture = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
      Image.fromarray(picture).save(folder / f'{frame}.png')
  names = [f'clip{video}' for video in range(5)]
  files = {
    'msvd_qa.json': [
      {'video_name': name, 'question_id': 10 * i + k, 'question': f'Is it {word}?',
       'answer': 'yes'}
      for i, name in enumerate(names) for k, word in enumerate(('red', 'blue'))
    ],
    'generic_qa.json': [{'video_name': n, 'Q': 'What is it?', 'A': 'A dot.'}
                        for n in names],
    'temporal_qa.json': [{'video_name': n, 'Q': 'What then?', 'A': 'It goes.'}
                         for n in names],
    'consistency_qa.json': [
      {'video_name': n, 'Q1': 'What is it?', 'Q2': 'What goes?', 'A': 'A dot.'}
      for n in names
    ],
    'video_mme.json': [
      {'videoID': n, 'question_id': f'{n}-1', 'question': 'Which?', 'answer': 'B',
       'options': ['A. red', 'B. blue'], 'duration': 'short'}
      for n in names
    ],
  }  # fmt: skip
  texts = {name: json.dumps(rows) for name, rows in files.items()} | {
    'MSRVTT_JSFUSION_test.csv': 'key,vid_key,video_id,sentence\n'
    + ''.join(f'{n},{n},{n},a {WORDS[i]} dot\n' for i, n in enumerate(names)),
    'classInd.txt': '1 MoveLeft\n2 StayThere\n',
    'testlist01.txt': ''.join(
      f'{("MoveLeft", "StayThere")[i % 2]}/{n}.avi\n' for i, n in enumerate(names)
    ),
  }  # fmt: skip
  (root / 'eval').mkdir()
  for name, text in texts.items():
    (root / 'eval' / name).write_text(text)


def public_run(root, **more):
  settings = EvalConfig(
    models=('base',), benchmarks=PUBLIC, videos='frames/v_{name}/*', batch=8,
    answer_tokens=3, open_ended_tokens=3, **more,
  )  # fmt: skip
  return EvalRun(
    size='tiny', model=models.tiny(), log=LogConfig(progress=False), eval=settings,
    data=DataConfig(root=str(root), frames=12, buckets=(112,)),
  )  # fmt: skip


def families_run(root):
  """An evaluation by benchmarks of every family."""
  run = public_run(root)
  benchmarks = (*PUBLIC, 'msrvtt_retrieval', 'ucf101')
  videos = 'frames/v_{stem}/*'  # below no folder of a class
  settings = dataclasses.replace(
    run.eval, benchmarks=benchmarks, videos=videos, describe_tokens=8
  )
  return dataclasses.replace(run, eval=settings)


def judged_run(root):
  """An evaluation of a few questions, whose answers a model of the run judges."""
  run = public_run(root)
  return dataclasses.replace(
    run,
    eval=dataclasses.replace(run.eval, benchmarks=('msvd_qa',), batch=2),
    judge=JudgeConfig(kind='model', model='base', own_model_prompt='tiny_judge_answer'),
  )


def answered(folder):
  """By file, the rows that an evaluation left."""
  return {
    str(path.relative_to(folder)): [
      json.loads(x) for x in path.read_text().split('\n')[:-1]
    ]
    for path in sorted(folder.rglob('*.jsonl'))
  }
