"""Curves of every stage that trains, runs over one another."""

from collections.abc import Sequence
from typing import Any

from vlm_rlaif_jax.reports.page import html, plots
from vlm_rlaif_jax.reports.page.axes import Series
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.run_files import RunFiles

# Plots of PPO: title, note, whether noisy, (label, metric) of its lines.
PPO = (
  ('Reward', 'mean score of the sampled answers, by reward model or judge', True,
   (('', 'objective/reward'),)),
  ('Held-out reward', 'the same prompts every time', False,
   (('', 'held_out/reward'),)),
  ('Held-out truth', 'true quality of held-out answers, which nothing trains on: where '
   'it falls while the reward rises, the reward is hacked', False,
   (('truth', 'held_out/true_quality'), ('judge', 'held_out/judge'))),
  ('KL from the reference', 'nats an answer', True, (('', 'objective/kl'),)),
  ('Length of answers', 'tokens', True, (('', 'objective/tokens'),)),
  ('Entropy', 'of the policy, nats a token', True, (('', 'objective/entropy'),)),
  ('Value loss', '', True, (('', 'loss/value'),)),
  ('Explained variance', 'of the returns by the values; 1 is perfect', True,
   (('', 'explained_variance'),)),
)  # fmt: skip


def build(runs: Sequence[RunFiles]) -> Html:
  """Returns the plots of all stages."""
  parts = []
  for title, drawings in (
    ('Fine-tuning', [*_sft(runs), _loss(runs, 'init', 'Loss of the initial policy')]),
    ('Reward model', _reward(runs)),
    ('PPO', _ppo(runs)),
  ):
    drawings = [one for one in drawings if one]
    if drawings:
      parts += [tag('h3', title), tag('div', *drawings, class_='plots')]
    if title == 'Reward model':
      controls = _controls(runs)
      parts += [controls] if controls else []
  return html.join(parts or [tag('p', 'No stage has left metrics.')])


def points(run: RunFiles, stage: str, metric: str) -> list[tuple[float, float]]:
  """Returns (step, value) of a metric, of the rows that have it."""
  return [
    (row['step'], row[metric])
    for row in run.metrics.get(stage, ())
    if html.is_number(row.get('step')) and html.is_number(row.get(metric))
  ]


def series(
  runs: Sequence[RunFiles], stage: str, names: Sequence[tuple[str, str]]
) -> list[Series]:
  """Returns a line for each run and each (label, metric)."""
  one_run = len(runs) == 1
  return [
    Series(
      (label or metric) if one_run else f'{run.label} {label}'.strip(),
      points(run, stage, metric),
      place,
      dash,
    )
    for place, run in enumerate(runs)
    for dash, (label, metric) in enumerate(names)
  ]


def _loss(runs: Sequence[RunFiles], stage: str, title: str) -> Html | None:
  """Returns the loss of a stage."""
  drawing = series(runs, stage, [('', 'loss')])
  return plots.lines(title, drawing, 'step', noisy=True)


def _sft(runs: Sequence[RunFiles]) -> list[Html | None]:
  """Returns the loss of SFT, with the stages of its curriculum."""
  parts = [run.attempt('the curriculum', curriculum, run) or [] for run in runs]
  distinct = {tuple(part) for part in parts}
  named = {part for part in distinct if len(part) > 1}
  if named and len(distinct) > 1:  # runs of other curricula, or of none: a plot each
    return [
      plots.lines(
        f'Loss of SFT, {run.label}',
        series([run], 'sft', [('', 'loss')]),
        'step',
        noisy=True,
        marks=_marks(part),
      )
      for run, part in zip(runs, parts, strict=True)
    ]
  marks = _marks(list(named.pop())) if named else []
  orders = {str(run.summaries.get('sft', {}).get('order')) for run in runs}
  note = 'by stage of the curriculum: short answers, long answers'
  if not marks:
    order = ', '.join(sorted(orders - {'None'})) or 'not recorded'
    note = f'order of the samples: {order}'
  drawing = series(runs, 'sft', [('', 'loss')])
  return [
    plots.lines('Loss of SFT', drawing, 'step', noisy=True, marks=marks, note=note)
  ]


def curriculum(run: RunFiles) -> list[tuple[str, int]]:
  """Returns the stages of the curriculum and their steps, in their order."""
  return [
    (str(name), int(steps))
    for name, steps in run.summaries.get('sft', {}).get('curriculum', ())
  ]


def _marks(parts: Sequence[tuple[str, int]]) -> list[tuple[float, str]]:
  """Returns where the stages of a curriculum end; none if it has one."""
  marks, last = [], 0
  for name, steps in parts if len(parts) > 1 else ():
    last += steps
    marks.append((float(last), name))
  return marks


def _reward(runs: Sequence[RunFiles]) -> list[Html | None]:
  """Returns accuracy with and without the video, and the loss."""
  names = [('with video', 'eval_accuracy')]
  blind = ('without video', 'eval_accuracy_without_video')
  if any(points(run, 'reward', blind[1]) for run in runs):
    names.append(blind)
  accuracy = plots.lines(
    'Accuracy on held-out pairs',
    series(runs, 'reward', names),
    'step',
    y_text=html.share,
    y_range=(0.5, 0.5),
    note='%, against the labels; one half is chance',
  )
  training = plots.lines(
    'Accuracy on training pairs',
    series(runs, 'reward', [('', 'accuracy')]),
    'step',
    noisy=True,
    y_text=html.share,
    note='%, of the batch of a step',
  )
  return [accuracy, training, _loss(runs, 'reward', 'Loss of the reward model')]


def _controls(runs: Sequence[RunFiles]) -> Html | None:
  """Returns the final accuracy beside its controls, against labels and truth."""
  rows = []
  for title, own, true in (
    ('with the video', 'accuracy', 'own'),
    ('without the video', 'accuracy_without_video', 'blank'),
    ('another video', 'accuracy_other_video', 'other'),
    ('without the narrative', 'accuracy_without_narrative', 'no_narrative'),
    ('the shorter answer', 'accuracy_shorter', 'shorter'),
    ('the labels', '', 'labels'),
  ):
    cells: list[Any] = [title]
    for run in runs:
      summary = run.summaries.get('reward', {})
      truth = summary.get('truth')
      cells += [
        html.share(summary.get(own)),
        html.share(truth.get(true)) if isinstance(truth, dict) else '',
      ]
    if own != 'accuracy_without_narrative' or any(cells[1:]):  # most prompts have none
      rows.append(cells)
  if not any(cell for row in rows for cell in row[1:]):
    return None
  head = ['']
  for run in runs:
    name = '' if len(runs) == 1 else f'{run.label} '
    head += [f'{name}against labels', f'{name}against truth']
  return html.join(
    [
      tag('h4', 'Accuracy on held-out pairs in %, and its controls'),
      html.table(head, rows, 'Accuracy on held-out pairs, and its controls'),
    ]
  )


def _ppo(runs: Sequence[RunFiles]) -> list[Html | None]:
  """Returns the curves of PPO."""
  drawings = []
  for title, note, noisy, names in PPO:
    present = [
      (label, metric)
      for label, metric in names
      if any(points(run, 'ppo', metric) for run in runs)
    ]
    drawings.append(
      plots.lines(
        title, series(runs, 'ppo', present), 'iteration', noisy=noisy, note=note
      )
    )
  return drawings
