"""What a summary says of a benchmark: who answered, who judged, and the numbers."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vlm_rlaif_jax.evals import predictions, statistics, summaries
from vlm_rlaif_jax.evals.benchmarks import own
from vlm_rlaif_jax.evals.benchmarks.benchmark import (
  Benchmark,
  Outputs,
  Predictions,
  Tools,
)
from vlm_rlaif_jax.evals.benchmarks.preparation import Prepared
from vlm_rlaif_jax.evals.judges import files
from vlm_rlaif_jax.evals.judges.cases import GENERATIVE
from vlm_rlaif_jax.evals.judges.verdict_text import HIGHEST
from vlm_rlaif_jax.evals.judging import Verdicts
from vlm_rlaif_jax.evals.records import Item, Values
from vlm_rlaif_jax.inference.text_encoder import TextEncoder
from vlm_rlaif_jax.settings.eval import EvalRun
from vlm_rlaif_jax.weights.text_towers import TextTower

Rows = Sequence[Mapping[str, Any]]

REASONS = 20  # why videos are missing, that a summary keeps
FIVE = 'generative'  # the mean of its criteria, beside the benchmarks it is made of


@dataclasses.dataclass(frozen=True)
class Scored:
  """What one benchmark gave, model by model.

  Attributes:
    items: that were asked about.
    values: by model and metric, a value an item.
    entry: what the summary says.
  """

  items: Sequence[Item]
  values: Mapping[str, Values]
  entry: dict[str, Any]


def text_encoder(
  tower: TextTower | None, mesh: jax.sharding.Mesh, settings: EvalRun
) -> TextEncoder | None:
  """Returns what encodes texts by a tower; None where nothing compares any."""
  if tower is None:
    return None
  return TextEncoder(
    tower.cfg,
    tower.joint,
    tower.params,
    tower.tokenizer,
    mesh,
    settings.text_scores.text_batch,
  )


def predictions_of(rows: Rows) -> list[tuple[str, ...]]:
  """Returns the answers in rows of an `AnswerFile`."""
  return [tuple(row['answers']) for row in rows]


def score(
  benchmark: Benchmark,
  items: Sequence[Item],
  rows: Mapping[str, Rows],
  verdicts: Mapping[str, Verdicts],
  tools: Tools,
  rewards: Mapping[str, Sequence[float]] | None = None,
) -> Scored:
  """Returns the numbers of the models on a benchmark.

  Args:
    rows: by model, the rows of its answers, in the order of the items.
    verdicts: by model.
    rewards: by model, of its answers; None where no reward model scores them.
  """
  values: dict[str, Values] = {}
  models: dict[str, Any] = {}
  answers: dict[str, Predictions] = {}
  for model, part in rows.items():
    has_options = bool(part) and all('options' in row for row in part)
    answers[model] = predictions_of(part)
    outputs = Outputs(
      predictions=answers[model],
      verdicts=verdicts.get(model, {}),
      options=[row['options'] for row in part] if has_options else (),
      rewards=(rewards or {}).get(model, ()),
    )
    values[model] = benchmark.score(items, outputs, tools)
    models[model] = summaries.metrics(benchmark, items, values[model])
    for name, number in benchmark.numbers(items, outputs, tools).items():
      models[model][name] = dataclasses.asdict(number)
  entry = {
    'family': benchmark.family,
    'items': len(items),
    'videos': len({item.video_name for item in items}),
    'headline': list(benchmark.headline),
    'scores': list(benchmark.best),
    'models': models,
    'changes': summaries.changes(benchmark, items, values, answers),
    'answers': {
      model: files.digest_of_all(files.digests(part, items))
      for model, part in rows.items()
    },
  }
  if benchmark.family == 'own':
    entry['examples'] = own.examples(items, rows)
  return Scored(items, values, entry)


def origin(
  prepared: Prepared,
  judge: dict[str, Any] | None,
  run: EvalRun,
  tower: TextTower | None = None,
) -> dict[str, Any]:
  """Returns where the items of a benchmark are from, and what was chosen for it.

  Args:
    judge: what `judges.usage.collect` says; None where no judge read the answers.
    tower: that compares texts, where one does.
  """
  settings, benchmark = run.eval, prepared.benchmark
  choices: dict[str, Any] = {
    'split': settings.split,
    'template': settings.template,
    'temperature': settings.temperature,
    'tokens': predictions.limits(settings, benchmark),
    'frames': run.data.frames,
  }
  if benchmark.family in ('qa', 'generative', 'own'):
    choices |= {
      'keep_special_tokens': settings.keep_special_tokens,
      'keep_placeholder': settings.keep_placeholder,
      'rounding': run.judge.rounding,
    }
  if benchmark.name == 'consistency':
    choices['consistency'] = settings.consistency
  if benchmark.family == 'choice':
    choices['choice_prompt'] = settings.choice_prompt
  if benchmark.encodes_texts:
    choices |= dataclasses.asdict(run.text_scores)
    if tower is not None:
      choices['text_encoder'] = tower.place
      choices['text_encoder_weights'] = tower.fingerprint
  return {
    'of': prepared.of,
    'rows': prepared.rows,
    'missing': list(prepared.missing),
    'missing_reasons': list(prepared.missing.values())[:REASONS],
    'files': {
      'names': [path.name for path in prepared.files],
      'fingerprint': prepared.fingerprint,
    },
    'judge': judge,
    'settings': choices,
  }


def entries(scored: Mapping[str, Scored]) -> dict[str, Any]:
  """Returns what the summary says by benchmark, with the mean of the five criteria."""
  result = {name: one.entry for name, one in scored.items()}
  mean = mean_of_five(scored)
  return {**result, FIVE: mean} if mean else result


def mean_of_five(parts: Mapping[str, Scored]) -> dict[str, Any] | None:
  """Returns the mean over the five criteria, each of them counting the same.

  The intervals resample videos over all of them. A model without any score of one of
  the five is left out, and a control that shares none with RLAIF; None where no model
  is left.

  Args:
    parts: by name, benchmarks of the generative family.
  """
  if set(GENERATIVE) - parts.keys():
    return None
  pairs = [(name, one) for name, criteria in GENERATIVE.items() for one in criteria]
  models = [
    model
    for model in parts['generic'].values
    if all(
      _has_score(parts[name].values.get(model, {}).get(criterion, ()))
      for name, criterion in pairs
    )
  ]
  if not models:
    return None
  clusters = [item.video_name for name, _ in pairs for item in parts[name].items]
  groups = {
    model: [np.asarray(parts[name].values[model][one], float) for name, one in pairs]
    for model in models
  }
  numbers = {}
  for model in models:
    numbers[model] = statistics.metric(_weighted(groups[model]), clusters, HIGHEST)
    entries = [parts[name].entry['models'][model][one] for name, one in pairs]
    for bound in ('low', 'high'):
      numbers[model][bound] = float(np.mean([entry[bound] for entry in entries]))
  return {
    'family': 'generative',
    'items': sum(len(parts[name].items) for name in GENERATIVE),
    'of': sum(parts[name].entry['of'] for name in GENERATIVE),
    'videos': len(set(clusters)),
    'headline': ['mean'],
    'scores': ['mean'],
    'judge': parts['generic'].entry['judge'],
    'models': {model: {'mean': number} for model, number in numbers.items()},
    'answers': {
      model: '-'.join(
        parts[name].entry['answers'].get(model, '') for name in GENERATIVE
      )
      for model in numbers
    },
    'changes': {
      control: {'mean': change}
      for control in summaries.CONTROLS
      if {control, 'rlaif'} <= groups.keys()
      and (change := _change(groups[control], groups['rlaif'], clusters))
    },
  }


def _has_score(values: Sequence[float] | np.ndarray) -> bool:
  """Returns whether any value is a number."""
  return not np.isnan(np.asarray(values, float)).all()


def _change(
  before: Sequence[np.ndarray], after: Sequence[np.ndarray], clusters: Sequence[str]
) -> dict[str, Any] | None:
  """Returns the change of the mean of five, over what has a score of both.

  None where a criterion has no such item: it would count as one that did not change.
  """
  groups = [b - a for a, b in zip(before, after, strict=True)]
  if not all(_has_score(group) for group in groups):
    return None
  steps = np.asarray(_weighted(groups))
  both = ~np.isnan(steps)
  videos, bounds = np.asarray(clusters)[both], (-HIGHEST, HIGHEST)
  return {
    'change': float(steps[both].mean()),
    'interval': statistics.clustered_interval(steps[both], list(videos), bounds),
    'n': int(both.sum()),
  }


def _weighted(groups: Sequence[np.ndarray]) -> list[float]:
  """Returns values whose mean, without NaN, is the mean of the means of groups.

  Args:
    groups: each with a value that is no NaN.
  """
  scored = [int(np.sum(~np.isnan(group))) for group in groups]
  total = sum(scored)
  return [
    float(value * total / len(groups) / count)
    for group, count in zip(groups, scored, strict=True)
    for value in group
  ]
