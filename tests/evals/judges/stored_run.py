"""A run with stored answers, made by hand."""

import json
import pathlib

FACTS = [['red circle', 0, 'moves left'], ['red circle', 1, 'stays']]
LONG = 'First the red circle moves left, then it stays.'


def write(folder: pathlib.Path, questions: int = 12) -> pathlib.Path:
  """Writes `<folder>/eval` of two benchmarks by two models; returns the folder.

  Of the short questions SFT has every third right, RLAIF two of three. The answers of
  'generic' are long, with facts in a world beside.
  """
  answers = {
    'sft': lambda i: 'yes' if i % 3 == 0 else 'no',
    'rlaif': lambda i: 'no' if i % 3 == 1 else 'Yes.',
  }
  long = {
    'sft': lambda i: 'First the red circle moves left.',
    'rlaif': lambda i: LONG,
  }
  for benchmark, reference, by_model in (
    ('msvd_qa', 'yes', answers),
    ('generic', LONG, long),
  ):
    for model, answer in by_model.items():
      rows = [
        {
          'key': f'{benchmark}_{i}', 'video_name': f'clip{i // 2}',
          'paths': [f'clip{i // 2}.mp4'], 'prompts': [f'Question {i}?'],
          'reference': reference, 'answers': [answer(i)], 'fields': {},
        }
        for i in range(questions)
      ]  # fmt: skip
      path = folder / 'eval' / benchmark / f'answers_{model}.jsonl'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  world = folder / 'world-1234'
  world.mkdir(exist_ok=True)
  truth = {
    **{
      f'generic_{i}': {
        'facts': FACTS, 'span': [fact[:2] for fact in FACTS], 'phase': -1,
      }
      for i in range(questions)
    },
    **{
      f'msvd_qa_{i}': {'facts': FACTS, 'span': [], 'phase': -1}
      for i in range(questions)
    },
  }  # fmt: skip
  (world / 'truth.json').write_text(json.dumps(truth))
  return folder
