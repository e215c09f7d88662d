"""A whole document around its sections: style, navigation, script; it loads nothing."""

import datetime
import pathlib
from collections.abc import Sequence

from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.version import __version__

FOLDER = pathlib.Path(__file__).parent

Section = tuple[str, str, Html]  # anchor, title, content


def compose(title: str, heading: str, sections: Sequence[Section]) -> str:
  """Returns an HTML document with everything in it.

  Args:
    title: of the window.
    heading: of the page.
  """
  now = datetime.datetime.now(datetime.UTC)
  head = tag(
    'head',
    tag('meta', charset='utf-8'),
    tag('meta', name='viewport', content='width=device-width, initial-scale=1'),
    tag('meta', name='color-scheme', content='light dark'),
    tag('title', title),
    tag('style', Html((FOLDER / 'style.css').read_text(encoding='utf-8'))),
  )
  body = tag(
    'body',
    tag('a', 'Skip to the content', href='#content', class_='skip'),
    tag(
      'header',
      tag('p', 'vlm-rlaif-jax', class_='brand'),
      tag('h1', heading),
      tag('p', f'{now:%Y-%m-%d %H:%M} UTC, version {__version__}', class_='small'),
    ),
    tag(
      'nav',
      tag(
        'ul', *(tag('li', tag('a', name, href=f'#{key}')) for key, name, _ in sections)
      ),
      aria_label='Sections',
    ),
    tag(
      'main',
      *(tag('section', tag('h2', name), part, id=key) for key, name, part in sections),
      id='content',
    ),
    tag('script', Html((FOLDER / 'script.js').read_text(encoding='utf-8'))),
  )
  return f'<!DOCTYPE html>\n{tag("html", head, body, lang="en")}\n'
