"""Rows of a data file that mean something else than what the run makes of them.

Each data file has 20 good rows and then three of one kind (rows 20, 21 and 22), so that
the held-out share cannot hide them. `expected.json` says what is right for each file.

  python -m tests.cases.rows OUT [CASE ...]
"""

import functools
import json
import pathlib

from PIL import Image

from tests.cases import clips, commands

GOOD, ROWS = 20, 23
BAD_ROW = {'row 20, 21 or 22': r'\b2[0-2]\b'}
NO_ANSWER = {'the missing answer': r'\banswer|\bconversations\b'}


def row(
  index: int,
  question: str = '<video>\nWhat happens?',
  answer: str = 'The blue square moves right.',
  **fields,
) -> dict:
  """Returns a good row with `fields` added or replaced; None removes one."""
  human, gpt = {'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}
  whole = {'id': f'row-{index}', 'video': f'clips/{index % 4}.mp4'}
  whole |= {'conversations': [human, gpt], **fields}
  return {name: value for name, value in whole.items() if value is not None}


def videos_key(index: int) -> dict:
  """The files of `videos` do not exist, which shows whether it is read."""
  return row(index, video=None, videos=[f'clips/missing{index}.mp4'])


def mark_without_video(index: int) -> dict:
  """The question refers to a video, and the row has none."""
  return row(index, video=None)


def dangling_question(index: int) -> dict:
  """The last question has no answer; its target is the end of sequence alone."""
  more = {'from': 'human', 'value': 'And then?'}
  return row(index, conversations=[*row(index)['conversations'], more])


def unanswered_question(index: int) -> dict:
  """The only question has no answer."""
  return row(index, conversations=row(index)['conversations'][:1])


def empty_answer(index: int) -> dict:
  return row(index, answer='')


def blank_answer(index: int) -> dict:
  return row(index, answer=' \n ')


def surrogate(index: int) -> dict:
  """Half of a surrogate pair, as a string that was cut inside an emoji leaves it."""
  return row(index, answer='It is bad \ud83d here.')


def video_and_image(index: int) -> dict:
  """Two fields name what is to be seen; one of them is ignored."""
  return row(index, image='clips/picture.png')


def null_columns(index: int) -> dict:
  """What `datasets.Dataset.to_json` writes: every row has every column."""
  if index < GOOD:
    return row(index) | {'image': None}
  return row(index, '<image>\nWhat is it?', image='clips/picture.png') | {'video': None}


REFUSED = {  # kind of row: what the line names beside the file and the row
  videos_key: {'videos, or the missing file': r'\bvideos\b|missing\d+\.mp4'},
  mark_without_video: {'the video': r'\bvideo\b'},
  dangling_question: NO_ANSWER,
  unanswered_question: NO_ANSWER,
  empty_answer: NO_ANSWER,
  blank_answer: NO_ANSWER,
  surrogate: {'the character': 'surrogate|unicode|utf|character'},
  video_and_image: {'both fields': 'video.*image|image.*video'},
}


def make(out: pathlib.Path) -> dict[str, dict]:
  """Writes clips, data files and `expected.json`; returns what that contains."""
  (out / 'clips').mkdir(exist_ok=True)
  for i in range(4):
    clips.encode(out / 'clips' / f'{i}.mp4', 24 + i, *clips.H264)
  Image.fromarray(clips.draw_frame(1)).save(out / 'clips' / 'picture.png')
  good = [row(i) for i in range(GOOD)]
  texts, expected = {}, {}
  for kind, names in REFUSED.items():
    name = kind.__name__
    texts[name] = json.dumps(good + [kind(i) for i in range(GOOD, ROWS)])
    expected[name] = {'outcome': 'refused', 'line_names': BAD_ROW | names}
  texts['good'] = json.dumps(good)
  texts['null_columns'] = json.dumps([null_columns(i) for i in range(ROWS)])
  texts['json_lines'] = '\n'.join(json.dumps(x) for x in good) + '\n'
  texts['bom'] = '\ufeff' + json.dumps(good)
  for name in ('good', 'null_columns', 'json_lines', 'bom'):
    rows = ROWS if name == 'null_columns' else GOOD
    expected[name] = {'outcome': 'read', 'rows': rows}
  expected['json_lines']['or_line_names'] = {'the suffix .jsonl': r'\.jsonl\b'}
  for name, text in texts.items():
    (out / f'{name}.json').write_text(text, encoding='utf-8')
  (out / 'expected.json').write_text(json.dumps(expected, indent=2) + '\n')
  return expected


def check(out: pathlib.Path, name: str, expected: dict) -> str:
  path = out / f'{name}.json'
  result, summary = commands.train_sft(out, path.name, '--config.data.holdout=0.01')
  if expected['outcome'] == 'refused':
    return commands.refused_naming(result, expected['line_names'], path)
  if result.returncode:
    names = expected.get('or_line_names')
    if names and not commands.refused_naming(result, names, path):
      return ''
    return f'{commands.outcome(result)}; right: {expected["rows"]} rows are read'
  held_out = expected['rows'] - sum(summary['samples'].values())
  if summary['skipped'] or not 0 <= held_out <= 2:
    return f'{held_out} of {expected["rows"]} rows are missing'
  return ''


def cases(out: pathlib.Path) -> dict:
  expected = make(out)
  return {
    name: functools.partial(check, out, name, expected[name]) for name in expected
  }


if __name__ == '__main__':
  commands.main(cases)
