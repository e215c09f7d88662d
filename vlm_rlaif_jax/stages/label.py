"""AI preference labelling with context (paper section 3): the tuned model is the judge.

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
import re
import time

import jax
import numpy as np

from vlm_rlaif_jax import decode
from vlm_rlaif_jax.config.stages import Label, LabelRun
from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import batches, examples, prompts, sources, tokens
from vlm_rlaif_jax.data.examples import Example, Skipped
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.inference import Inference
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.objectives import preference
from vlm_rlaif_jax.train import artefacts, bases, flops, loop, records, report
from vlm_rlaif_jax.train.profile import Profiler
from vlm_rlaif_jax.train.workspace import Workspace


def run(settings: LabelRun, workdir: str | pathlib.Path) -> dict:
  """Labels the preference prompts; leaves `pairs.json` and `audit.jsonl`."""
  space = Workspace(settings, workdir)
  base = bases.load(settings.base, settings.model)
  tuned = bases.tuned(base, space.artefact('sft', settings.sft), settings.model)
  model = Vlm(settings.model)
  seen = space.seen(model, tuned)
  bar = lambda title, unit: (
    lambda items, total: loop.progress(
      items, total, f'label: {title}', settings.log, unit
    )
  )

  items = sources.read(
    space.data, 'preference', space.skipped, False if space.data.train else None
  )
  items = [item for item in items if item.video is not None]
  clips = clip_windows(space.data.frames, settings.label.clip_frames)
  wanted = [
    video
    for item in items
    if item.video
    for video in [item.video, *(_clip(item.video, clip) for clip in clips)]
  ]
  bad = seen.encode(wanted, 'tokens', bar('see', 'video'))
  items = sources.drop_unreadable(items, bad, space.skipped)
  items = sources.drop_long_questions(items, tuned.tokenizer, space.data, space.skipped)
  if not items:
    raise examples.DataError(
      f'{sources.locate(space.data, "preference")}: no usable question about a video'
    )
  truth = Truth.load(sources.locate(dataclasses.replace(space.data, train=''), 'truth'))
  sources.check_joined(items, truth)

  params = bases.on_device(
    {'llama': tuned.params['llama']}, model.cfg, space.mesh, held=settings.quant
  )
  report.layout(space.folder / 'layout.txt', {'base': params})
  meter, clock = flops.Meter(), time.perf_counter()
  profiler = Profiler(settings.profile, space.folder, [])
  asked = Inference(
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
  audit = records.Journal(
    space.folder / 'audit.jsonl',
    records.identity(settings, tuned.fingerprint),
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
    'bases': {'model': bases.held_bytes(params, settings.quant)},
    'meter': meter.rates(time.perf_counter() - clock),
    'artefact': str(path),
    'fingerprint': tuned.fingerprint,
  }
  artefacts.write_summary(space.folder, summary)
  return summary


def clip_windows(frames: int, longest: int) -> list[tuple[int, int]]:
  """50 frames in clips of at most 20: (0, 20), (20, 40), (40, 50)."""
  return [(start, min(start + longest, frames)) for start in range(0, frames, longest)]


def sampling(settings: Label, eos: int) -> decode.Sampling:
  """How the two answers are drawn."""
  return decode.Sampling(
    settings.response_tokens, settings.temperature, settings.top_p, eos=eos
  )


def telling(settings: Label, eos: int) -> decode.Sampling:
  """How the clips are captioned."""
  return decode.Sampling(settings.caption_tokens, 0.0, eos=eos)


def _clip(video: Video, window: tuple[int, int]) -> Video:
  return Video(video.paths, window)


class Judge:
  """Answers, narrates and judges a chunk of questions.

  Args:
    policy: `data.on_bad_sample`: what a judge's prompt that fits no bucket does.
  """

  def __init__(
    self,
    asked: Inference,
    settings: Label,
    clips: list[tuple[int, int]],
    policy: str = 'stop',
  ):
    self.asked, self.settings, self.clips = asked, settings, clips
    self.policy = policy
    self.tokenizer = asked.tokenizer
    self.caption = prompts.load(settings.caption_prompt)
    self.options = prompts.load(settings.options_prompt)
    self.claims = prompts.load(settings.claims_prompt)

  def rows(self, items: list[Example], numbers: range, key) -> list[dict]:
    """One audit row a question."""
    answers = self.answers(items, numbers, key)
    narratives = self.narratives(items)
    shown = narratives if self.settings.context == 'narrative' else [''] * len(items)
    verdicts = self.verdicts(items, answers, shown)
    rows = []
    for item, pair, narrative, verdict in zip(
      items, answers, narratives, verdicts, strict=True
    ):
      rows.append(
        {
          'id': item.key,
          'question': item.question,
          'answers': pair,
          'narrative': narrative,
          **verdict,
          'record': item.record,
        }
      )
    count = min(max(self.settings.compare - numbers.start, 0), len(items))
    if count:
      other = [''] * count if shown is narratives else narratives[:count]
      compared = self.verdicts(items[:count], answers[:count], other)
      for row, verdict in zip(rows, compared, strict=False):
        if 'margin' in row and 'margin' in verdict:
          row['margin_other_context'] = verdict['margin']
    return rows

  def answers(self, items, numbers, key) -> list[list[str]]:
    """Two samples a question."""
    drawn = self.asked.generate(
      [sources.encode_question(self.tokenizer, item) for item in items],
      [item.video for item in items],
      list(numbers),
      sampling(self.settings, self.tokenizer.eos),
      key,
      copies=2,
    )
    return [[self.tokenizer.decode(ids) for ids in pair] for pair in drawn]

  def narratives(self, items) -> list[str]:
    """The captions of the clips of each video, greedy, joined in order."""
    videos = list(dict.fromkeys(item.video.paths for item in items))
    parts = [Video(paths, clip) for paths in videos for clip in self.clips]
    prompt = tokens.encode_prompt(self.tokenizer, self.caption)
    said = self.asked.generate(
      [prompt] * len(parts),
      parts,
      [0] * len(parts),
      telling(self.settings, self.tokenizer.eos),
      jax.random.key(0),
    )
    captions = [self.tokenizer.decode(ids) for (ids,) in said]
    count = len(self.clips)
    told = {
      paths: prompts.narrative(captions[i * count : (i + 1) * count])
      for i, paths in enumerate(videos)
    }
    return [told[item.video.paths] for item in items]

  def verdicts(self, items, answers, narratives) -> list[dict]:
    """A verdict a question; or `unjudged`, why the judge could not be asked."""
    by_options = self.settings.judge == 'options'
    texts_of = self._option_texts if by_options else self._claim_texts
    texts = [texts_of(*one) for one in zip(items, answers, narratives, strict=True)]
    skipped = Skipped(self.policy)
    fitting: list[int] = []
    verdicts: list[dict] = [{} for _ in items]
    for number, (item, asked) in enumerate(zip(items, texts, strict=True)):
      if skipped.attempt(lambda item=item, asked=asked: self._fits(item, asked)):
        fitting.append(number)
      else:
        verdicts[number] = {'unjudged': skipped.reasons[-1]}
    judge = self._by_options if by_options else self._by_claims
    judged = judge([items[i] for i in fitting], [texts[i] for i in fitting])
    for number, verdict in zip(fitting, judged, strict=True):
      verdicts[number] = verdict
    return verdicts

  def _fits(self, item: Example, texts) -> bool:
    """True; raises where a text about a video fits no bucket."""
    for text in (text for side in texts for text in side):
      try:
        ids = sources.encode_question(self.tokenizer, item, text)
        batches.bucket(len(ids), self.asked.buckets)
      except ValueError as error:
        raise examples.DataError(f"{item.where}: the judge's prompt: {error}") from None
    return True

  def _option_texts(self, item, pair, story) -> tuple[list[str], ...]:
    """The prompt with the answers as they are, and swapped if both are asked."""
    orders = ((0, 1), (1, 0))[: 2 if self.settings.both_orders else 1]
    return tuple(
      [
        fill(
          self.options,
          narrative=story,
          question=item.question,
          a=pair[first],
          b=pair[second],
        )
      ]
      for first, second in orders
    )

  def _claim_texts(self, item, pair, story) -> tuple[list[str], ...]:
    """The prompts of the statements of either answer."""
    return tuple(
      [
        fill(self.claims, narrative=story, question=item.question, claim=beginning)
        for beginning in prompts.statements(answer)
      ]
      for answer in pair
    )

  def _by_options(self, items, texts) -> list[dict]:
    """log p(A) - log p(B), with the answers in either order."""
    ids = (self.tokenizer.option('A'), self.tokenizer.option('B'))
    forward = self._log_odds(items, [sides[0][0] for sides in texts], ids)
    if not self.settings.both_orders:
      return [{'forward': float(f), 'margin': float(f)} for f in forward]
    swapped = self._log_odds(items, [sides[1][0] for sides in texts], ids)
    margin, agree = preference.order_margin(forward, swapped)
    return [
      {
        'forward': float(f),
        'swapped': float(s),
        'margin': float(m),
        'orders_agree': bool(a),
      }
      for f, s, m, a in zip(forward, swapped, margin, agree, strict=True)
    ]

  def _by_claims(self, items, texts) -> list[dict]:
    """Sum over the statements of an answer of log p(Yes) - log p(No)."""
    ids = (self.tokenizer.option('Yes'), self.tokenizer.option('No'))
    asked = [
      (number, side, text)
      for number, sides in enumerate(texts)
      for side, claims in enumerate(sides)
      for text in claims
    ]
    odds = self._log_odds(
      [items[number] for number, _, _ in asked], [text for *_, text in asked], ids
    )
    scores = np.zeros((len(items), 2))
    for (number, side, _), value in zip(asked, odds, strict=True):
      scores[number, side] += value
    return [{'scores': [float(a), float(b)], 'margin': float(a - b)} for a, b in scores]

  def _log_odds(self, items, texts, ids) -> np.ndarray:
    encoded = [
      sources.encode_question(self.tokenizer, item, text)
      for item, text in zip(items, texts, strict=True)
    ]
    return self.asked.log_odds(encoded, [item.video for item in items], ids)


def fill(template: str, **values: str) -> str:
  """Puts values into a template in one pass: braces inside a value stay as they are."""
  names = '|'.join(values)
  return re.sub(rf'\{{({names})\}}', lambda m: values[m[1]], template).strip()


def as_pair(row: dict, settings: Label) -> dict | None:
  """An audit row as a preference record, or None where a policy drops it."""
  first, second = row['answers']
  if first == second or 'margin' not in row:
    return None
  margin = row['margin']
  if abs(margin) <= settings.min_margin and settings.ties == 'drop':
    return None
  if not row.get('orders_agree', True):
    if settings.inconsistent == 'drop':
      return None
    if settings.inconsistent == 'keep':  # the first asking decides
      margin = row['forward']
  record = dict(row['record'])
  asked = examples.messages_of(record, f'record {row["id"]}')[0]
  return {
    **{k: v for k, v in record.items() if k != 'conversations'},
    'conversations': [asked, {'from': 'gpt', 'value': ''}],
    'output_1': {'value': first},
    'output_2': {'value': second},
    'preference': 1 if margin > 0 else 2,
    'margin': margin,
    'narrative': row['narrative'],
  }


def none_left(rows: list[dict], settings: Label, folder: pathlib.Path) -> str:
  """Why no pair came of any question."""
  judged = [row for row in rows if 'margin' in row]
  alike = sum(row['answers'][0] == row['answers'][1] for row in judged)
  return (
    f'{folder / "audit.jsonl"}: 0 pairs of {len(rows)} questions: '
    f'{len(rows) - len(judged)} not judged, {alike} with two identical answers, '
    f'{len(judged) - alike} dropped by config.label.ties={settings.ties}, '
    f'min_margin={settings.min_margin} or inconsistent={settings.inconsistent}'
  )


def with_truth(row: dict, truth: Truth) -> dict:
  """Adds the true quality of both answers."""
  if row['id'] not in truth:
    return row
  return {
    **row,
    'truth': [truth.score(row['id'], answer).quality for answer in row['answers']],
  }


def agreement(rows: list[dict], settings: Label) -> dict:
  """How the labels agree with the truth and the judge with itself."""
  rows = [row for row in rows if 'margin' in row]
  asked = [row for row in rows if row['answers'][0] != row['answers'][1]]
  result: dict = {'identical': len(rows) - len(asked)}
  orders = [row['orders_agree'] for row in asked if 'orders_agree' in row]
  result['order_agreement'] = float(np.mean(orders)) if orders else None
  known = [
    row for row in asked if 'truth' in row and row['truth'][0] != row['truth'][1]
  ]

  def right(name: str, judged: list[dict]) -> float | None:
    hits = [(row[name] > 0) == (row['truth'][0] > row['truth'][1]) for row in judged]
    return float(np.mean(hits)) if hits else None

  result['informative'] = len(known)
  result['agreement'] = right('margin', known)
  compared = [row for row in known if 'margin_other_context' in row]
  if compared:
    contexts = ('narrative', 'none')
    here = contexts.index(settings.context)
    result['compared'] = {
      'n': len(compared),
      contexts[here]: right('margin', compared),
      contexts[1 - here]: right('margin_other_context', compared),
    }
  hits = [
    (pair['preference'] == 1) == (row['truth'][0] > row['truth'][1])
    for row in known
    if (pair := as_pair(row, settings)) is not None
  ]
  if hits:
    result['agreement_kept'] = float(np.mean(hits))
  return result
