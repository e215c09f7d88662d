"""What a judge is asked about answers, benchmark by benchmark; loads no JAX."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vlm_rlaif_jax.data.prompts import EOS, VIDEO_MARK
from vlm_rlaif_jax.data.rows import DataError
from vlm_rlaif_jax.evals.judges import prompts
from vlm_rlaif_jax.evals.records import Case

ANSWER = 'answer'  # criterion of short answers: right or wrong, and a score
OWN_CRITERION = 'correctness'
GENERATIVE = {  # benchmark -> criteria, each a number of the five
  'generic': ('correctness', 'detail', 'context'),
  'temporal': ('temporal',),
  'consistency': ('consistency',),
}
_QA = ('qa', 'msvd_qa', 'msrvtt_qa', 'activitynet_qa', 'tgif_qa')
CRITERIA: Mapping[str, tuple[str, ...]] = {
  **dict.fromkeys(_QA, (ANSWER,)),
  **GENERATIVE,
  'own': (OWN_CRITERION,),
}  # by benchmark; no judge reads the answers to others
READERS = ('endpoint', 'model', 'world')  # judges that read, and do not only compare


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
  """How answers are put to a judge; the settings of the same names of stage eval.

  Attributes:
    keep_placeholder: whether the placeholder of the video stands before a question.
    keep_special_tokens: whether an answer that ends by itself has the end marker.
    consistency: which questions the judge of consistency reads.
  """

  keep_placeholder: bool = False
  keep_special_tokens: bool = False
  consistency: Literal['both', 'first_twice'] = 'both'

  @classmethod
  def of(cls, choices: Mapping[str, Any]) -> 'Form':
    """Returns the form that a summary records; what it does not say is the default."""
    names = [field.name for field in dataclasses.fields(cls)]
    return cls(**{name: choices[name] for name in names if name in choices})

  @property
  def choices(self) -> dict[str, Any]:
    """The fields by name, for a summary."""
    return dataclasses.asdict(self)


def cases_of(
  benchmark: str, rows: Sequence[Mapping[str, Any]], form: Form
) -> list[Case]:
  """Returns the cases of stored answers, criterion by criterion, each for every row.

  Raises:
    DataError: a row has another number of prompts or answers than its criterion needs.
  """
  return [
    _case(benchmark, criterion, row, form)
    for criterion in CRITERIA.get(benchmark, ())
    for row in rows
  ]


def _case(benchmark: str, criterion: str, row: Mapping[str, Any], form: Form) -> Case:
  needed = 2 if criterion == 'consistency' else 1
  for name in ('prompts', 'answers'):
    if len(row[name]) != needed:
      raise DataError(
        f'{benchmark}, {row["key"]}: {criterion} needs {needed} {name}, '
        f'got {len(row[name])}'
      )
  questions = [_question(text, form) for text in row['prompts']]
  if criterion == 'consistency' and form.consistency == 'first_twice':
    questions[1] = questions[0]
  ended = row.get('ended', [True] * needed)
  answers = [
    text + EOS if form.keep_special_tokens and end else text
    for text, end in zip(row['answers'], ended, strict=True)
  ]
  case = Case(
    key=row['key'],
    criterion=criterion,
    questions=tuple(questions),
    reference=row['reference'],
    predictions=tuple(answers),
  )
  prompts.check(case)
  return case


def _question(question: str, form: Form) -> str:
  """Returns a question as the judge reads it."""
  return f'{VIDEO_MARK}\n{question}' if form.keep_placeholder else question
