"""Damaged and oversized pictures for which Pillow raises something else than OSError.

broken_chunk        a PNG with a chunk whose name is no name (SyntaxError)
decompression_bomb  a PNG of 400 million pixels (DecompressionBombError)

Right is what happens to every other bad sample: one line that names row and file, or
a row left out and counted.

  python -m tests.cases.picture_damaged OUT [CASE ...]
"""

import functools
import json
import pathlib

import numpy as np
from PIL import Image

from tests.cases import clips, commands

GOOD, BAD = 10, 3  # rows; each bad one has a folder, so that not all are held out


def broken_chunk(path: pathlib.Path) -> None:
  noise = np.random.default_rng(1).integers(0, 255, (400, 400, 3), np.uint8)
  Image.fromarray(noise).save(path)
  data = bytearray(path.read_bytes())
  second = data.index(b'IDAT', data.index(b'IDAT') + 4)
  data[second : second + 4] = b'\xa9\x8a\xbc\x07'
  path.write_bytes(data)


def decompression_bomb(path: pathlib.Path) -> None:
  Image.new('1', (20000, 20000)).save(path)


KINDS = {'broken_chunk': broken_chunk, 'decompression_bomb': decompression_bomb}


def make(out: pathlib.Path, kind: str) -> pathlib.Path:
  """Writes pictures and a data file with good and bad rows; returns the file."""
  rows = []
  for i in range(GOOD + BAD):
    name = f'good/{i}.png' if i < GOOD else f'{kind}_{i}/bad_{i}.png'
    (out / name).parent.mkdir(exist_ok=True)
    if i < GOOD:
      Image.fromarray(clips.draw_frame(i)).save(out / name)
    else:
      KINDS[kind](out / name)
    question = {'from': 'human', 'value': '<image>\nWhat is it?'}
    answer = {'from': 'gpt', 'value': 'A square.'}
    rows.append({'id': str(i), 'image': name, 'conversations': [question, answer]})
  file = out / f'{kind}.json'
  file.write_text(json.dumps(rows))
  return file


def check(out: pathlib.Path, kind: str, policy: str) -> str:
  file = make(out, kind)
  flags = ('--config.data.holdout=0.01', f'--config.data.on_bad_sample={policy}')
  result, summary = commands.train_sft(out, file.name, *flags)
  if policy == 'stop':
    return commands.refused_naming(result, {'the picture': r'bad_\d+\.png'}, file)
  if result.returncode:
    return f'{commands.outcome(result)}; right: the bad rows are left out'
  skipped = len(summary['skipped'])
  if BAD - 1 <= skipped <= BAD:  # one may be held out
    return ''
  return f'{skipped} rows were left out; right: {BAD}'


def cases(out: pathlib.Path) -> dict:
  return {
    f'{kind}_{policy}': functools.partial(check, out, kind, policy)
    for kind in KINDS
    for policy in ('stop', 'skip')
  }


if __name__ == '__main__':
  commands.main(cases)
