"""Samples of an evaluation, the worst first, and all samples of a run."""

from collections.abc import Sequence
from typing import Any

from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.reports.page import answers, html, marks, selection, training_samples
from vlm_rlaif_jax.reports.page.answers import Answered
from vlm_rlaif_jax.reports.page.cards import Sample, answer_block, plain, reference
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.run_files import RunFiles

A_RUN = 30  # samples of evaluation of a run
SHARES = {  # of these, by outcome
  'broken by RLAIF': 10,
  'wrong in both': 10,
  'repaired by RLAIF': 10,
  'right in both': 4,
  'other answer': 10,
  'same answer': 2,
}


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
  preferences = run.attempt(
    'its preferences', training_samples.preferences, run, audit, truth
  )
  responses = run.attempt('answers of PPO', training_samples.responses, run, truth)
  return [*evaluated, *(preferences or ()), *(responses or ())]


def _choose(items: Sequence[Answered]) -> list[Answered]:
  """Returns the worst of each outcome, kinds in turn, few of one video."""
  chosen = []
  for outcome, count in SHARES.items():
    part = sorted(
      (one for one in items if one.outcome == outcome), key=lambda one: one.rank
    )
    part = selection.few_of_each(part, lambda one: one.video)
    chosen += selection.in_turn(part, lambda one: one.kind)[:count]
  return sorted(chosen, key=lambda one: one.rank)[:A_RUN]


def _evaluated(run: RunFiles, item: Answered, truth: Truth | None) -> Sample:
  """Returns a question with the answers of SFT and RLAIF."""
  removed, added = marks.changed_words(item.answers['sft'], item.answers['rlaif'])
  sides = [
    _side(item, 'sft', 'SFT', removed, 'del', truth),
    _side(item, 'rlaif', 'RLAIF', added, 'ins', truth),
  ]
  others = [
    tag('p', tag('b', f'{name}: '), plain(item.answers[name], item.key, truth))
    for name in ('init', 'base')
    if name in item.answers
  ]
  body = [tag('div', *sides, class_='sides')]
  if item.reference:
    body.append(reference(item.reference))
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
  facts = [grade.text] if grade.text else []
  if name in item.rewards:
    facts.append(f'reward {html.number(item.rewards[name])}')
  return answer_block(
    title, marks.marked(text, changed, wrong, element), grade.correct, facts
  )
