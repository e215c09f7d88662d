"""Judges the answers to a benchmark, and keeps every verdict beside them.

The file of verdicts is written as a whole; whether a verdict costs a request is the
judge's own matter, which remembers those that it gave.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark, row_of
from vlm_rlaif_jax.evals.judges import cases, choose, files, names, wins
from vlm_rlaif_jax.evals.records import Case, Item, Judge, Verdict
from vlm_rlaif_jax.evals.summaries import CONTROLS
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.settings.eval import OWN, EvalRun

Verdicts = dict[str, list[Verdict]]
"""By criterion, a verdict for each item."""


class DeviceJudge:
  """The functions by which a model of the run judges, with the videos in sight.

  Args:
    generator: of the model; it has encoded the videos.
    videos: by the key of an item, its video; changed for each benchmark.
  """

  def __init__(
    self, generator: Generator, settings: EvalRun, videos: Mapping[str, Video]
  ):
    self.generator, self.settings, self.videos = generator, settings, videos

  def contents(self, case: Case) -> str:
    """Returns what stands for the files that the model reads of a case."""
    return self.generator.contents(self.videos[case.key])

  def log_odds(self, cases: Sequence[Case], prompts: Sequence[str]) -> np.ndarray:
    """Returns log p(Yes) - log p(No); NaN where the prompt is too long."""
    tokenizer = self.generator.tokenizer
    ids = (tokenizer.option('Yes'), tokenizer.option('No'))
    result = np.full(len(cases), math.nan)
    encoded, fitting = self._fitting(prompts)
    videos = [self.videos[cases[i].key] for i in fitting]
    result[fitting] = self.generator.log_odds(encoded, videos, ids)
    return result

  def generate(self, cases: Sequence[Case], prompts: Sequence[str]) -> list[str]:
    """Returns what the model writes; '' where the prompt is too long."""
    tokenizer, settings = self.generator.tokenizer, self.settings
    result = [''] * len(cases)
    encoded, fitting = self._fitting(prompts, settings.eval.answer_tokens)
    outputs = self.generator.generate(
      encoded,
      [self.videos[cases[i].key] for i in fitting],
      fitting,
      sampler.Sampling(settings.eval.answer_tokens, 0.0, eos=tokenizer.eos),
      jax.random.key(settings.seed),
    )
    for index, (ids,) in zip(fitting, outputs, strict=True):
      result[index] = tokenizer.decode(ids)
    return result

  def _fitting(
    self, prompts: Sequence[str], reply: int = 0
  ) -> tuple[list[np.ndarray], list[int]]:
    """Returns the prompts that fit a bucket, and their numbers.

    Args:
      reply: tokens for which the network has to have room as well.
    """
    model, frames = self.settings.model, self.settings.data.frames
    room = model.llama.max_positions - frames - model.vision.patches - reply
    buckets = [size for size in self.generator.buckets if size <= room]
    encoded, fitting = [], []
    for number, text in enumerate(prompts):
      ids = tokens.encode_prompt(self.generator.tokenizer, text)
      if len(ids) <= max(buckets, default=0):
        encoded.append(ids)
        fitting.append(number)
    return encoded, fitting


def own_model(
  generator: Generator,
  weights: Mapping[str, str],
  settings: EvalRun,
  videos: Mapping[str, Video],
) -> choose.OwnModel:
  """Returns a model of the run as a judge needs it.

  Args:
    weights: fingerprints of its parts.
    videos: as in `DeviceJudge`.
  """
  judge = DeviceJudge(generator, settings, videos)
  fingerprint = '-'.join(weights.values())
  return choose.OwnModel(
    fingerprint, judge.log_odds, judge.generate, judge.contents, conditions(settings)
  )


def conditions(settings: EvalRun) -> dict[str, str]:
  """Returns the settings that verdicts of a model of the run depend on, by name.

  Weights, wording and videos are not among them.
  """
  data, judge = settings.data, settings.judge
  values = {
    'quant': json.dumps(dataclasses.asdict(settings.quant), sort_keys=True),
    'dtype': settings.model.dtype,
    'frames': str(data.frames),
    'aspect': data.aspect,
    'buckets': str(list(data.buckets)),  # a prompt over the last one has no verdict
  }
  if judge.own_model_by == 'generation':
    values['reply_tokens'] = str(settings.eval.answer_tokens)
  return values


def open_judge(
  settings: EvalRun,
  folder: pathlib.Path,
  truth: Truth | None,
  own_model: choose.OwnModel | None,
) -> Judge:
  """Returns the judge of a run.

  A model that several hosts share does not remember verdicts: all of them have to
  compute the same batches.
  """
  alone = jax.process_count() == 1
  return choose.open_judge(
    settings.judge,
    folder if alone or settings.judge.kind != 'model' else None,
    records=truth.records if truth else None,
    own_model=own_model,
  )


def judge_answers(
  judge: Judge,
  benchmark: Benchmark,
  items: Sequence[Item],
  rows: Sequence[Mapping[str, Any]],
  settings: EvalRun,
  folder: pathlib.Path,
  model: str,
) -> Verdicts:
  """Returns verdicts on the answers to a benchmark; {} where no judge reads them.

  Args:
    rows: of an `AnswerFile`, in the order of the items.
    folder: of the evaluation, where the verdicts are written, a row each.
    model: whose answers they are.
  """
  group = cases_of(benchmark, items, rows, settings)
  if not group:
    return {}
  verdicts = _verdicts(judge, group, on_devices=settings.judge.kind == 'model')
  if hosts.is_first():
    name = names.file_name(folder, judge.identity)
    path = files.verdicts_path(folder, benchmark.name, model, name)
    files.write_verdicts(path, group, verdicts, files.digests(rows, items))
  return by_criterion(items, group, verdicts)


def cases_of(
  benchmark: Benchmark,
  items: Sequence[Item],
  rows: Sequence[Mapping[str, Any]],
  settings: EvalRun,
) -> list[Case]:
  """Returns what the judge of a run is asked about answers; [] where it reads none.

  Answers to a file of one's own are compared with captions, so judges that only
  compare texts are not asked.
  """
  if benchmark.name == OWN and settings.judge.kind not in cases.READERS:
    return []
  form = cases.Form.of(dataclasses.asdict(settings.eval))
  # What is in the files of the benchmark now, not when the answer was stored.
  whole = [{**row, **row_of(item)} for item, row in zip(items, rows, strict=True)]
  return cases.cases_of(benchmark.name, whole, form)


def win_rates(
  judge: Judge,
  benchmark: Benchmark,
  items: Sequence[Item],
  rows: Mapping[str, Sequence[Mapping[str, Any]]],
  settings: EvalRun,
  folder: pathlib.Path,
) -> dict[str, dict[str, Any]]:
  """Returns by control how often the answer of RLAIF is better, asked in both orders.

  Nothing where no judge reads the answers.

  Args:
    rows: by model.
    folder: of the evaluation.
  """
  cases_by_model = {}
  for model in (*CONTROLS, 'rlaif'):
    if model in rows:
      each = cases_of(benchmark, items, rows[model], settings)
      cases_by_model[model] = {case.key: case for case in each}
  if not cases_by_model.get('rlaif'):
    return {}
  videos = {item.key: item.video_name for item in items}
  shared = _SharedJudge(judge, on_devices=settings.judge.kind == 'model')
  rates = {}
  for control in CONTROLS:
    if control in cases_by_model:
      pairs = wins.judge_pairs(shared, cases_by_model[control], cases_by_model['rlaif'])
      if hosts.is_first():
        name = names.file_name(folder, judge.identity)
        path = files.wins_path(folder, benchmark.name, control, name)
        both = (files.digests(rows[model], items) for model in (control, 'rlaif'))
        files.write_rows(path, wins.rows_of(pairs, *both))
      rates[control] = wins.win_rate(pairs, videos)
  return rates


@dataclasses.dataclass(frozen=True)
class _SharedJudge:
  """A judge whose verdicts all hosts have, whichever of them it runs on."""

  judge: Judge
  on_devices: bool

  @property
  def identity(self) -> Mapping[str, str]:
    return self.judge.identity

  def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
    """Returns a verdict for each case."""
    return _verdicts(self.judge, cases, on_devices=self.on_devices)


def _verdicts(
  judge: Judge, cases: Sequence[Case], *, on_devices: bool
) -> list[Verdict]:
  """Returns the verdicts; a judge that runs on no device runs on the first host."""
  if on_devices or jax.process_count() == 1:
    return judge.verdicts(cases)

  def own() -> list[dict]:
    if not hosts.is_first():
      return []
    return [dataclasses.asdict(verdict) for verdict in judge.verdicts(cases)]

  first, *_ = hosts.gather(hosts.together(own))
  return [Verdict(**values) for values in first]


def by_criterion(
  items: Sequence[Item], cases: Sequence[Case], verdicts: Sequence[Verdict]
) -> Verdicts:
  """Returns verdicts on cases as one for each item, criterion by criterion."""
  given = {(c.criterion, c.key): v for c, v in zip(cases, verdicts, strict=True)}
  missing = Verdict(error='no case')
  return {
    criterion: [given.get((criterion, item.key), missing) for item in items]
    for criterion in dict.fromkeys(case.criterion for case in cases)
  }
