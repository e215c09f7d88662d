"""Draws what RLAIF changed: frames of a held-out clip, and two answers about it.

  python -m launch.train --config configs/ppo.py
  python -m examples.figure --run=runs/tiny --out=figure.png

Reads what the evaluation of a finished run left: the clips and the descriptions by the
SFT and the RLAIF model. Statements that the facts of the clip contradict are red.
Without `--question` the clip is the one whose SFT description has the most invented
claims among those that RLAIF describes in full and without an error; the last line says
how many there are.
"""

import json
import pathlib

import numpy as np
from absl import flags
from PIL import Image, ImageDraw, ImageFont

from launch import process
from vlm_rlaif_jax.data import prompts
from vlm_rlaif_jax.data.video import Video, read_frames
from vlm_rlaif_jax.data.world import folders
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.settings.build import UserError

_RUN = flags.DEFINE_string('run', 'runs/tiny', 'Folder of a finished tiny run.')
_OUT = flags.DEFINE_string('out', 'figure.png', 'Picture to write.')
_QUESTION = flags.DEFINE_string(
  'question', '', 'The question_id of a description; empty: see --help.'
)
_STRIP_FRAMES = flags.DEFINE_integer(
  'strip_frames', 6, 'Frames in the strip.', lower_bound=2
)

WIDTH, MARGIN, GAP = 1640, 28, 12  # pixels
TEXT, SMALL, LINE = 27, 21, 38
BLACK, GRAY, RED, GREEN = '#1f2328', '#656d76', '#c62828', '#1b7f3b'
SAMPLED = 12  # frames of a clip that the tiny models see

Part = tuple[str, str]  # text and its color


@process.one_line_errors
def main(argv: list[str]) -> None:
  process.reject_arguments(argv)
  run = pathlib.Path(_RUN.value)
  world, truth = open_world(run)
  pairs = paired(run)
  before, after = choose(pairs, truth, _QUESTION.value)
  shown = np.linspace(0, SAMPLED - 1, _STRIP_FRAMES.value).round().astype(int)
  frames = read_frames(Video((before['video_name'],)), world, SAMPLED)[shown]
  draw(frames, before, after, truth, note(pairs, truth)).save(_OUT.value)
  print(f'{_OUT.value}: {before["question_id"]}, {before["question"]}')
  print(note(pairs, truth))


def open_world(run: pathlib.Path) -> tuple[pathlib.Path, Truth]:
  """Returns the folder of a run's clips, and their facts."""
  summary = run / 'eval' / 'summary.json'
  lineage = json.loads(summary.read_text())['lineage'] if summary.is_file() else {}
  world = folders.folder_of_run(run, lineage)
  truth = Truth.load(world / 'truth.json') if world else None
  if world is None or truth is None:
    raise UserError(
      f'--run={run}: has no world-*/truth.json; expected the folder of a finished run '
      'on the built-in world, as runs/tiny'
    )
  return world, truth


def paired(run: pathlib.Path) -> list[tuple[dict, dict]]:
  """Returns the descriptions of SFT and of RLAIF of each question.

  Raises:
    UserError: they are of other questions, as of two evaluations.
  """
  sides = [{x['question_id']: x for x in answers(run, m)} for m in ('sft', 'rlaif')]
  before, after = sides
  if before.keys() != after.keys():
    raise UserError(
      f'{run / "eval"}: describe_sft.jsonl has {len(before)} questions and '
      f'describe_rlaif.jsonl {len(after)}, '
      f'{len(before.keys() & after.keys())} of them the same; evaluate both models '
      'together: configs/eval.py'
    )
  return [(before[key], after[key]) for key in before]


def answers(run: pathlib.Path, model: str) -> list[dict]:
  """Returns the descriptions that an evaluation kept, in their order."""
  path = run / 'eval' / f'describe_{model}.jsonl'
  if not path.is_file():
    raise UserError(f'{path}: no such file; run configs/eval.py first')
  return [json.loads(line) for line in path.read_text().splitlines()]


def choose(
  pairs: list[tuple[dict, dict]], truth: Truth, question_id: str
) -> tuple[dict, dict]:
  """Returns the two answers to a question, or those of the largest improvement."""
  if question_id:
    for pair in pairs:
      if pair[0]['question_id'] == question_id:
        return pair
    raise UserError(f'--question={question_id}: no description has this question_id')
  repaired = [pair for pair in pairs if is_right(pair[1], truth)]
  if not repaired:
    raise UserError('no description is without an error; name one with --question')
  return max(repaired, key=lambda pair: score(pair[0], truth).invented)


def score(row: dict, truth: Truth):
  return truth.score(row['question_id'], row['prediction'])


def is_right(row: dict, truth: Truth) -> bool:
  """Returns whether a description states every fact and nothing else."""
  counts = score(row, truth)
  return counts.invented == 0 and counts.recalled == counts.required


def note(pairs: list[tuple[dict, dict]], truth: Truth) -> str:
  """Returns how many descriptions are right: one clip does not stand for all."""
  right = [(is_right(before, truth), is_right(after, truth)) for before, after in pairs]
  return (
    f'Of {len(right)} held-out clips, {sum(b for b, _ in right)} are described in full '
    f'and without an error by SFT and {sum(a for _, a in right)} by RLAIF; '
    f'{sum(a and not b for b, a in right)} only by RLAIF, '
    f'{sum(b and not a for b, a in right)} only by SFT.'
  )


def colored(row: dict, truth: Truth, right: str) -> list[Part]:
  """Splits an answer into statements; those with an invented claim are red."""
  parts, start, invented = [], 0, 0
  for beginning in prompts.statements(row['prediction'], row.get('ended', True)):
    statement = beginning.rstrip(' .,;!?') + '.'  # a comma would leave it open
    counts = truth.score(row['question_id'], statement)
    color = RED if counts.invented > invented else right
    parts.append((beginning[start:].strip(), color))
    start, invented = len(beginning), counts.invented
  return parts


def draw(
  frames: np.ndarray, before: dict, after: dict, truth: Truth, footer: str
) -> Image.Image:
  """Returns the picture: frames `uint8[F, H, W, 3]`, question, answers, footer."""
  side = (WIDTH - 2 * MARGIN - GAP * (len(frames) - 1)) // len(frames)
  canvas = Image.new('RGB', (WIDTH, side + 1000), 'white')
  pen = ImageDraw.Draw(canvas)
  for number, frame in enumerate(frames):
    picture = Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST)
    corner = (MARGIN + number * (side + GAP), MARGIN)
    canvas.paste(picture, corner)
    pen.rectangle([*corner, corner[0] + side - 1, corner[1] + side - 1], outline=GRAY)
  y = MARGIN + side + GAP
  rows = (
    ('Question', [(before['question'], BLACK)]),
    ('After SFT', colored(before, truth, BLACK)),
    ('After RLAIF', colored(after, truth, GREEN)),
  )
  for label, parts in rows:
    pen.text((MARGIN, y), label, fill=GRAY, font=ImageFont.load_default(TEXT))
    y = write(pen, parts, MARGIN + 190, y, TEXT) + GAP
  y = write(pen, [(footer, GRAY)], MARGIN, y + GAP, SMALL)
  return canvas.crop((0, 0, WIDTH, y + MARGIN))


def write(
  pen: ImageDraw.ImageDraw, parts: list[Part], left: int, y: int, size: int
) -> int:
  """Writes words in their colors, line by line; returns where the next line starts."""
  font, x = ImageFont.load_default(size), float(left)
  for text, color in parts:
    for word in text.split():
      width = pen.textlength(f'{word} ', font=font)
      if x + width > WIDTH - MARGIN:
        x, y = float(left), y + LINE
      pen.text((x, y), word, fill=color, font=font)
      x += width
  return y + LINE


if __name__ == '__main__':
  process.run(main)
