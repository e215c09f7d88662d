"""AI preference labeling with context (paper section 3): the tuned model is the judge.

    answers     two to each question or more, sampled from the tuned model
    captions    of the clips of the video, at most `clip_frames` sampled frames each
    narrative   the captions, in order
    judge       (video, question, both answers, narrative) -> which answer is better,
                and by what margin: log-odds of the option tokens, in both orders, or
                the sum of the log-odds that each claim is right
    pairs       what the policies on ties and disagreement keep

Everything goes to `audit.jsonl`, a chunk of questions at a time, so that a killed run
goes on; the pairs go to `pairs.json` in the released format.
"""

import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import examples, readers
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.labeling import narrative, pairs
from vlm_rlaif_jax.labeling.answers import sample_answers
from vlm_rlaif_jax.labeling.costs import Costs
from vlm_rlaif_jax.labeling.judge import Judge
from vlm_rlaif_jax.labeling.narrative import Narratives, narratives_of
from vlm_rlaif_jax.labeling.questions import read_questions
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.label import LabelConfig, LabelRun
from vlm_rlaif_jax.train import console, journal, labeler, loop
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import artifacts, bases, placement


def run(settings: LabelRun, workdir: str | pathlib.Path) -> dict:
  """Labels the preference prompts; leaves `pairs.json` and `audit.jsonl`."""
  run = RunContext(settings, workdir)

  # The tuned model, its questions, and the truth where a data set has one.
  base = bases.load(settings.base, settings.model)
  tuned = bases.tuned(base, run.artifact('sft', settings.inputs.sft), settings.model)
  model = Vlm(settings.model)
  features = run.features(model, tuned)
  windows = narrative.clip_windows(run.data.frames, settings.label.clip_frames)
  items = read_questions(
    settings,
    run.data,
    run.skipped,
    tuned.tokenizer,
    features,
    windows,
    loop.bar('label: encoding videos', settings.log, 'video'),
  )
  truth = Truth.load(readers.locate(dataclasses.replace(run.data, train=''), 'truth'))
  readers.check_joined(items, truth)

  # It answers, narrates and judges.
  params = placement.on_device(
    {'llama': tuned.params['llama']}, model.cfg, run.mesh, quant=settings.quant
  )
  console.write_sharding_table(run.folder / 'layout.txt', {'base': params})
  meter, start = flops.Meter(), time.perf_counter()
  profiler = Profiler(settings.profile, run.folder, [])
  generator = Generator(
    model,
    {'params': params},
    tuned.tokenizer,
    features,
    run.data.buckets,
    settings.label.batch,
    on_batch=functools.partial(meter.add_generation, model.cfg.llama, None),
    batch_context=profiler.batch,
  )

  # Labels, from where a killed run stopped.
  audit = journal.Journal(
    run.folder / 'audit.jsonl',
    journal.identity(
      settings, tuned.fingerprint, **journal.videos(settings, features.contents)
    ),
    settings.checkpoint.on_change,
  )
  costs = Costs(meter)
  _label_all(settings, generator, windows, items, truth, audit, costs)
  profiler.close()

  # Pairs, and how good their labels are.
  rows = audit.rows()
  run.skipped.reasons += [row['unjudged'] for row in rows if 'unjudged' in row]
  cut_answers = _count_cut_answers(rows, settings.label)
  path = run.folder / 'pairs.json'
  artifacts.drop_summary(run.folder)
  count = _write_pairs(path, rows, settings.label)
  summary = {
    'stage': 'label',
    'lineage': settings.lineage,
    'questions': len(items),
    'rows': run.skipped.files,
    'skipped': run.skipped.reasons,
    'pairs': count,
    'cut_answers': cut_answers,
    'judge': settings.label.judge,
    'context': settings.label.context,
    'narratives': labeler.narrated(settings.label),
    **pairs.agreement(rows, settings.label),
    'bases': {'model': placement.base_summary(params, settings.quant)},
    'each_question': costs.each(),
    'meter': meter.rates(time.perf_counter() - start),
    'artifact': str(path),
    'fingerprint': tuned.fingerprint,
  }
  artifacts.write_summary(run.folder, summary)
  return summary


def _label_all(
  settings: LabelRun,
  generator: Generator,
  windows: Sequence[narrative.Window],
  items: Sequence[Example],
  truth: Truth | None,
  audit: journal.Journal,
  costs: Costs,
) -> None:
  """Labels the questions that the audit lacks, a chunk at a time.

  Args:
    windows: of the clips of a narrative.
    truth: of the questions, where a data set has one; rows get what it says.
    costs: gets what the questions take.

  Raises:
    Interrupted: Ctrl-C or SIGTERM; the chunks before are in the audit.
  """
  size = max(settings.label.batch, settings.checkpoint.every)
  rows_each = pairs.rows_per_question(settings.label)
  starts = range(len(audit) // rows_each // size * size, len(items), size)
  audit.truncate(starts.start * rows_each)
  former = audit.rows()
  _check_rows(audit.path, former, items, rows_each)
  judge = Judge(generator, settings.label)
  narratives = Narratives(generator, settings.label, windows, narratives_of(former))
  key = jax.random.key(settings.seed)
  bar = loop.progress(starts, len(starts), 'label: questions', settings.log, 'chunk')
  with loop.stop_requests() as stop_requested:
    for first in bar:
      chunk = items[first : first + size]
      numbers = range(first, first + len(chunk))
      rows = _label(
        settings.label, generator, judge, narratives, chunk, numbers, key, costs
      )
      if truth is not None:
        rows = [pairs.with_truth(row, truth) for row in rows]
      audit.extend(rows)
      if hosts.any_host(stop_requested()):
        saved = len(audit) // rows_each
        raise loop.Interrupted(
          f'label: saved {saved} of {len(items)} questions', settings.checkpoint
        )


def _check_rows(
  path: pathlib.Path, rows: Sequence[pairs.Row], items: Sequence[Example], each: int
) -> None:
  """Raises ResumeError where rows are not of the first questions, in their order.

  They are of others where the data, or the answers to a question, have changed and the
  settings ignore that: some would be labeled twice, and others never.

  Args:
    each: rows of a question.
  """
  for number, row in enumerate(rows):
    place = number // each
    expected = items[place].key if place < len(items) else 'none'
    if row['id'] != expected:
      raise journal.ResumeError(
        f'{path}: row {number + 1} is about question {row["id"]}, expected '
        f'{expected}, of {each} rows a question: the data or config.label.answers have '
        'changed; use --config.checkpoint.on_change=restart to start anew'
      )


def _label(
  settings: LabelConfig,
  generator: Generator,
  judge: Judge,
  narratives: Narratives,
  items: Sequence[Example],
  numbers: range,
  key: jax.Array,
  costs: Costs,
) -> list[pairs.Row]:
  """Returns the audit rows of a chunk of questions, whose numbers are given."""
  # Answers, and the pairs that they make.
  with costs.part('answers'):
    sampled = sample_answers(generator, settings, items, numbers, key)
  each = pairs.pairs_of(settings.answers)
  duels = [[some[i], some[j]] for some in sampled for i, j in each]

  # Narratives: the captions of the clips of each video, generated once.
  with costs.part('narratives'):
    stories = [story for story in narratives.of(items) for _ in each]
  items = [item for item in items for _ in each]

  # Judge: with the context of the settings, the first questions with the other, too.
  contexts = {'narrative': stories, 'none': [''] * len(items)}
  context = contexts.pop(settings.context)
  with costs.part('judgments'):
    verdicts = judge.verdicts(items, duels, context)
  rows = [
    pairs.audit_row(*one) for one in zip(items, duels, stories, verdicts, strict=True)
  ]
  count = min(max(settings.compare - numbers.start, 0), len(numbers)) * len(each)
  if count:
    (other,) = contexts.values()
    with costs.part('comparison'):
      compared = judge.verdicts(items[:count], duels[:count], other[:count])
    for row, verdict in zip(rows, compared, strict=False):
      if 'margin' in row and 'margin' in verdict:
        row['margin_other_context'] = verdict['margin']
  costs.questions += len(numbers)
  return [
    row
    for first in range(0, len(rows), len(each))
    for row in pairs.chosen_rows(rows[first : first + len(each)], settings)
  ]


def _count_cut_answers(
  rows: Sequence[pairs.Row], settings: LabelConfig
) -> dict[str, Any]:
  """Counts answers that ended at their longest length, and says so where there are."""
  counts = pairs.cut_answers(rows, settings)
  if counts['questions']:
    console.say(
      f'  {counts["questions"]} questions have an answer that was cut at '
      f'config.label.response_tokens={settings.response_tokens}'
    )
  return counts


def _write_pairs(
  path: pathlib.Path, rows: Sequence[pairs.Row], settings: LabelConfig
) -> int:
  """Writes the pairs that the policies keep; returns how many.

  Raises:
    DataError: none is kept; the file that an earlier run left is removed.
  """
  records = [pairs.as_pair(row, settings) for row in rows]
  records = [record for record in records if record is not None]
  if not records:
    if hosts.is_first():
      path.unlink(missing_ok=True)
    raise examples.DataError(pairs.no_pairs_message(rows, settings, path.parent))
  hosts.write_atomically(path, json.dumps(records, indent=0))
  return len(records)
