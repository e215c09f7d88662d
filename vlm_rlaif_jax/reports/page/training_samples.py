"""Samples of training: what the judge preferred, what the reward model rewarded."""

from collections.abc import Sequence
from typing import Any

from vlm_rlaif_jax.data import fields
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.labeling import pairs
from vlm_rlaif_jax.reports.page import answers, html, marks, selection
from vlm_rlaif_jax.reports.page.answers import Graded
from vlm_rlaif_jax.reports.page.cards import Sample, answer_block, plain
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.run_files import RunFiles

PAIRS = 10  # preferences of a run
RESPONSES = 8  # sampled answers of PPO of a run


def preferences(
  run: RunFiles, audit: Sequence[dict[str, Any]], truth: Truth | None
) -> list[Sample]:
  """Returns labels with narrative and verdict: the surest wrong ones first."""
  rows = [row for row in audit if row['answers'][0] != row['answers'][1]]
  samples = []
  for row in rows:
    label, quality = _label(run, row), row.get('truth')
    outcome, rank = 'label, truth not known', -abs(row['margin'])
    if label is None:
      is_tie = _label(run, row, 'average') is None
      outcome = 'label: a tie' if is_tie else 'label: orders disagree'
    elif quality is not None:
      gain = (quality[0] - quality[1]) * (1 if label > 0 else -1)
      outcome = (
        'label right' if gain > 0 else 'label wrong' if gain < 0 else 'label of equals'
      )
      rank = abs(label) * gain
    samples.append((outcome, rank, row))
  chosen: list[tuple[str, float, dict[str, Any]]] = []
  for outcome, count in (
    ('label wrong', 6), ('label right', 3), ('label: a tie', 2),
    ('label: orders disagree', 2), ('label, truth not known', PAIRS),
  ):  # fmt: skip
    part = sorted((one for one in samples if one[0] == outcome), key=lambda one: one[1])
    part = part[::-1] if outcome == 'label right' else part
    chosen += selection.few_of_each(part, lambda one: str(one[2].get('record')))[:count]
  return [_preference(run, *one, truth) for one in chosen[:PAIRS]]


def _label(run: RunFiles, row: dict[str, Any], inconsistent: str = '') -> float | None:
  """Returns the margin that is the label of a row; None if it became no pair.

  Args:
    inconsistent: in place of the setting of this name.
  """
  settings = run.settings.get('label', {})
  threshold = settings.get('label.min_margin')
  return pairs.deciding_margin(
    row,
    float(threshold) if threshold and html.is_number(threshold) else 0.0,
    settings.get('label.ties', 'drop'),
    inconsistent or settings.get('label.inconsistent', 'average'),
  )


def _preference(
  run: RunFiles, outcome: str, rank: float, row: dict[str, Any], truth: Truth | None
) -> Sample:
  """Returns a question with two answers, and which of them the judge prefers."""
  first, second = row['answers']
  removed, added = marks.changed_words(first, second)
  label = _label(run, row)
  preferred = None if label is None else 0 if label > 0 else 1
  sides = []
  for place, (text, changed) in enumerate(((first, removed), (second, added))):
    wrong = marks.wrong_spans(text, str(row.get('id')), truth)
    facts = []
    if isinstance(row.get('scores'), list):
      facts.append(f'score of the judge {html.number(row["scores"][place])}')
    if isinstance(row.get('truth'), list):
      facts.append(f'true quality {html.number(row["truth"][place])}')
    title: Any = f'Answer {place + 1}'
    if place == preferred:
      title = html.join([title, ' ', tag('span', 'preferred', class_='badge')])
    sides.append(answer_block(title, marks.marked(text, changed, wrong), None, facts))
  body = (
    tag('div', *sides, class_='sides'),
    tag('p', f'Margin of the judge: {html.number(row["margin"])}', class_='small'),
    _narrative(str(row.get('narrative', ''))),
  )
  return Sample(
    run.label, 'preference', outcome, 'preference', (rank,),
    str(row.get('question', '')),
    fields.video_of(row['record'], 'the record') if row.get('record') else None, body,
  )  # fmt: skip


def _narrative(text: str) -> Html:
  """Returns the captions of the clips of a video, a line each."""
  lines = [
    tag('li', line) for line in text[: marks.LONGEST].splitlines() if line.strip()
  ]
  return tag('details', tag('summary', 'Narrative'), tag('ul', *lines), open=True)


def responses(run: RunFiles, truth: Truth | None) -> list[Sample]:
  """Returns sampled answers of PPO: those the reward flatters most first.

  Where no truth is known, those of the least reward.
  """
  path = run.folder / 'ppo' / 'samples.jsonl'
  if not path.exists():
    if 'ppo' in run.summaries:
      run.say(f'{path}: no such file, so no answers of PPO')
    return []
  rows = [row for row in run.read_rows(path) if html.is_number(row.get('reward'))]
  ranked: list[tuple[float, dict[str, Any], Graded]] = []
  for row in rows:
    key, text = str(row.get('id')), str(row.get('answer', ''))
    grade = answers.by_facts(key, text, truth)
    if grade is not None and grade.quality is not None:
      ranked.append((grade.quality - row['reward'], row, grade))
    else:
      ranked.append((row['reward'], row, Graded(None, None, '')))
  ranked.sort(key=lambda one: one[0])
  return [
    _response(run, rank, row, grade, truth) for rank, row, grade in ranked[:RESPONSES]
  ]


def _response(
  run: RunFiles,
  rank: float,
  row: dict[str, Any],
  grade: Graded,
  truth: Truth | None,
) -> Sample:
  """Returns a sampled answer with its reward."""
  correct = grade.correct
  key, text = str(row.get('id')), str(row.get('answer', ''))
  facts = [
    f'reward {html.number(row["reward"])}',
    *([grade.text] if grade.text else []),
  ]
  side = answer_block(
    f'Iteration {row.get("iteration")}', plain(text, key, truth), correct, facts
  )
  outcome = 'answer of unknown truth'
  if correct is not None:
    high = row['reward'] > 0
    outcome = (
      f'{"right" if correct else "wrong"}, {"rewarded" if high else "not rewarded"}'
    )
  video = answers.video_of(row) if row.get('paths') else None
  body = (tag('div', side, class_='sides single'),)
  return Sample(
    run.label, 'PPO response', outcome, 'PPO response', (rank,),
    str(row.get('question', '')), video, body,
  )  # fmt: skip
