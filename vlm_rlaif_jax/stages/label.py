"""AI preference labeling with context (paper section 3): the tuned model is the judge.

    two answers a question      sampled from the tuned model
    clips -> captions           at most `clip_frames` of the sampled frames a clip
    captions -> narrative       in order
    judge(video, question, both answers, narrative) -> which answer is better, and by
    what margin: log-odds of the option tokens, asked in both orders, or the sum of the
    log-odds that each claim is right

Everything goes to `audit.jsonl`, a chunk of questions at a time, so that a killed run
goes on; the pairs that survive the policies go to `pairs.json` in the released format.
"""

import dataclasses
import functools
import json
import pathlib
import time

import jax

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import examples, readers
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.labeling.judge import Judge
from vlm_rlaif_jax.labeling.narrative import clip_of, clip_windows
from vlm_rlaif_jax.labeling.pairs import agreement, as_pair, none_left, with_truth
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.label import LabelRun
from vlm_rlaif_jax.train import console, journal, loop
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import artifacts, bases, placement


def run(settings: LabelRun, workdir: str | pathlib.Path) -> dict:
  """Labels the preference prompts; leaves `pairs.json` and `audit.jsonl`."""
  space = RunContext(settings, workdir)
  base = bases.load(settings.base, settings.model)
  tuned = bases.tuned(base, space.artifact('sft', settings.inputs.sft), settings.model)
  model = Vlm(settings.model)
  seen = space.seen(model, tuned)
  bar = lambda title, unit: (
    lambda items, total: loop.progress(
      items, total, f'label: {title}', settings.log, unit
    )
  )

  items = readers.read(
    space.data, 'preference', space.skipped, False if space.data.train else None
  )
  items = [item for item in items if item.video is not None]
  clips = clip_windows(space.data.frames, settings.label.clip_frames)
  wanted = [
    video
    for item in items
    if item.video
    for video in [item.video, *(clip_of(item.video, clip) for clip in clips)]
  ]
  bad = seen.encode(wanted, 'tokens', bar('see', 'video'))
  items = readers.drop_unreadable(items, bad, space.skipped)
  items = readers.drop_long_questions(items, tuned.tokenizer, space.data, space.skipped)
  if not items:
    raise examples.DataError(
      f'{readers.locate(space.data, "preference")}: no usable question about a video'
    )
  truth = Truth.load(readers.locate(dataclasses.replace(space.data, train=''), 'truth'))
  readers.check_joined(items, truth)

  params = placement.on_device(
    {'llama': tuned.params['llama']}, model.cfg, space.mesh, held=settings.quant
  )
  console.write_sharding_table(space.folder / 'layout.txt', {'base': params})
  meter, clock = flops.Meter(), time.perf_counter()
  profiler = Profiler(settings.profile, space.folder, [])
  asked = Generator(
    model,
    {'params': params},
    tuned.tokenizer,
    seen,
    space.data.buckets,
    settings.label.batch,
    done=functools.partial(meter.asked, model.cfg.llama, None),
    around=profiler.batch,
  )
  judge = Judge(asked, settings.label, clips, space.data.on_bad_sample)
  audit = journal.Journal(
    space.folder / 'audit.jsonl',
    journal.identity(settings, tuned.fingerprint),
    settings.checkpoint.on_change,
  )
  chunk = max(settings.label.batch, settings.checkpoint.every)
  starts = range(len(audit) // chunk * chunk, len(items), chunk)
  audit.truncate(starts.start)
  key = jax.random.key(settings.seed)
  with loop.stop_requests() as stop_asked:
    for first in bar('questions', 'chunk')(starts, len(starts)):
      part = items[first : first + chunk]
      rows = judge.rows(part, range(first, first + len(part)), key)
      if truth is not None:
        rows = [with_truth(row, truth) for row in rows]
      audit.extend(rows)
      if hosts.anybody(stop_asked()):
        raise loop.Interrupted(f'label: saved {len(audit)} of {len(items)} questions')
  profiler.close()

  rows = audit.rows()
  space.skipped.reasons += [row['unjudged'] for row in rows if 'unjudged' in row]
  pairs = [pair for row in rows if (pair := as_pair(row, settings.label)) is not None]
  path = space.folder / 'pairs.json'
  if not pairs:
    if hosts.is_first():
      path.unlink(missing_ok=True)  # of an earlier run
      (space.folder / 'summary.json').unlink(missing_ok=True)
    raise examples.DataError(none_left(rows, settings.label, space.folder))
  hosts.write_whole(path, json.dumps(pairs, indent=0))
  summary = {
    'stage': 'label',
    'lineage': settings.lineage,
    'questions': len(rows),
    'skipped': space.skipped.reasons,
    'pairs': len(pairs),
    'judge': settings.label.judge,
    'context': settings.label.context,
    **agreement(rows, settings.label),
    'bases': {'model': placement.base_summary(params, settings.quant)},
    'meter': meter.rates(time.perf_counter() - clock),
    'artifact': str(path),
    'fingerprint': tuned.fingerprint,
  }
  artifacts.write_summary(space.folder, summary)
  return summary
