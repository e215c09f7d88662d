"""The plots of a page: lines, intervals, histograms, reliability."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_rlaif_jax.reports.page import axes, html
from vlm_rlaif_jax.reports.page.axes import Frame, Series
from vlm_rlaif_jax.reports.page.html import Html

NOISY = 30  # points from which on a noisy line has its running mean
DOTS = 45  # points up to which each has a dot
BINS = 24  # of a histogram


def lines(
  title: str,
  series: Sequence[Series],
  x_title: str,
  *,
  note: str = '',
  noisy: bool = False,
  y_text: Callable[[float], str] = html.number,
  y_range: tuple[float, float] | None = None,
  marks: Sequence[tuple[float, str]] = (),
) -> Html | None:
  """Returns lines over steps; None where no series has a point.

  Args:
    noisy: whether a long line is drawn faintly below its running mean.
    y_range: that the axis has at least.
    marks: (x, label) of vertical lines.
  """
  series = [one for one in series if one.points]
  if not series:
    return None
  xs = [x for one in series for x, _ in one.points]
  ys = [y for one in series for _, y in one.points]
  low, high = y_range or (min(ys), max(ys))
  last = max(*xs, 1)
  frame = Frame(
    axes.ticks_within(0, last),
    axes.ticks(min(low, *ys), max(high, *ys), 4),
    ends=(0, last),
  )
  parts = frame.grid(x_title, y_text=y_text)
  for x, text in marks:
    place = frame.at_x(x)
    bottom = axes.HEIGHT - axes.BOTTOM
    parts.append(axes.line(place, axes.TOP, place, bottom, 'mark'))
    parts.append(axes.label(place - 4, axes.TOP + 10, text, 'end', 'marked'))
  for one in series:
    points = axes.thin(one.points)
    if noisy and len(points) > NOISY:
      parts.append(_line(frame, one, points, 'faint'))
      points = axes.smooth(points, max(len(points) // 15, 3))
    parts.append(_line(frame, one, points, 'line'))
    if len(points) <= DOTS:
      parts += [
        axes.dot(
          frame.at_x(x),
          frame.at_y(y),
          f'{one.class_} dot',
          f'{one.label}, {x_title} {html.number(x)}: {y_text(y)}',
          2.2,
        )
        for x, y in points
      ]
  alt = '; '.join(
    f'{one.label}: from {y_text(one.points[0][1])} at {html.number(one.points[0][0])} '
    f'to {y_text(one.points[-1][1])} at {x_title} {html.number(one.points[-1][0])}'
    for one in series
  )
  return axes.figure(title, parts, f'{title}. {alt}', axes.legend_of(series), note)


def _line(
  frame: Frame, one: Series, points: Sequence[tuple[float, float]], kind: str
) -> Html:
  """Returns the line of a series."""
  places = [(frame.at_x(x), frame.at_y(y)) for x, y in points]
  return axes.path(places, f'{one.class_} {kind}', one.dash)


def intervals(
  title: str,
  rows: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
  *,
  note: str = '',
  x_title: str = '%',
  zero: bool = False,
  span: Sequence[float] = (),
  legend: Sequence[Html] = (),
) -> Html | None:
  """Returns values with their intervals, a row a label; None where there is none.

  Args:
    rows: label and its values, `{value, interval, color, name}`, in percent.
    zero: whether the axis has 0.
    span: values that the axis has at least.
  """
  values = [one for _, group in rows for one in group]
  if not values:
    return None
  ends = [end for one in values for end in one['interval']]
  ends += [one['value'] for one in values] + ([0.0] if zero else []) + [*span]
  counts = [max(len(group), 1) for _, group in rows]
  height = axes.TOP + axes.BOTTOM + sum(15 * count + 10 for count in counts)
  longest = max(len(name) for name, _ in rows)
  left = max(axes.LEFT, min(7 * longest + 14, 150))
  frame = Frame(axes.ticks(min(ends), max(ends), 5), (0.0, 1.0), height, left)
  parts = []
  for value in frame.x:
    x = frame.at_x(value)
    style = 'zero' if zero and value == 0 else 'grid'
    parts.append(axes.line(x, axes.TOP, x, height - axes.BOTTOM, style))
    parts.append(axes.label(x, height - axes.BOTTOM + 15, html.number(value), 'middle'))
  middle = (left + axes.WIDTH - axes.RIGHT) / 2
  parts.append(axes.label(middle, height - 7, x_title, 'middle', 'title'))
  y = float(axes.TOP)
  for (name, group), count in zip(rows, counts, strict=True):
    center = y + (15 * count + 10) / 2
    parts.append(axes.label(left - 8, center + 3.5, name, 'end', 'name'))
    for place, one in enumerate(group):
      level = y + 5 + 15 * place + 7.5
      low, high = (frame.at_x(end) for end in one['interval'])
      color = f'c{one["color"] % axes.COLORS}'
      parts.append(axes.line(low, level, high, level, f'{color} whisker'))
      text = f'{one["name"]} {name}: {_interval_text(one)}'
      x = frame.at_x(one['value'])
      parts.append(axes.dot(x, level, f'{color} dot', text, 4))
    y += 15 * count + 10
  alt = '; '.join(
    f'{one["name"]} {name} {_interval_text(one)}'
    for name, group in rows
    for one in group
  )
  return axes.figure(title, parts, f'{title}. {alt}', legend, note, height)


def _interval_text(one: Mapping[str, Any]) -> str:
  """Returns '62.8 [60.3, 65.2]'."""
  low, high = one['interval']
  return f'{one["value"]:.1f} [{low:.1f}, {high:.1f}]'


def histogram(
  title: str,
  groups: Sequence[tuple[str, Sequence[float], str]],
  x_title: str,
  *,
  note: str = '',
  marks: Sequence[float] = (),
) -> Html | None:
  """Returns a histogram of groups on top of one another; None if all are empty.

  Args:
    groups: label, values, class of the color.
    marks: places of vertical lines.
  """
  groups = [(label, values, class_) for label, values, class_ in groups if len(values)]
  if not groups:
    return None
  everything = np.concatenate([np.asarray(values, float) for _, values, _ in groups])
  low, high = np.quantile(everything, [0.002, 0.998])
  x = axes.ticks(float(low), float(high), 7)
  edges = np.linspace(x[0], x[-1], BINS + 1)
  counts = [
    np.histogram(np.clip(values, x[0], x[-1]), edges)[0] for _, values, _ in groups
  ]
  frame = Frame(x, axes.ticks(0, float(sum(counts).max()), 4))  # type: ignore[union-attr]
  parts = frame.grid(x_title)
  base = np.zeros(BINS)
  for (label, _, class_), count in zip(groups, counts, strict=True):
    for i in np.flatnonzero(count):
      left, right = frame.at_x(edges[i]), frame.at_x(edges[i + 1])
      top, bottom = frame.at_y(base[i] + count[i]), frame.at_y(base[i])
      text = f'{label}, {html.number(edges[i])} to {html.number(edges[i + 1])}'
      parts.append(
        html.tag(
          'rect',
          html.tag('title', f'{text}: {count[i]}'),
          x=left + 0.5,
          y=top,
          width=round(right - left - 1, 1),
          height=round(bottom - top, 1),
          class_=f'bar {class_}',
        )
      )
    base += count
  for value in marks:
    if x[0] <= value <= x[-1]:
      place = frame.at_x(value)
      bottom = axes.HEIGHT - axes.BOTTOM
      parts.append(axes.line(place, axes.TOP, place, bottom, 'mark'))
  alt = '; '.join(
    f'{label}: {len(values)}, median {html.number(float(np.median(values)))}'
    for label, values, _ in groups
  )
  legend = axes.swatches(
    [(f'{label} ({len(values):,})', class_) for label, values, class_ in groups]
  )
  return axes.figure(title, parts, f'{title}. {alt}', legend, note)


def reliability(
  title: str, series: Sequence[tuple[Series, Sequence[int]]], *, note: str = ''
) -> Html | None:
  """Returns accuracy by confidence, from one half to 1; None where there is none.

  Args:
    series: a curve, and the number of pairs behind each of its points.
  """
  series = [(one, sizes) for one, sizes in series if one.points]
  if not series:
    return None
  ys = [y for one, _ in series for _, y in one.points]
  y = axes.ticks(min(0.4, *ys), 1.0, 4)
  frame = Frame([0.5, 0.6, 0.7, 0.8, 0.9, 1.0], y)
  parts = frame.grid('confidence, %', html.share_text, html.share_text)
  parts.append(
    axes.line(frame.at_x(0.5), frame.at_y(0.5), frame.at_x(1), frame.at_y(1), 'mark')
  )
  texts = []
  for one, sizes in series:
    places = [(frame.at_x(x), frame.at_y(y)) for x, y in one.points]
    parts.append(axes.path(places, f'{one.class_} line', one.dash))
    largest = max(sizes)
    for (x, y), place, size in zip(one.points, places, sizes, strict=True):
      confidence, right = html.share_text(x), html.share_text(y)
      text = f'{one.label}: confidence {confidence} %, right {right} %, n {size}'
      radius = round(2 + 4 * (size / largest) ** 0.5, 1)
      parts.append(axes.dot(*place, f'{one.class_} dot', text, radius))
      texts.append(text)
  legend = axes.legend_of([one for one, _ in series])
  return axes.figure(title, parts, f'{title}. {"; ".join(texts)}', legend, note)
