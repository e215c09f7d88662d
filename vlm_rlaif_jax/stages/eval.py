"""Checkpoints side by side: zero-shot QA on held-out clips, and descriptions.

Every row keeps its id from question to score; nothing is joined by position.
"""

import collections
import dataclasses
import functools
import json
import pathlib
import time

import jax
import numpy as np

from vlm_rlaif_jax import decode
from vlm_rlaif_jax.config.stages import Eval, EvalRun
from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.data import examples, prompts, sources, tokens
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import descriptions, qa, statistics
from vlm_rlaif_jax.inference import Inference
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.train import artefacts, bases, flops, layouts, loop, report
from vlm_rlaif_jax.train.workspace import Workspace


def run(settings: EvalRun, workdir: str | pathlib.Path) -> dict:
  """Evaluates each model; leaves `summary.json` and the predictions."""
  space = Workspace(settings, workdir)
  truth = Truth.load(sources.locate(dataclasses.replace(space.data, train=''), 'truth'))
  rows = {name: _rows(space, settings, name) for name in ('qa', 'describe')}
  results, answered, held, meters = {}, {}, {}, {}
  for name in settings.eval.models:
    meter = flops.Meter()
    asked = _model(settings, space, name, rows, meter)
    held[name] = bases.held_bytes(asked.variables['params'], settings.quant)
    clock = time.perf_counter()
    predictions = {
      task: _predict(asked, settings, task, rows[task], name) for task in rows
    }
    meters[name] = meter.rates(time.perf_counter() - clock)
    answered[name] = _right(rows['qa'], predictions['qa'], truth)
    results[name] = _scores(rows, predictions, answered[name], truth)
    if hosts.is_first():
      for task, said in predictions.items():
        path = space.folder / f'{task}_{name}.jsonl'
        with path.open('w', encoding='utf-8') as file:
          for row in rows[task]:
            line = {**row, 'prediction': said[row['question_id']]}
            file.write(json.dumps(line) + '\n')
  changes = {}
  if {'sft', 'rlaif'} <= results.keys():
    clusters = [row['video_name'] for row in rows['qa']]
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
    'artefact': str(space.folder),
  }
  artefacts.write_summary(space.folder, summary)
  return summary


def _rows(space: Workspace, settings: EvalRun, task: str) -> list[dict]:
  """Questions: of the benchmark files, or of held-out videos of one training file."""
  data = space.data
  if data.train:
    items = sources.read(data, 'qa', space.skipped, held_out=True)
    if task == 'describe':
      return []
    return [
      {
        'question_id': f'{item.key}_{number}',
        'video_name': item.video.paths[0],
        'images': list(item.video.paths),
        'question': question,
        'answer': answer,
        'kind': 'held out',
      }
      for item in items
      if item.video
      for number, (question, answer) in enumerate(item.turns)
    ]
  path = sources.locate(data, task)
  rows = examples.read_rows(path)
  for index, row in enumerate(rows):
    for field in ('video_name', 'question_id', 'question', 'answer'):
      if not isinstance(row.get(field), str):
        raise examples.DataError(f'{path} row {index}: {field} must be a str')
  if settings.eval.clips:
    names = list(dict.fromkeys(row['video_name'] for row in rows))
    chosen = set(names[: settings.eval.clips])
    rows = [row for row in rows if row['video_name'] in chosen]
  return rows


def _video(row: dict) -> Video:
  return Video(tuple(row.get('images', (row['video_name'],))))


def _model(
  settings: EvalRun, space: Workspace, name: str, rows, meter: flops.Meter
) -> Inference:
  """One of base, sft, init, rlaif, ready to be asked."""
  base = bases.load(settings.base, settings.model)
  if name != 'base':
    base = bases.tuned(base, space.artefact('sft', settings.sft), settings.model)
  variables = {
    'params': bases.on_device(
      {'llama': base.params['llama']}, settings.model, space.mesh, held=settings.quant
    )
  }
  lora = None
  if name in ('init', 'rlaif'):
    stage = {'init': 'init', 'rlaif': 'ppo'}[name]
    folder = space.artefact(stage, getattr(settings, stage))
    adapter = artefacts.load(folder, stage, base.fingerprint)
    lora = bases.lora_of(adapter)
    where = layouts.adapter(settings.model, lora, space.mesh)
    variables['lora'] = sharding.put(adapter.parts['lora'], where)
  report.layout(space.folder / f'layout_{name}.txt', {name: variables})
  model = Vlm(settings.model, lora)
  seen = space.seen(model, base)
  videos = [_video(row) for task in rows.values() for row in task]
  bar = lambda title, unit: (
    lambda items, total: loop.progress(
      items, total, f'eval {name}: {title}', settings.log, unit
    )
  )
  if bad := seen.encode(videos, 'tokens', bar('see', 'video')):
    raise examples.DataError(next(iter(bad.values())))
  return Inference(
    model,
    variables,
    base.tokenizer,
    seen,
    space.data.buckets,
    settings.eval.batch,
    bar('answer', 'batch'),
    functools.partial(meter.asked, settings.model.llama, lora),
  )


def sampling(settings: Eval, task: str, eos: int) -> decode.Sampling:
  """How the answers of 'qa' or 'describe' are drawn."""
  long = task == 'describe'
  limit = settings.describe_tokens if long else settings.answer_tokens
  return decode.Sampling(limit, settings.temperature, eos=eos)


def _predict(asked: Inference, settings: EvalRun, task, rows, name) -> dict[str, str]:
  """question id -> answer."""
  if not rows:
    return {}
  template = settings.eval.template
  drawn = asked.generate(
    [tokens.encode_prompt(asked.tokenizer, row['question'], template) for row in rows],
    [_video(row) for row in rows],
    list(range(len(rows))),
    sampling(settings.eval, task, asked.tokenizer.eos),
    jax.random.key(settings.seed),
  )
  return {
    row['question_id']: prompts.answer_of(asked.tokenizer.decode(ids), template)
    for row, (ids,) in zip(rows, drawn, strict=True)
  }


def _right(rows, predictions, truth) -> list[float]:
  return [
    float(qa.is_right(row, predictions[row['question_id']], truth)) for row in rows
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
  known = [
    row for row in rows['describe'] if truth is not None and row['question_id'] in truth
  ]
  if known and truth is not None:
    scores = [
      truth.score(row['question_id'], predictions['describe'][row['question_id']])
      for row in known
    ]
    result |= {**descriptions.rates(scores), 'descriptions': len(scores)}
  return result
