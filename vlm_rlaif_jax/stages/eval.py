"""Checkpoints side by side: zero-shot QA on held-out clips, and descriptions.

Own files may repeat an id, so a prediction is kept beside its question, not by id.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import time

import jax
import numpy as np

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.data import batches, examples, prompts, readers, tokens
from vlm_rlaif_jax.data.examples import Skipped
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import descriptions, qa, statistics
from vlm_rlaif_jax.evals.questions import Question, benchmark_question, own_questions
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.train import console, loop, shardings
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import adapters, artifacts, bases, placement


def run(settings: EvalRun, workdir: str | pathlib.Path) -> dict:
  """Evaluates each model; leaves `summary.json` and the predictions."""
  space = RunContext(settings, workdir)
  truth = Truth.load(readers.locate(dataclasses.replace(space.data, train=''), 'truth'))
  asked_of = {name: _questions(space, settings, name) for name in ('qa', 'describe')}
  _check_any(asked_of['qa'], space)
  results, answered, held, meters = {}, {}, {}, {}
  profiler = Profiler(settings.profile, space.folder, [])
  for name in settings.eval.models:
    meter = flops.Meter()
    asked, bad = _model(settings, space, name, asked_of, meter, profiler)
    if answered and bad:  # by one model and not by the next
      raise examples.DataError(next(iter(bad.values())))
    if not answered:
      asked_of = {
        task: _usable(part, asked, bad, settings.eval.template, space.skipped)
        for task, part in asked_of.items()
      }
      _check_any(asked_of['qa'], space)
    rows = {task: [one.row for one in part] for task, part in asked_of.items()}
    held[name] = placement.base_summary(asked.variables['params'], settings.quant)
    clock = time.perf_counter()
    predictions = {
      task: _predict(asked, settings, task, part) for task, part in asked_of.items()
    }
    meters[name] = meter.rates(time.perf_counter() - clock)
    answered[name] = _right(rows['qa'], predictions['qa'], truth)
    results[name] = _scores(rows, predictions, answered[name], truth)
    if hosts.is_first():
      for task, said in predictions.items():
        path = space.folder / f'{task}_{name}.jsonl'
        with path.open('w', encoding='utf-8') as file:
          for row, prediction in zip(rows[task], said, strict=True):
            file.write(json.dumps({**row, 'prediction': prediction}) + '\n')
  profiler.close()
  changes = {}
  if {'sft', 'rlaif'} <= results.keys():
    clusters = [one.row['video_name'] for one in asked_of['qa']]
    interval = statistics.paired_interval(answered['sft'], answered['rlaif'], clusters)
    changes['qa_change'] = (
      results['rlaif']['qa_accuracy'] - results['sft']['qa_accuracy']
    )
    changes['qa_change_interval'] = interval
  summary = {
    'stage': 'eval',
    'lineage': settings.lineage,
    **results,
    **changes,
    'bases': held,
    'meters': meters,
    'skipped': space.skipped.reasons,
    'artifact': str(space.folder),
  }
  artifacts.write_summary(space.folder, summary)
  return summary


def _questions(space: RunContext, settings: EvalRun, task: str) -> list[Question]:
  """Those of the benchmark files, or of held-out videos of one training file."""
  data = space.data
  if data.train:
    return own_questions(data, space.skipped) if task == 'qa' else []
  path = readers.locate(data, task)
  read = [
    space.skipped.attempt(lambda row=row, where=where: benchmark_question(row(), where))
    for where, row in examples.read_rows(path)
  ]
  found = [one for one in read if one is not None]
  examples.check_distinct(
    'question_id', ((one.row['question_id'], one.where) for one in found)
  )
  if settings.eval.clips:
    names = list(dict.fromkeys(one.row['video_name'] for one in found))
    chosen = set(names[: settings.eval.clips])
    found = [one for one in found if one.row['video_name'] in chosen]
  return found


def _usable(
  questions: list[Question],
  asked: Generator,
  bad: dict[Video, str],
  template: str,
  skipped: Skipped,
) -> list[Question]:
  """Leaves out those without a readable video or with a too long text, or stops."""

  def check(one: Question) -> Question:
    if one.video in bad:
      raise examples.DataError(f'{one.where}: {bad[one.video]}')
    prompt = tokens.encode_prompt(asked.tokenizer, one.row['question'], template)
    try:
      batches.bucket(len(prompt), asked.buckets)
    except ValueError as error:
      raise examples.DataError(f'{one.where}: {error}') from None
    return one

  checked = (skipped.attempt(lambda one=one: check(one)) for one in questions)
  return [one for one in checked if one is not None]


def _check_any(questions: list[Question], space: RunContext) -> None:
  if not questions:
    held = f' (data.holdout={space.data.holdout} of the videos)'
    raise examples.DataError(
      f'{readers.locate(space.data, "qa")}: no usable question about a held-out video'
      f'{held if space.data.train else ""}'
    )


def _model(
  settings: EvalRun,
  space: RunContext,
  name: str,
  asked_of,
  meter: flops.Meter,
  profiler: Profiler,
) -> tuple[Generator, dict[Video, str]]:
  """One of base, sft, init, rlaif, ready to be asked; the videos it cannot see."""
  base = bases.load(settings.base, settings.model)
  if name != 'base':
    base = bases.tuned(base, space.artifact('sft', settings.inputs.sft), settings.model)
  variables = {
    'params': placement.on_device(
      {'llama': base.params['llama']}, settings.model, space.mesh, held=settings.quant
    )
  }
  lora = None
  if name in ('init', 'rlaif'):
    stage = {'init': 'init', 'rlaif': 'ppo'}[name]
    folder = space.artifact(stage, getattr(settings.inputs, stage))
    adapter = artifacts.load(folder, stage, base.fingerprint)
    lora = adapters.lora_of(adapter)
    where = shardings.adapter(settings.model, lora, space.mesh)
    variables['lora'] = sharding.put(adapter.parts['lora'], where)
  console.write_sharding_table(space.folder / f'layout_{name}.txt', {name: variables})
  model = Vlm(settings.model, lora)
  seen = space.seen(model, base)
  videos = [one.video for part in asked_of.values() for one in part]
  bar = lambda title, unit: (
    lambda items, total: loop.progress(
      items, total, f'eval {name}: {title}', settings.log, unit
    )
  )
  bad = seen.encode(videos, 'tokens', bar('see', 'video'))
  asked = Generator(
    model,
    variables,
    base.tokenizer,
    seen,
    space.data.buckets,
    settings.eval.batch,
    bar('answer', 'batch'),
    functools.partial(meter.asked, settings.model.llama, lora),
    profiler.batch,
  )
  return asked, bad


def sampling(settings: EvalConfig, task: str, eos: int) -> sampler.Sampling:
  """How the answers of 'qa' or 'describe' are drawn."""
  long = task == 'describe'
  limit = settings.describe_tokens if long else settings.answer_tokens
  return sampler.Sampling(limit, settings.temperature, eos=eos)


def _predict(
  asked: Generator, settings: EvalRun, task: str, questions: list[Question]
) -> list[str]:
  """The answer to each question, in their order."""
  if not questions:
    return []
  template = settings.eval.template
  drawn = asked.generate(
    [
      tokens.encode_prompt(asked.tokenizer, one.row['question'], template)
      for one in questions
    ],
    [one.video for one in questions],
    list(range(len(questions))),
    sampling(settings.eval, task, asked.tokenizer.eos),
    jax.random.key(settings.seed),
  )
  return [prompts.answer_of(asked.tokenizer.decode(ids), template) for (ids,) in drawn]


def _right(rows, predictions, truth) -> list[float]:
  return [
    float(qa.is_right(row, said, truth))
    for row, said in zip(rows, predictions, strict=True)
  ]


def _scores(rows, predictions, right, truth) -> dict:
  """Accuracy, its interval, its parts; rates of descriptions if facts are known."""
  kinds = collections.defaultdict(list)
  for row, value in zip(rows['qa'], right, strict=True):
    kinds[row.get('kind', 'all')].append(value)
  result: dict = {
    'n': len(right),
    'qa_accuracy': float(np.mean(right)),
    'qa_interval': statistics.clustered_interval(
      right, [row['video_name'] for row in rows['qa']]
    ),
    'qa_by_kind': {name: float(np.mean(v)) for name, v in sorted(kinds.items())},
  }
  scores = [
    truth.score(row['question_id'], said)
    for row, said in zip(rows['describe'], predictions['describe'], strict=True)
    if truth is not None and row['question_id'] in truth
  ]
  if scores:
    result |= {**descriptions.rates(scores), 'descriptions': len(scores)}
  return result
