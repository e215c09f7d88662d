"""Evaluates checkpoints side by side, by the benchmarks that are chosen.

items      of the annotation files, or of the held-out videos of a training file
answers    of each model to each item, kept one by one
rewards    of the answers to a file of one's own, where a reward model is named
verdicts   of the judge on them, or of facts where a data set has truth
scores     their means, with 95 % intervals over videos
changes    from SFT, and from the initialized policy that PPO starts from, to RLAIF,
           item by item
"""

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import examples, readers
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import judging, predictions, rewards, tables, world_tasks
from vlm_rlaif_jax.evals.answers import AnswerFile
from vlm_rlaif_jax.evals.benchmarks import answering, own, preparation, registry
from vlm_rlaif_jax.evals.benchmarks.benchmark import Tools
from vlm_rlaif_jax.evals.judges import rejudge
from vlm_rlaif_jax.evals.judges.usage import collect
from vlm_rlaif_jax.settings.eval import BENCHMARKS, OWN, EvalRun
from vlm_rlaif_jax.train import console, policies, reward_models
from vlm_rlaif_jax.train.policies import Policy
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import artifacts, placement, text_towers


def run(settings: EvalRun, workdir: str | pathlib.Path) -> dict:
  """Evaluates each model; leaves `summary.json`, the answers and the verdicts."""
  run = RunContext(settings, workdir)
  check_control(settings, run)
  evaluation = Evaluation(settings, run)
  results, correct, base_summaries, meters, weights = {}, {}, {}, {}, {}
  for name in settings.eval.models:
    meter = flops.Meter()
    with evaluation.timed('load'):
      policy = evaluation.load(name, meter)
    weights[name] = policy.weights
    base_params = policy.generator.variables['params']
    base_summaries[name] = placement.base_summary(base_params, settings.quant)
    start = time.perf_counter()
    outputs = evaluation.answer(name, policy)
    meters[name] = meter.rates(time.perf_counter() - start)
    results[name], correct[name] = world_tasks.scores(
      evaluation.questions, outputs, evaluation.truth, settings.world.flip_axes
    )
    del policy, base_params  # no two models are on the devices together
  with evaluation.timed('scores'):
    tables_of_models = evaluation.tables()
  questions = evaluation.questions
  summary = {
    'stage': 'eval',
    'lineage': settings.lineage,
    'split': settings.eval.split,
    'questions': {task: len(part) for task, part in questions.items()},
    'videos': len({one.row['video_name'] for one in questions['qa']}),
    **results,
    **world_tasks.change(correct, questions['qa'], evaluation.truth),
    'benchmarks': tables_of_models,
    'seconds': {name: round(value, 1) for name, value in evaluation.seconds.items()},
    'bases': base_summaries,
    'weights': weights,
    'meters': meters,
    'rows': run.skipped.files,
    'skipped': run.skipped.reasons,
    'artifact': str(run.folder),
  }
  evaluation.profiler.close()
  artifacts.write_summary(run.folder, summary)
  return summary


class Evaluation:
  """What is asked, and the answers so far.

  Attributes:
    questions: of the tasks qa and describe.
    benchmarks: the others, with their items.
    rows: by benchmark and model, the rows of its answers.
    seconds: by part of the run, over all models: 'load' (with the encoding of videos),
      'tasks', 'benchmarks', 'scores' (with judging).
  """

  def __init__(self, settings: EvalRun, run: RunContext):
    self.settings, self.run = settings, run
    self.seconds: dict[str, float] = {}
    data = run.data
    self.truth = Truth.load(
      readers.locate(dataclasses.replace(data, train=''), 'truth')
    )
    if data.max_samples:
      fewer = '' if data.train else '; for fewer, --config.eval.clips'
      console.say(
        f'  data.max_samples is of files to learn from: all questions are asked{fewer}'
      )
    self.questions = world_tasks.read(settings, data, run.skipped)
    self.benchmarks = [
      preparation.prepare(registry.named(name), settings, data)
      for name in settings.benchmarks
      if name in BENCHMARKS
    ]
    preparation.check_files(self.benchmarks)
    self.rows: dict[str, dict[str, tables.Rows]] = collections.defaultdict(dict)
    self.profiler = Profiler(settings.profile, run.folder, [])
    self.is_checked = False  # whether texts fit and videos can be read
    self.reuses = settings.checkpoint.on_change != 'restart'
    if not self.reuses:
      console.say('  answers and rewards of before are dropped (on_change=restart)')
    # What needs a file that may be absent is opened before the long work.
    self.reward_model = reward_models.find(settings, run)
    self.text_tower = None
    if any(one.benchmark.encodes_texts for one in self.benchmarks):
      self.text_tower = text_towers.load(
        settings.text_scores.text_encoder, settings.base, settings.model
      )
    if self.benchmarks and settings.judge.kind != 'model':
      judging.open_judge(settings, run.folder, self.truth, None)

  @contextlib.contextmanager
  def timed(self, part: str) -> Iterator[None]:
    """Adds the seconds inside to those of a part of the run."""
    start = time.perf_counter()
    yield
    passed = time.perf_counter() - start
    self.seconds[part] = self.seconds.get(part, 0.0) + passed

  def load(self, name: str, meter: flops.Meter) -> Policy:
    """Returns a model on the devices; the first one decides which items are left."""
    settings, run = self.settings, self.run
    base = policies.load_base(settings, run, name)
    if not self.is_checked:  # texts before videos, which take long to encode
      self._check_texts(base.tokenizer)
    policy = policies.load(
      settings, run, name, base, self._videos(), meter, self.profiler
    )
    if not self.is_checked:
      self._drop_unreadable(policy.bad)
      self.is_checked = True
    elif policy.bad:  # by one model and not by the next
      raise examples.DataError(next(iter(policy.bad.values())))
    return policy

  def _videos(self) -> list[Video]:
    """Returns the video of every question and item."""
    videos = [one.video for part in self.questions.values() for one in part]
    return videos + [item.video for one in self.benchmarks for item in one.items]

  def _check_texts(self, tokenizer: Tokenizer) -> None:
    """Drops questions of the tasks that do not fit; refuses those of benchmarks."""
    settings, run = self.settings, self.run
    self.questions = world_tasks.fitting(
      settings, run.data, tokenizer, self.questions, run.skipped
    )
    for one in self.benchmarks:
      preparation.check_lengths(one, tokenizer, settings, run.data)

  def _drop_unreadable(self, bad: dict[Video, str]) -> None:
    """Drops what is asked about videos that cannot be read, and says what is left."""
    settings, run = self.settings, self.run
    self.questions = world_tasks.readable(
      settings, run.data, self.questions, bad, run.skipped
    )
    self.benchmarks = [
      preparation.readable(one, bad, run.data) for one in self.benchmarks
    ]
    if OWN in settings.benchmarks:
      path = readers.locate(run.data, 'qa')
      self.benchmarks.append(own.prepare(self.questions, path))
    for one in self.benchmarks:
      console.say(f'  {one.describe()}')

  def answer(self, name: str, policy: Policy) -> dict[str, list[str]]:
    """Answers everything by one model; returns the answers of the tasks."""
    settings, run = self.settings, self.run

    def identity(title: str, limit: int | dict[str, int]) -> str:
      return answering.run_identity(settings, title, limit, policy.weights)

    outputs, task_rows = {}, []
    for task, part in self.questions.items():
      limit = predictions.longest(settings.eval, task)
      path = run.folder / task / f'answers_{name}.jsonl'
      with self.timed('tasks'):
        rows = predictions.answer(
          policy.generator, settings, task, part, path, identity(task, limit)
        )
      task_rows += rows
      outputs[task] = [row['answers'][0] for row in rows]
      if part and hosts.is_first():
        path = run.folder / f'{task}_{name}.jsonl'
        predictions.write(path, part, rows)
    requests = {}
    for one in self.benchmarks:
      title, limit = one.benchmark.name, getattr(settings.eval, one.benchmark.tokens)
      path = run.folder / title / f'answers_{name}.jsonl'
      contents = policy.generator.contents
      depends_on = identity(title, predictions.limits(settings.eval, one.benchmark))
      file = AnswerFile(path, depends_on, one.items, contents, self.reuses)
      if title == OWN:  # whose questions were asked as those of the tasks
        for number in file.pending(one.items):
          row = task_rows[number]
          file.append(one.items[number], row['answers'], row['ended'])
      requests[title] = answering.Request(
        one.items, file, limit, one.benchmark.family == 'choice'
      )
    with self.timed('benchmarks'):
      answering.answer_all(policy.generator, settings, list(requests.values()))
    for title, request in requests.items():
      self.rows[title][name] = request.file.in_order(request.items)
    return outputs

  def rewards(self) -> dict[str, list[float]]:
    """Returns by model the rewards of its answers to 'own'; {} without a reward model.

    The reward model is on the devices until this returns.
    """
    settings, run, model = self.settings, self.run, self.reward_model
    if model is None:
      return {}
    (one,) = (one for one in self.benchmarks if one.benchmark.name == OWN)
    scorer = reward_models.load(
      model, settings, run, [item.video for item in one.items]
    )
    identity = rewards.identity_of(settings, model.identity)
    return {
      policy: rewards.score(
        scorer,
        one.items,
        rows,
        identity,
        run.folder / OWN / rewards.file_name(policy),
        self.reuses,
      )
      for policy, rows in self.rows[OWN].items()
    }

  def tables(self) -> dict[str, Any]:
    """Returns what the summary says of the benchmarks, by name; judges the answers."""
    settings, run = self.settings, self.run
    if not self.benchmarks:
      return {}
    scores = {OWN: self.rewards()}
    videos: dict[str, Video] = {}  # by item, of the benchmark that is judged
    own_model = None
    if settings.judge.kind == 'model':
      policy = self.load(settings.judge.own_model, flops.Meter())
      own_model = judging.own_model(policy.generator, policy.weights, settings, videos)
    judge = judging.open_judge(settings, run.folder, self.truth, own_model)
    encode = tables.text_encoder(self.text_tower, run.mesh, settings)
    tools = Tools(settings=settings, encode_texts=encode)
    scored = {}
    for one in self.benchmarks:
      name, items = one.benchmark.name, one.items
      videos.clear()
      videos.update({item.key: item.video for item in items})
      verdicts = {
        model: judging.judge_answers(
          judge,
          one.benchmark,
          items,
          rows,
          settings,
          run.folder,
          model,
        )
        for model, rows in self.rows[name].items()
      }
      scored[name] = tables.score(
        one.benchmark, items, self.rows[name], verdicts, tools, scores.get(name)
      )
      if one.benchmark.name == OWN:
        rates = judging.win_rates(
          judge, one.benchmark, items, self.rows[name], settings, run.folder
        )
        for control, rate in rates.items():
          scored[name].entry['changes'][control]['win_rate'] = rate
      identity = collect(judge) if any(verdicts.values()) else None
      if identity and hosts.is_first():
        rejudge.keep_former(run.folder, identity)
      origin = tables.origin(one, identity, settings, self.text_tower)
      scored[name].entry.update(origin)
      if scores.get(name) and self.reward_model is not None:
        scored[name].entry['reward_model'] = self.reward_model.record
    return tables.entries(scored)


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
