"""Markup that is safe by construction: whatever is not markup is escaped.

A text of a run (an answer, a file name) becomes part of a page as the argument of
`tag`, which escapes it; only what `tag` and `join` return is markup.
"""

import html
import math
from collections.abc import Iterable
from typing import Any


class Html(str):
  """Text that is markup."""

  __slots__ = ()


EMPTY = frozenset(('br', 'img', 'input', 'meta'))  # tags that have no end


def escape(value: Any) -> Html:
  """Returns a value as markup: as it is if it is markup, else escaped."""
  return value if isinstance(value, Html) else Html(html.escape(str(value)))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
  """Returns an element.

  Args:
    children: texts, which are escaped, and markup; None is left out.
    attributes: `class_` stands for class, `data_kind` for data-kind; None and False
      are left out, True is an attribute without a value.
  """
  texts = []
  for key, value in attributes.items():
    if value is None or value is False:
      continue
    key = key.rstrip('_').replace('_', '-')
    texts.append(f' {key}' if value is True else f' {key}="{html.escape(str(value))}"')
  start = f'<{name}{"".join(texts)}>'
  if name in EMPTY:
    return Html(start)
  return Html(f'{start}{join(children)}</{name}>')


def join(parts: Iterable[Any], separator: str = '') -> Html:
  """Returns parts in a row; texts among them are escaped."""
  return Html(separator.join(escape(part) for part in parts if part is not None))


def table(
  head: Iterable[Any], rows: Iterable[Iterable[Any]], caption: str, **attributes: Any
) -> Html:
  """Returns a table that scrolls sideways where the page is narrow.

  Args:
    rows: their first cells are headings of rows; a cell that is an element `td` or
      `th` already is taken as it is.
    caption: what the table has, for whoever does not see it.
  """
  return tag(
    'div',
    tag(
      'table',
      tag('caption', caption),
      tag('thead', tag('tr', *map(_heading, head))),
      tag('tbody', *(tag('tr', *_row(row)) for row in rows)),
      **attributes,
    ),
    class_='wide',
    role='region',
    aria_label=caption,
    tabindex='0',
  )


def _row(cells: Iterable[Any]) -> list[Html]:
  """Returns the cells of a row, the first one as its heading."""
  first, *rest = cells
  return [_cell(first, 'th', 'row'), *(_cell(cell, 'td') for cell in rest)]


def _heading(value: Any) -> Html:
  """Returns the heading of a column; a cell without text is none."""
  return _cell(value, 'th', 'col') if value else tag('td')


def _cell(value: Any, name: str, scope: str | None = None) -> Html:
  """Returns a cell; None is an empty one."""
  if isinstance(value, Html) and value.startswith(('<td', '<th')):
    return value
  return tag(name, value, scope=scope)


def is_number(value: Any) -> bool:
  """Returns whether a value of a file is a finite number."""
  is_real = isinstance(value, int | float) and not isinstance(value, bool)
  return is_real and math.isfinite(value)


def share(value: Any) -> str:
  """Returns a share as a percentage, '' where it is none."""
  return f'{100 * value:.1f}' if is_number(value) else ''


def share_text(value: float) -> str:
  """Returns a share as a whole percentage."""
  return f'{100 * value:.0f}'


def number(value: Any) -> str:
  """Returns a number in at most four digits, '' where it is none."""
  if not is_number(value):
    return ''
  if isinstance(value, int) or (abs(value) >= 1000 and value == int(value)):
    return f'{int(value):,}'
  return f'{value:.4g}' if abs(value) < 1000 else f'{value:,.0f}'


def with_interval(value: Any, interval: Any, percent: bool = True) -> Html | str:
  """Returns a number with its interval in small; '' where there is none."""
  scale = 100 if percent else 1
  if not is_number(value):
    return ''
  text = f'{scale * value:.1f}' if percent else f'{value:.2f}'
  if not isinstance(interval, list) or not all(map(is_number, interval)):
    return text
  low, high = interval
  ends = (
    f'{scale * low:.1f}, {scale * high:.1f}' if percent else f'{low:.2f}, {high:.2f}'
  )
  return join([text, ' ', tag('small', f'[{ends}]')])
