"""Evaluates checkpoints side by side: zero-shot QA on held-out clips, and descriptions.

questions     of the benchmark files, or of the held-out videos of a training file
predictions   the answer of each model to each question
correctness   exact match, or facts where a data set has truth
scores        accuracy; hallucination rate, precision and recall of descriptions
intervals     95 %, over videos; of the change from SFT, and from the initialized policy
              that PPO starts from, to RLAIF, question by question
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.data import examples, readers
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import descriptions, predictions, qa, repair
from vlm_rlaif_jax.evals.questions import (
  Question,
  check_any,
  drop_long,
  drop_unreadable,
  read_questions,
)
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.eval import EvalRun
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.train import console, loop, shardings
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import adapters, artifacts, bases, placement

TASKS = ('qa', 'describe')


def run(settings: EvalRun, workdir: str | pathlib.Path) -> dict:
  """Evaluates each model; leaves `summary.json` and the predictions."""
  run = RunContext(settings, workdir)
  check_control(settings, run)
  truth = Truth.load(readers.locate(dataclasses.replace(run.data, train=''), 'truth'))

  # Questions.
  questions = {
    task: read_questions(run.data, task, run.skipped, settings.eval) for task in TASKS
  }
  check_any(questions['qa'], run.data, settings.eval)

  results, correct, base_summaries, meters = {}, {}, {}, {}
  profiler = Profiler(settings.profile, run.folder, [])
  for name in settings.eval.models:
    # Model, with visual tokens of the videos. Texts are checked before these.
    meter = flops.Meter()
    base = _load_base(settings, run, name)
    if not results:
      questions = _fitting(settings, run, base.tokenizer, questions)
    videos = [one.video for part in questions.values() for one in part]
    generator, bad = _load_model(settings, run, name, base, videos, meter, profiler)
    if not results:
      questions = {
        task: drop_unreadable(part, bad, run.skipped)
        for task, part in questions.items()
      }
      check_any(questions['qa'], run.data, settings.eval)
    elif bad:  # by one model and not by the next
      raise examples.DataError(next(iter(bad.values())))
    base_params = generator.variables['params']
    base_summaries[name] = placement.base_summary(base_params, settings.quant)

    # Predictions.
    start = time.perf_counter()
    outputs = {
      task: predictions.predict(generator, settings, task, part)
      for task, part in questions.items()
    }
    meters[name] = meter.rates(time.perf_counter() - start)

    # Correctness, and scores with their intervals.
    rows = {task: [one.row for one in part] for task, part in questions.items()}
    correct[name] = qa.correctness(rows['qa'], outputs['qa'], truth)
    results[name] = {
      **qa.scores(rows['qa'], correct[name]),
      **descriptions.scores(rows['describe'], outputs['describe'], truth),
    }
    if truth is not None:
      answers = outputs['qa']
      results[name] |= repair.long_answers(rows['qa'], answers, correct[name], truth)
      results[name]['faults'] = repair.faults(
        rows['qa'], answers, truth, settings.world.flip_axes
      )
    if hosts.is_first():
      for task, texts in outputs.items():
        path = run.folder / f'{task}_{name}.jsonl'
        predictions.write(path, questions[task], texts)
  profiler.close()

  summary = {
    'stage': 'eval',
    'lineage': settings.lineage,
    'split': settings.eval.split,
    'questions': {task: len(part) for task, part in questions.items()},
    'videos': len({one.row['video_name'] for one in questions['qa']}),
    **results,
    **_change(results, correct, questions['qa'], truth),
    'bases': base_summaries,
    'meters': meters,
    'rows': run.skipped.files,
    'skipped': run.skipped.reasons,
    'artifact': str(run.folder),
  }
  artifacts.write_summary(run.folder, summary)
  return summary


def check_control(settings: EvalRun, run: RunContext) -> None:
  """Raises ArtifactError if PPO started from another policy than the one beside it."""
  if not {'init', 'rlaif'} <= set(settings.eval.models):
    return
  places = {name: getattr(settings.inputs, name) for name in ('init', 'ppo')}
  folders = {name: run.artifact(name, place) for name, place in places.items()}
  started_from = artifacts.info(folders['ppo']).get('init')
  now = artifacts.info(folders['init']).get('fingerprint')
  if started_from not in (None, now):
    raise artifacts.ArtifactError(
      f'{folders["init"]}: has the initialized policy {now}, but {folders["ppo"]} '
      f'started from {started_from}: their difference would not be that of PPO. Run '
      'PPO again, or leave init out of --config.eval.models'
    )


def _fitting(
  settings: EvalRun,
  run: RunContext,
  tokenizer: Tokenizer,
  questions: Mapping[str, Sequence[Question]],
) -> dict[str, list[Question]]:
  """Returns the questions whose text fits, or stops, as the policy says."""
  fitting = {
    task: drop_long(
      part, tokenizer, run.data.buckets, settings.eval.template, run.skipped
    )
    for task, part in questions.items()
  }
  check_any(fitting['qa'], run.data, settings.eval)
  return fitting


def _change(
  results: Mapping[str, dict],
  correct: Mapping[str, Sequence[float]],
  questions: Sequence[Question],
  truth: Truth | None,
) -> dict[str, Any]:
  """Returns the changes of accuracy to RLAIF from SFT and from init, where they ran.

  Returns:
    qa_change, qa_change_interval: from SFT, over all questions: what the method does.
    qa_change_from_init, with its interval: what PPO does, which starts there.
    changes: from 'sft' and 'init', over all, long and short questions, and by kind.
  """
  if 'rlaif' not in results or not {'sft', 'init'} & results.keys():
    return {}
  rows = [one.row for one in questions]
  changes = {
    name: repair.change(rows, correct[name], correct['rlaif'], truth)
    for name in ('sft', 'init')
    if name in results
  }
  summary: dict[str, Any] = {'changes': changes}
  for before, name in (('sft', 'qa_change'), ('init', 'qa_change_from_init')):
    if before in changes:
      summary[name] = changes[before]['all']['change']
      summary[f'{name}_interval'] = changes[before]['all']['interval']
  return summary


def _load_base(settings: EvalRun, run: RunContext, name: str) -> bases.Base:
  """Returns the base of one of base, sft, init, rlaif; tuned where the model is."""
  base = bases.load(settings.base, settings.model)
  if name == 'base':
    return base
  return bases.tuned(base, run.artifact('sft', settings.inputs.sft), settings.model)


def _load_model(
  settings: EvalRun,
  run: RunContext,
  name: str,
  base: bases.Base,
  videos: Sequence[Video],
  meter: flops.Meter,
  profiler: Profiler,
) -> tuple[Generator, dict[Video, str]]:
  """Returns one of base, sft, init, rlaif, and why videos cannot be read."""
  # The decoder of the base goes on the devices.
  variables = {
    'params': placement.on_device(
      {'llama': base.params['llama']}, settings.model, run.mesh, quant=settings.quant
    )
  }

  # The adapter of a later stage.
  lora: LoraConfig | None = None
  if name in ('init', 'rlaif'):
    stage = {'init': 'init', 'rlaif': 'ppo'}[name]
    folder = run.artifact(stage, getattr(settings.inputs, stage))
    adapter = artifacts.load(folder, stage, base.fingerprint)
    lora = adapters.lora_of(adapter)
    layout = shardings.adapter(settings.model, lora, run.mesh)
    variables['lora'] = sharding.put(adapter.parts['lora'], layout)
  console.write_sharding_table(run.folder / f'layout_{name}.txt', {name: variables})

  # Visual tokens: the projector is that of the base or of SFT.
  model = Vlm(settings.model, lora)
  features = run.features(model, base)
  bad = features.encode(
    videos, 'tokens', _progress(settings, name, 'encoding videos', 'video')
  )
  generator = Generator(
    model,
    variables,
    base.tokenizer,
    features,
    run.data.buckets,
    settings.eval.batch,
    _progress(settings, name, 'answering', 'batch'),
    functools.partial(meter.add_generation, settings.model.llama, lora),
    profiler.batch,
  )
  return generator, bad


def _progress(
  settings: EvalRun, name: str, title: str, unit: str
) -> Callable[[Iterable, int], Any]:
  """Returns what wraps a sequence of known length in a progress bar."""
  return lambda items, total: loop.progress(
    items, total, f'eval {name}: {title}', settings.log, unit
  )
