"""Video-based generative performance: five criteria, each scored 0 to 5 by a judge.

    generic_qa.json       video_name, Q, A         correctness, detail, context
    temporal_qa.json      video_name, Q, A         temporal
    consistency_qa.json   video_name, Q1, Q2, A    consistency of two answers

The files are those of Video-ChatGPT (Maaz et al. 2024). Its judge of consistency, and
the reference's, reads the first question twice; `eval.consistency` chooses.
"""

import functools
import math
import pathlib
from collections.abc import Sequence

from vlm_rlaif_jax.data import words
from vlm_rlaif_jax.evals.benchmarks import sources
from vlm_rlaif_jax.evals.benchmarks.benchmark import (
  Benchmark,
  Locate,
  Outputs,
  Tools,
  score_values,
)
from vlm_rlaif_jax.evals.judges.cases import GENERATIVE
from vlm_rlaif_jax.evals.records import Item, Values
from vlm_rlaif_jax.settings.eval import EvalRun


def read(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun, *, name: str
) -> list[Item]:
  """Returns the questions of `<name>_qa.json`; they have no ids of their own."""
  del settings
  questions = ('Q1', 'Q2') if name == 'consistency' else ('Q',)
  items = []
  for number, (where, row) in enumerate(sources.read(files[0])):
    video = sources.identity(row, 'video_name', where)
    items.append(
      Item(
        key=f'{video}_{number}',
        video=locate(video),
        video_name=video,
        prompts=tuple(sources.text(row, one, where) for one in questions),
        reference=sources.text(row, 'A', where),
        location=where,
      )
    )
  return items


def score(
  items: Sequence[Item], outputs: Outputs, tools: Tools, *, name: str
) -> Values:
  """Returns the scores of each criterion that was judged, and the words of answers."""
  del tools
  values: dict[str, Sequence[float]] = {
    criterion: score_values(outputs.verdicts[criterion])
    for criterion in GENERATIVE[name]
    if criterion in outputs.verdicts
  }
  counts = [sum(words.count(text) for text in texts) for texts in outputs.predictions]
  values['words'] = [
    count / len(item.prompts) for count, item in zip(counts, items, strict=True)
  ]
  return values


def _benchmark(name: str) -> Benchmark:
  """Returns the record of one file."""
  return Benchmark(
    name=name,
    family='generative',
    dataset='activitynet',
    files=((f'{name}_qa.json',),),
    read=functools.partial(read, name=name),
    score=functools.partial(score, name=name),
    best={**dict.fromkeys(GENERATIVE[name], 5.0), 'words': math.inf},
    headline=GENERATIVE[name],
    prompts=2 if name == 'consistency' else 1,
  )


ALL = tuple(_benchmark(name) for name in GENERATIVE)
