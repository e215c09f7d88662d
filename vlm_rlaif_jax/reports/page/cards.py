"""A sample as a card of the page, and the filters above all cards."""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence

from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.reports.page import html, marks
from vlm_rlaif_jax.reports.page.html import Html, tag
from vlm_rlaif_jax.reports.page.pictures import Pictures


@dataclasses.dataclass(frozen=True)
class Sample:
  """One sample as it is displayed, and what filters look at.

  Attributes:
    source: 'evaluation', 'preference' or 'PPO response'.
    outcome: what happened to it.
    rank: samples are in this order, the least first.
    body: what is below its pictures.
  """

  run: str
  source: str
  outcome: str
  kind: str
  rank: tuple[float, ...]
  title: str
  video: Video | None
  body: tuple[Html, ...]


def build(
  several: bool,
  samples: Sequence[Sequence[Sample]],
  roots: Sequence[pathlib.Path | None],
  sampled: Sequence[int | None],
  pictures: Pictures,
) -> Html:
  """Returns all samples below their filters; runs in turn, so that all have pictures.

  Args:
    several: whether a card names its run.
    samples: of each run.
    roots: folders of the videos of each run.
    sampled: frames of a whole video in each run; None: not known.
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
      strip = pictures.strip(roots[place], one.video, sampled[place])
      cards.append(_card(one, place, strip, several))
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


# ---------------------------------------------------------------- parts of a card


def answer_block(
  title: str, text: Html, correct: bool | None, facts: Sequence[str]
) -> Html:
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


def plain(text: str, key: str, truth: Truth | None) -> Html:
  """Returns a text with what is wrong in it."""
  return marks.marked(text, set(), marks.wrong_spans(text, key, truth))


def reference(text: str) -> Html:
  """Returns the right answer."""
  return tag('p', tag('b', 'Reference: '), text[: marks.LONGEST], class_='reference')
