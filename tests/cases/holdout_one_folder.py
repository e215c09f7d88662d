"""100 single pictures in one folder: the held-out share has to be about a tenth.

A share drawn by folder suits the frames of one video. Data sets of single pictures
often have one folder, and then all of it would be held out or nothing: of the folder
`images` nothing, of `set15` everything.

  python -m tests.cases.holdout_one_folder OUT [CASE ...]
"""

import functools
import json
import pathlib

import numpy as np
from PIL import Image

from tests.cases import commands

ROWS, SHARE = 100, 0.1


def make(out: pathlib.Path, folder: str) -> str:
  """Writes pictures and a data file; returns the name of the file."""
  (out / folder).mkdir(exist_ok=True)
  rows = []
  for i in range(ROWS):
    noise = np.random.default_rng(i).integers(0, 255, (48, 48, 3), np.uint8)
    Image.fromarray(noise).save(out / folder / f'{i:06d}.jpg')
    question = {'from': 'human', 'value': '<image>\nWhat is it?'}
    conversation = [question, {'from': 'gpt', 'value': f'Picture {i}.'}]
    image = f'{folder}/{i:06d}.jpg'
    rows.append({'id': str(i), 'image': image, 'conversations': conversation})
  (out / f'{folder}.json').write_text(json.dumps(rows))
  return f'{folder}.json'


def check(out: pathlib.Path, folder: str) -> str:
  holdout = f'--config.data.holdout={SHARE}'
  result, summary = commands.train_sft(out, make(out, folder), holdout)
  right = f'right: about {ROWS * SHARE:.0f} of {ROWS} pictures are held out'
  if result.returncode:
    return f'{commands.outcome(result)}; {right}'
  held_out = ROWS - sum(summary['samples'].values())
  return '' if 2 <= held_out <= 25 else f'{held_out} pictures are held out; {right}'


def cases(out: pathlib.Path) -> dict:
  return {name: functools.partial(check, out, name) for name in ('images', 'set15')}


if __name__ == '__main__':
  commands.main(cases)
