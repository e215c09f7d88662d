"""Zero-shot video QA: a free answer, which a judge holds against the reference.

Published forms, each of them for every data set:

    test_q.json + test_a.json   joined by question_id (ActivityNet-QA, Yu et al. 2019;
                                the test sets of Video-LLaVA)
    test_qa.json                id, video_id (an integer), question, answer (MSVD-QA,
                                MSRVTT-QA, Xu et al. 2017)
    <task>_qa.json              video_name, question_id, question, answer (the
                                reference), or `video` in place of the name
    Test_frameqa_question.csv   of TGIF-QA (Jang et al. 2017): gif_name, question,
                                answer, type, key, ...; tabs between them
    test-*.parquet              the same columns, as mirrors have them

Without a judge there are three shares: answers that are the reference, that are it but
for case, articles and punctuation, and that hold its words side by side.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from vlm_rlaif_jax.data import examples, fields
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.evals.benchmarks import sources
from vlm_rlaif_jax.evals.benchmarks.benchmark import (
  Benchmark,
  Locate,
  Outputs,
  Tools,
  correct_values,
  score_values,
)
from vlm_rlaif_jax.evals.judges.cases import ANSWER
from vlm_rlaif_jax.evals.qa import normalize
from vlm_rlaif_jax.evals.records import Item, Values
from vlm_rlaif_jax.settings.eval import EvalRun

ID = ('question_id', 'id', 'qid')
VIDEO = ('video_name', 'video_id', 'video')
GIF, GIF_ID = 'gif_name', 'key'  # of TGIF-QA as it is published
GIF_KINDS = ('object', 'number', 'color', 'location')  # what its `type` stands for
# What the integers of ActivityNet-QA's `type` stand for.
ACTIVITYNET_KINDS = (
  *('motion', 'spatial relation', 'temporal relation'),
  *('yes/no', 'color', 'object', 'location', 'number', 'other'),
)


def read(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun
) -> list[Item]:
  """Returns the questions of one file, or of a file of questions and one of answers."""
  del settings
  if files[0].suffix.lower() == sources.PARQUET or len(files) < 2:
    rows = sources.read_parts(files)
  else:
    rows = _joined(sources.read(files[0]), files[0], files[1])
  items = []
  for number, (where, row) in enumerate(rows):
    if GIF in row:
      row = _of_gif(row)
    name = sources.identity(row, VIDEO, where)
    question = sources.text(row, 'question', where)
    has_id = sources.has(row, ID)
    items.append(
      Item(
        key=sources.identity(row, ID, where) if has_id else f'{name}_{number}',
        video=locate(name),
        video_name=name,
        prompts=(question,),
        reference=sources.text(row, 'answer', where),
        fields={'kind': kind_of(row, question)},
        location=where,
      )
    )
  examples.check_distinct(ID[0], ((item.key, item.location) for item in items))
  return items


def _of_gif(row: dict[str, Any]) -> dict[str, Any]:
  """Returns a row of TGIF-QA with the names of fields that others have."""
  kind = str(row.get('type'))
  named = {'video_name': row[GIF], 'question_id': row.get(GIF_ID), **row}
  if kind.isdigit() and int(kind) < len(GIF_KINDS):
    named['type'] = GIF_KINDS[int(kind)]
  return named


def kind_of(row: dict[str, Any], question: str) -> str:
  """Returns the type of a question, or its first word, as MSVD-QA divides them."""
  kind = row.get('type')
  if isinstance(kind, int) and 0 <= kind < len(ACTIVITYNET_KINDS):
    return ACTIVITYNET_KINDS[kind]
  if kind is not None:
    return str(kind)
  return question.split()[0].lower()


def _joined(
  questions: Sequence[sources.Row], path: pathlib.Path, other: pathlib.Path
) -> list[sources.Row]:
  """Returns questions with the fields of their answers."""
  answers: dict[str, sources.Row] = {}
  for where, row in sources.read(other):
    key = sources.identity(row, ID, where)
    if key in answers:
      raise DataError(f'{where}: question_id {key!r} is also that of {answers[key][0]}')
    answers[key] = (where, row)
  joined = []
  for where, row in questions:
    key = sources.identity(row, ID, where)
    if key not in answers:
      raise DataError(f'{where}: no answer to question_id {key!r} in {other}')
    place, answer = answers[key]
    for name in (*VIDEO, 'question', 'answer', 'type'):
      first, second = row.get(name), answer.get(name)
      if None not in (first, second) and str(first) != str(second):
        raise DataError(f'{where}: {name} {first!r} is {second!r} in {place}')
    joined.append((where, {**answer, **fields.present(row)}))
  if len({sources.identity(row, ID, where) for where, row in joined}) < len(answers):
    keys = {sources.identity(row, ID, where) for where, row in joined}
    key = next(key for key in answers if key not in keys)
    raise DataError(f'{answers[key][0]}: no question has question_id {key!r} in {path}')
  return joined


def score(items: Sequence[Item], outputs: Outputs, tools: Tools) -> Values:
  """Returns accuracy and score by the judge, and three shares that need none."""
  del tools
  values: dict[str, Sequence[float]] = {}
  if ANSWER in outputs.verdicts:
    verdicts = outputs.verdicts[ANSWER]
    values['accuracy'] = correct_values(verdicts)
    values['score'] = score_values(verdicts)
  answers = [texts[0] for texts in outputs.predictions]
  pairs = [(a, item.reference) for a, item in zip(answers, items, strict=True)]
  values['exact_match'] = [float(a.strip() == b.strip()) for a, b in pairs]
  values['normalized_match'] = [float(normalize(a) == normalize(b)) for a, b in pairs]
  values['contains_answer'] = [
    float(f' {normalize(b)} ' in f' {normalize(a)} ') for a, b in pairs
  ]
  return values


def _benchmark(name: str, task: str) -> Benchmark:
  """Returns the record of one data set.

  Args:
    task: its name in the reference's `<task>_qa.json`.
  """
  dataset = name.removesuffix('_qa')
  alone = dict.fromkeys((f'{name}.json', f'{task}_qa.json'))
  title = {'msvd': 'MSVD', 'msrvtt': 'MSRVTT', 'tgif': 'TGIF'}.get(dataset, dataset)
  own = (('Test_frameqa_question.csv',),) if dataset == 'tgif' else ()
  return Benchmark(
    name=name,
    family='qa',
    dataset=dataset,
    files=(
      *((file,) for file in alone),
      ('test_qa.json',),
      ('test_q.json', 'test_a.json'),
      (f'{title}_QA.json',),
      *own,
      *sources.parquet(name),
    ),
    read=read,
    score=score,
    best={'score': 5.0},
    headline=('accuracy', 'score', 'contains_answer'),
  )


ALL = (
  _benchmark('msvd_qa', 'msvd'),
  _benchmark('msrvtt_qa', 'msrvtt'),
  _benchmark('activitynet_qa', 'anet'),
  _benchmark('tgif_qa', 'tgif'),
)
