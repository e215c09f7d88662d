"""Samples to look at: the worst first, each with frames, answers and what is wrong."""

import dataclasses
import itertools
import pathlib
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, TypeVar

from vlm_rlaif_jax.data import fields
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.reports.page import answers, html, marks
from vlm_rlaif_jax.reports.page.answers import Answered
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.pictures import Pictures
from vlm_rlaif_jax.reports.page.runs import RunFiles

T = TypeVar('T')

A_RUN = 30  # samples of evaluation of a run
SHARES = {  # of these, by outcome
  'broken by RLAIF': 10,
  'wrong in both': 10,
  'repaired by RLAIF': 10,
  'right in both': 4,
  'other answer': 10,
  'same answer': 2,
}
PAIRS = 10  # preferences of a run
RESPONSES = 8  # sampled answers of PPO of a run
A_VIDEO = 2  # samples of one video of a kind


@dataclasses.dataclass(frozen=True)
class Sample:
  """One sample as it is displayed, and what filters look at.

  Attributes:
    source: 'evaluation', 'preference' or 'PPO response'.
    outcome: what happened to it.
    rank: samples are in this order, the least first.
    build: its heading and body, once the pictures are known.
  """

  run: str
  source: str
  outcome: str
  kind: str
  rank: tuple[float, ...]
  title: str
  video: Video | None
  body: tuple[Html, ...]


def of_run(
  run: RunFiles, audit: Sequence[dict[str, Any]], truth: Truth | None
) -> list[Sample]:
  """Returns the samples of a run, the worst of each source first.

  Args:
    audit: rows of `label/audit.jsonl` that were judged.
  """
  items = answers.read(run, truth)
  evaluated = [
    sample
    for item in _choose(items)
    if (sample := run.attempt(f'the sample {item.key}', _evaluated, run, item, truth))
  ]
  preferences = run.attempt('its preferences', _preferences, run, audit, truth)
  responses = run.attempt('answers of PPO', _responses, run, truth)
  return [*evaluated, *(preferences or ()), *(responses or ())]


def _choose(items: Sequence[Answered]) -> list[Answered]:
  """Returns the worst of each outcome, kinds in turn, few of one video."""
  chosen = []
  for outcome, count in SHARES.items():
    part = sorted(
      (one for one in items if one.outcome == outcome), key=lambda one: one.rank
    )
    part = _few_of_each(part, lambda one: one.video)
    chosen += _in_turn(part, lambda one: one.kind)[:count]
  return sorted(chosen, key=lambda one: one.rank)[:A_RUN]


def _few_of_each(items: Iterable[T], group: Any) -> list[T]:
  """Returns items in their order, at most `A_VIDEO` of a group."""
  counts: dict[Hashable, int] = {}
  selected = []
  for item in items:
    counts[group(item)] = counts.get(group(item), 0) + 1
    if counts[group(item)] <= A_VIDEO:
      selected.append(item)
  return selected


def _in_turn(items: Sequence[T], group: Any) -> list[T]:
  """Returns items so that the first of every group come first, then the second."""
  groups: dict[Hashable, list[T]] = {}
  for item in items:
    groups.setdefault(group(item), []).append(item)
  turns = itertools.zip_longest(*groups.values())
  return [item for turn in turns for item in turn if item is not None]


# ---------------------------------------------------------------- evaluation


def _evaluated(run: RunFiles, item: Answered, truth: Truth | None) -> Sample:
  """Returns a question with the answers of SFT and RLAIF."""
  removed, added = marks.changed_words(item.answers['sft'], item.answers['rlaif'])
  sides = [
    _side(item, 'sft', 'SFT', removed, 'del', truth),
    _side(item, 'rlaif', 'RLAIF', added, 'ins', truth),
  ]
  others = [
    tag('p', tag('b', f'{name}: '), _plain(item.answers[name], item.key, truth))
    for name in ('init', 'base')
    if name in item.answers
  ]
  body = [tag('div', *sides, class_='sides')]
  if item.reference:
    body.append(_reference(item.reference))
  if others:
    body.append(tag('details', tag('summary', 'Other models'), *others))
  return Sample(
    run.label, 'evaluation', item.outcome, item.kind, item.rank, item.question,
    item.video, tuple(body),
  )  # fmt: skip


def _side(
  item: Answered,
  name: str,
  title: str,
  changed: set[int],
  element: str,
  truth: Truth | None,
) -> Html:
  """Returns the answer of one model."""
  grade, text = item.grades[name], item.answers[name]
  wrong = marks.wrong_spans(text, item.key, truth)
  if not wrong and grade.correct is False and (truth is None or item.key not in truth):
    wrong = []
  facts = [grade.text] if grade.text else []
  if name in item.rewards:
    facts.append(f'reward {html.number(item.rewards[name])}')
  return _answer(
    title, marks.marked(text, changed, wrong, element), grade.correct, facts
  )


def _answer(title: str, text: Html, correct: bool | None, facts: Sequence[str]) -> Html:
  """Returns an answer with its name, whether it is right, and what is known of it."""
  verdict = None
  if correct is not None:
    style = 'good' if correct else 'bad'
    verdict = tag('span', '✓ right' if correct else '✗ wrong', class_=f'badge {style}')
  return tag(
    'div',
    tag('h4', title, ' ', verdict),
    tag('p', text or tag('i', 'no words'), class_='answer'),
    tag('p', '; '.join(facts), class_='small') if facts else None,
    class_='side',
  )


def _plain(text: str, key: str, truth: Truth | None) -> Html:
  """Returns a text with what is wrong in it."""
  return marks.marked(text, set(), marks.wrong_spans(text, key, truth))


def _reference(text: str) -> Html:
  """Returns the right answer."""
  return tag('p', tag('b', 'Reference: '), text[: marks.LONGEST], class_='reference')


# ---------------------------------------------------------------- preferences


def _preferences(
  run: RunFiles, audit: Sequence[dict[str, Any]], truth: Truth | None
) -> list[Sample]:
  """Returns labels with narrative and verdict: the surest wrong ones first."""
  threshold = run.settings.get('label', {}).get('label.min_margin', 0.0)
  threshold = threshold if html.is_number(threshold) else 0.0
  rows = [row for row in audit if row['answers'][0] != row['answers'][1]]
  samples = []
  for row in rows:
    margin, quality = row['margin'], row.get('truth')
    outcome, rank = 'label, truth not known', -abs(margin)
    if quality is not None:
      gain = (quality[0] - quality[1]) * (1 if margin > 0 else -1)
      outcome = (
        'label right' if gain > 0 else 'label wrong' if gain < 0 else 'label of equals'
      )
      rank = abs(margin) * gain
    if abs(margin) <= threshold:
      outcome = 'label: a tie'
    samples.append((outcome, rank, row))
  chosen: list[tuple[str, float, dict[str, Any]]] = []
  for outcome, count in (
    ('label wrong', 6), ('label right', 3), ('label: a tie', 2),
    ('label, truth not known', PAIRS),
  ):  # fmt: skip
    part = sorted((one for one in samples if one[0] == outcome), key=lambda one: one[1])
    part = part[::-1] if outcome == 'label right' else part
    chosen += _few_of_each(part, lambda one: str(one[2].get('record')))[:count]
  return [_preference(run, *one, truth) for one in chosen[:PAIRS]]


def _preference(
  run: RunFiles, outcome: str, rank: float, row: dict[str, Any], truth: Truth | None
) -> Sample:
  """Returns a question with two answers, and which of them the judge prefers."""
  first, second = row['answers']
  removed, added = marks.changed_words(first, second)
  preferred = 0 if row['margin'] > 0 else 1
  sides = []
  for place, (text, changed) in enumerate(((first, removed), (second, added))):
    wrong = marks.wrong_spans(text, str(row.get('id')), truth)
    facts = []
    if isinstance(row.get('scores'), list):
      facts.append(f'score of the judge {html.number(row["scores"][place])}')
    if isinstance(row.get('truth'), list):
      facts.append(f'true quality {html.number(row["truth"][place])}')
    title: Any = f'Answer {place + 1}'
    if place == preferred and outcome != 'label: a tie':
      title = html.join([title, ' ', tag('span', 'preferred', class_='badge')])
    sides.append(_answer(title, marks.marked(text, changed, wrong), None, facts))
  body = (
    tag('div', *sides, class_='sides'),
    tag('p', f'Margin of the judge: {html.number(row["margin"])}', class_='small'),
    _narrative(str(row.get('narrative', '')), str(row.get('id')), truth),
  )
  return Sample(
    run.label, 'preference', outcome, 'preference', (rank,), str(row.get('question', '')),
    fields.video_of(row['record'], 'the record') if row.get('record') else None, body,
  )  # fmt: skip


def _narrative(text: str, key: str, truth: Truth | None) -> Html:
  """Returns the captions of the clips of a video, a line each."""
  del key, truth
  lines = [
    tag('li', line) for line in text[: marks.LONGEST].splitlines() if line.strip()
  ]
  return tag('details', tag('summary', 'Narrative'), tag('ul', *lines), open=True)


# ---------------------------------------------------------------- responses of PPO


def _responses(run: RunFiles, truth: Truth | None) -> list[Sample]:
  """Returns sampled answers of PPO: those the reward flatters most first."""
  path = run.folder / 'ppo' / 'samples.jsonl'
  if not path.exists():
    if 'ppo' in run.summaries:
      run.say(f'{path}: no such file, so no answers of PPO')
    return []
  rows = [row for row in run.read_rows(path) if html.is_number(row.get('reward'))]
  ranked = []
  for row in rows:
    key, text = str(row.get('id')), str(row.get('answer', ''))
    if truth is not None and key in truth and truth.is_long(key):
      score = truth.score(key, text)
      right = score.invented == 0 and score.recalled == score.required
      words = answers.facts_text(score)
      ranked.append((score.quality - row['reward'], row, right, words))
    else:
      ranked.append((row['reward'], row, None, ''))
  ranked.sort(key=lambda one: one[0])
  return [_response(run, *one, truth) for one in ranked[:RESPONSES]]


def _response(
  run: RunFiles,
  rank: float,
  row: dict[str, Any],
  correct: bool | None,
  words: str,
  truth: Truth | None,
) -> Sample:
  """Returns a sampled answer with its reward."""
  key, text = str(row.get('id')), str(row.get('answer', ''))
  facts = [f'reward {html.number(row["reward"])}', *([words] if words else [])]
  side = _answer(
    f'Iteration {row.get("iteration")}', _plain(text, key, truth), correct, facts
  )
  outcome = 'answer of unknown truth'
  if correct is not None:
    high = row['reward'] > 0
    outcome = (
      f'{"right" if correct else "wrong"}, {"rewarded" if high else "not rewarded"}'
    )
  paths = row.get('paths')
  video = Video(tuple(paths)) if isinstance(paths, list) else None
  body = (tag('div', side, class_='sides single'),)
  return Sample(
    run.label, 'PPO response', outcome, 'PPO response', (rank,),
    str(row.get('question', '')), video, body,
  )  # fmt: skip


# ---------------------------------------------------------------- the section


def build(
  runs: Sequence[RunFiles],
  samples: Sequence[Sequence[Sample]],
  roots: Sequence[pathlib.Path | None],
  pictures: Pictures,
) -> Html:
  """Returns all samples below their filters; runs in turn, so that all have pictures.

  Args:
    samples: of each run.
    roots: folders of the videos of each run.
  """
  if not any(samples):
    return tag('p', 'No answers are there.')
  cards = []
  for source in ('evaluation', 'preference', 'PPO response'):
    of_source = [
      [(place, one) for one in part if one.source == source]
      for place, part in enumerate(samples)
    ]
    turns = itertools.zip_longest(*of_source)
    for place, one in (one for turn in turns for one in turn if one is not None):
      strip = pictures.strip(roots[place], one.video)
      cards.append(_card(one, place, strip, len(runs) > 1))
  everything = [one for part in samples for one in part]
  return html.join([LEGEND, _filters(everything), tag('div', *cards, id='cards')])


LEGEND = tag(
  'p',
  'The worst first. Words that only one answer has are ',
  tag('del', 'struck out'),
  ' before and ',
  tag('ins', 'highlighted'),
  ' after; ',
  tag('span', 'claims that are wrong', class_='wrong'),
  ', where truth is known, are red.',
  class_='lead',
)


def _card(one: Sample, place: int, strip: Html | None, several: bool) -> Html:
  """Returns a sample as an article."""
  labels = [tag('span', one.outcome, class_='badge')]
  if one.kind != one.source:
    labels.append(tag('span', one.kind, class_='badge'))
  labels.append(tag('span', one.source, class_='badge'))
  if several:
    labels.append(tag('span', one.run, class_=f'run c{place}'))
  return tag(
    'article',
    tag('h3', one.title[: marks.LONGEST]),
    tag('p', html.join(labels, ' '), class_='labels'),
    strip,
    *one.body,
    data_run=one.run,
    data_outcome=one.outcome,
    data_kind=one.kind,
  )


def _filters(samples: Sequence[Sample]) -> Html:
  """Returns what chooses among samples; hidden where nothing could act on it."""
  menus = []
  for name, title in (('outcome', 'Outcome'), ('kind', 'Kind'), ('run', 'Run')):
    values = list(dict.fromkeys(getattr(one, name) for one in samples))
    if len(values) < 2:
      continue
    options = [
      tag(
        'option',
        f'{value} ({sum(getattr(s, name) == value for s in samples)})',
        value=value,
      )
      for value in sorted(values)
    ]
    everything = tag('option', f'all ({len(samples)})', value='')
    menus.append(
      tag(
        'label',
        tag('span', title),
        tag('select', everything, *options, data_filter=name),
      )
    )
  return tag(
    'form',
    *menus,
    tag('output', f'{len(samples)} of {len(samples)} samples', aria_live='polite'),
    id='filters',
    hidden=True,
    aria_label='Filter the samples',
  )
