"""Hooks of mkdocs: tables of settings from the dataclasses, and equations as MathML.

`{{ settings STAGE.SECTION }}` becomes a table of the fields of a section, and
`{{ values STAGE }}` one of what the stage's config file sets for each size. Both come
from the code, so the page cannot say anything else. On pages with `math: true` in their
head, `$...$` and `$$...$$` become MathML, which browsers show without JavaScript.
"""

import functools
import html
import importlib
import pathlib
import re
import sys
from typing import Any

from vlm_rlaif_jax.settings import describe, stages
from vlm_rlaif_jax.settings.build import ConfigError, from_config_dict

ROOT = str(pathlib.Path(__file__).parents[2])
SIZES = ('tiny', '7b', '13b')  # small has the settings of tiny
_MARK = re.compile(r'^\{\{ (settings|values) (\w+)\.?([\w.]*) \}\}$', re.MULTILINE)
_DASH = re.compile(r'(<li class="doc-section-item field-body">\s*)–')
_CODE = re.compile(r'(```.*?```|`[^`\n]*`)', re.DOTALL)
_BLOCK = re.compile(r'\$\$(.+?)\$\$', re.DOTALL)
_INLINE = re.compile(r'\$([^$\n]+?)\$')


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
  """Fills in tables and equations of a page, as mkdocs asks for."""
  del kwargs
  if page.meta.get('math'):
    markdown = equations(markdown)
  return fill(markdown)


def on_page_content(content: str, **kwargs: Any) -> str:
  """Drops the dash that mkdocstrings puts before results without a name."""
  del kwargs
  return _DASH.sub(r'\1', content)


def fill(markdown: str) -> str:
  """Replaces the marks of a page by tables."""

  def one(match: re.Match) -> str:
    kind, stage, section = match.groups()
    return values_table(stage) if kind == 'values' else settings_table(stage, section)

  return _MARK.sub(one, markdown)


def settings_table(stage: str, section: str) -> str:
  """Returns a table of one section's own fields: name and type, default, meaning."""
  found = {s.name: s for s in describe.sections(stages.every()[stage].settings)}
  if section not in found:
    raise KeyError(f'{stage} has no section {section!r}; it has {", ".join(found)}')
  rows = ['| setting | default | meaning |', '|---|---|---|']
  for setting in found[section].settings:
    name = f'`{setting.name}`<br><small>{setting.type}</small>'
    meaning = linked(escaped(capitalized(setting.meaning)))
    rows.append(f'| {name} | {code(setting.default)} | {meaning} |')
  return '\n'.join(rows)


def values_table(stage: str) -> str:
  """Returns what `configs/<stage>.py` sets beyond the defaults, a column a size."""
  runs = {size: run for size in SIZES if (run := configured(stage, size)) is not None}
  rows = [
    f'| setting | default | {" | ".join(f"`{size}`" for size in runs)} |',
    f'|---|---|{"---|" * len(runs)}',
  ]
  for setting in describe.settings(stages.every()[stage].settings):
    if setting.name.startswith(('model.', 'critic.')) or setting.name == 'size':
      continue  # the networks are in configs/models.py
    path = setting.name.split('.')
    values = [functools.reduce(getattr, path, run) for run in runs.values()]
    if any(value != setting.default for value in values):
      cells = [f'`{setting.name}`', code(setting.default), *map(code, values)]
      rows.append(f'| {" | ".join(cells)} |')
  return '\n'.join(rows)


def configured(stage: str, size: str) -> Any:
  """Returns a stage's settings as its config file has them; None for other sizes."""
  if ROOT not in sys.path:  # mkdocs takes away what a hook adds while it is loaded
    sys.path.insert(0, ROOT)
  try:
    config = importlib.import_module(f'configs.{stage}').get_config(size)
  except ConfigError:
    return None
  return from_config_dict(stages.every()[stage].settings, config)


def code(value: Any) -> str:
  """Returns a value as it is given on a command line."""
  if isinstance(value, str):
    return f'`{value}`' if value else "`''`"
  if isinstance(value, tuple):
    return f'`{", ".join(map(str, value)) or "()"}`'
  return f'`{value}`'


def capitalized(text: str) -> str:
  return text[:1].upper() + text[1:]


def linked(text: str) -> str:
  """Returns a text whose rows of the register (B01) lead to it."""
  return re.sub(r'\b(B\d\d)\b', r'[\1](departures.md)', text)


def escaped(cell: str) -> str:
  """Returns the text of a cell; what looks like HTML or a column is text."""
  cell = cell.replace("''", "`''`")
  parts = re.split(r'(`[^`]*`)', cell.replace('|', r'\|'))
  return ''.join(p if p.startswith('`') else html.escape(p, quote=False) for p in parts)


def equations(markdown: str) -> str:
  """Replaces LaTeX outside code by MathML."""
  from latex2mathml import converter

  def display(match: re.Match) -> str:
    mathml = converter.convert(match[1].strip(), display='block')
    return f'<div class="equation">{mathml}</div>'

  def inline(match: re.Match) -> str:
    return f'<span>{converter.convert(match[1])}</span>'  # a line may start with it

  parts = _CODE.split(markdown)
  for index in range(0, len(parts), 2):
    parts[index] = _INLINE.sub(inline, _BLOCK.sub(display, parts[index]))
  return ''.join(parts)
