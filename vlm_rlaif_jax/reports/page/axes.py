"""The frame of a plot as inline SVG: scales, ticks, grid, legend."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from vlm_rlaif_jax.reports.page import html
from vlm_rlaif_jax.reports.page.html import Html, tag

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 38
COLORS = 6  # of the style sheet: classes c0, c1, ...
DASHES = ('', '6 4', '1.5 3.5')

Points = Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Series:
  """A line of a plot.

  Attributes:
    label: in the legend.
    points: (x, y), finite.
    color: number of a color; runs have one each.
    dash: number of a dash pattern, which tells lines of one run apart.
  """

  label: str
  points: Points
  color: int = 0
  dash: int = 0

  @property
  def class_(self) -> str:
    """Returns the class of its color."""
    return f'c{self.color % COLORS}'


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Returns round numbers from at most `low` to at least `high`, about `count`."""
  if not high > low:
    low, high = low - 0.5 * (abs(low) or 1), low + 0.5 * (abs(low) or 1)
  rough = (high - low) / max(count - 1, 1)
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
  first, last = math.floor(low / step + 1e-2), math.ceil(high / step - 1e-2)
  return [round(i * step, 12) for i in range(first, last + 1)]


def ticks_within(low: float, high: float, count: int = 5) -> list[float]:
  """Returns round numbers from at least `low` to at most `high`."""
  room = 1e-9 * (high - low)
  return [x for x in ticks(low, high, count) if low - room <= x <= high + room]


@dataclasses.dataclass(frozen=True)
class Frame:
  """Scales of a plot, from values to places in it.

  Attributes:
    x: ticks below the plot.
    y: ticks beside it, whose ends are those of the axis.
    ends: of the x axis; None: those of its ticks.
    height: of the whole plot.
    left: room for the labels of the y axis.
  """

  x: Sequence[float]
  y: Sequence[float]
  height: int = HEIGHT
  left: int = LEFT
  ends: tuple[float, float] | None = None

  def at_x(self, value: float) -> float:
    """Returns where a value lies, from the left."""
    low, high = self.ends or (self.x[0], self.x[-1])
    span = (value - low) / (high - low)
    return round(self.left + span * (WIDTH - self.left - RIGHT), 1)

  def at_y(self, value: float) -> float:
    """Returns where a value lies, from the top."""
    span = (value - self.y[0]) / (self.y[-1] - self.y[0])
    return round(self.height - BOTTOM - span * (self.height - BOTTOM - TOP), 1)

  def grid(
    self,
    x_title: str,
    x_text: Callable[[float], str] = html.number,
    y_text: Callable[[float], str] = html.number,
  ) -> list[Html]:
    """Returns grid lines with their numbers, and the title of the x axis."""
    right, bottom = WIDTH - RIGHT, self.height - BOTTOM
    parts = []
    for value in self.y:
      y = self.at_y(value)
      parts.append(line(self.left, y, right, y, 'zero' if value == 0 else 'grid'))
      parts.append(label(self.left - 6, y + 3.5, y_text(value), 'end'))
    for value in self.x:
      parts.append(label(self.at_x(value), bottom + 15, x_text(value), 'middle'))
    parts.append(
      label((self.left + right) / 2, bottom + 31, x_title, 'middle', 'title')
    )
    return parts


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
  """Returns a straight line."""
  return tag('line', x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def label(x: float, y: float, text: str, anchor: str, class_: str = '') -> Html:
  """Returns a text in a plot."""
  return tag('text', text, x=x, y=y, text_anchor=anchor, class_=class_ or None)


def path(points: Points, class_: str, dash: int = 0) -> Html:
  """Returns a line through places in a plot."""
  steps = 'L'.join(f'{x:g} {y:g}' for x, y in points)
  return tag(
    'path', d=f'M{steps}', class_=class_, stroke_dasharray=DASHES[dash % 3] or None
  )


def dot(x: float, y: float, class_: str, title: str, radius: float = 3) -> Html:
  """Returns a point that says its value under the pointer."""
  return tag('circle', tag('title', title), cx=x, cy=y, r=radius, class_=class_)


def figure(
  title: str,
  parts: Sequence[Html],
  alt: str,
  legend: Sequence[Html] = (),
  note: str = '',
  height: int = HEIGHT,
) -> Html:
  """Returns a plot with its caption and legend.

  Args:
    alt: what the plot shows, in words.
  """
  return tag(
    'figure',
    tag('figcaption', tag('b', title), tag('span', note) if note else None),
    tag('ul', *legend, class_='legend') if legend else None,
    tag(
      'svg',
      *parts,
      viewBox=f'0 0 {WIDTH} {height}',
      role='img',
      aria_label=alt,
    ),
    class_='plot',
  )


def legend_of(series: Sequence[Series]) -> list[Html]:
  """Returns an entry for each line; none for a single line."""
  if len(series) < 2:
    return []
  return [
    tag(
      'li',
      tag(
        'svg',
        path([(0, 5), (22, 5)], f'{one.class_} line', one.dash),
        viewBox='0 0 22 10',
        width='22',
        height='10',
        aria_hidden='true',
      ),
      one.label,
    )
    for one in series
  ]


def swatches(labels: Sequence[tuple[str, str]]) -> list[Html]:
  """Returns legend entries of areas: (label, class) each."""
  return [
    tag('li', tag('i', class_=f'swatch {class_}', aria_hidden='true'), text)
    for text, class_ in labels
  ]


def thin(points: Points, limit: int = 300) -> list[tuple[float, float]]:
  """Returns at most `limit` points, each the mean of its neighbors."""
  if len(points) <= limit:
    return list(points)
  groups = np.array_split(np.asarray(points, float), limit)
  return [(float(group[-1, 0]), float(group[:, 1].mean())) for group in groups]


def smooth(points: Points, window: int) -> list[tuple[float, float]]:
  """Returns running means over `window` points, fewer at both ends."""
  values = np.asarray([y for _, y in points], float)
  half = window // 2
  return [
    (x, float(values[max(i - half, 0) : i + half + 1].mean()))
    for i, (x, _) in enumerate(points)
  ]
