"""The numbers of the paper, and of the methods it compares with.

From the tables and charts of the paper's project page, and where marked from the
README tables of Video-ChatGPT and Video-LLaVA. Numbers that were read off a chart, not
printed, are accurate to about 0.3 and marked '~'. `None` is a number that no source
has. A judge, GPT-3.5 without a version, gave accuracies, scores and the five of the
generative benchmark: with another judge they are other numbers.
"""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Column:
  """A column of a table.

  Attributes:
    title: of the column.
    benchmark: whose metric it is, as `config.eval.benchmarks` names it.
    metrics: the names under which the metric may be in a summary.
    percent: whether it is a share.
  """

  title: str
  benchmark: str
  metrics: tuple[str, ...]
  percent: bool = False


@dataclasses.dataclass(frozen=True)
class PaperTable:
  """A table of the paper.

  Attributes:
    rows: method and its numbers, one a column, as text; None is blank.
    own: names of the rows of the paper's own models.
  """

  title: str
  note: str
  columns: tuple[Column, ...]
  rows: tuple[tuple[str, tuple[str | None, ...]], ...]
  own: tuple[str, ...] = ('VLM-SFT', 'VLM-RLAIF')


def _rows(text: str) -> tuple[tuple[str, tuple[str | None, ...]], ...]:
  """Returns rows from lines of `method | number | ...`, where '-' is no number."""
  rows = []
  for line in text.strip().splitlines():
    name, *cells = (cell.strip() for cell in line.split('|'))
    rows.append((name, tuple(None if cell == '-' else cell for cell in cells)))
  return tuple(rows)


GENERATIVE = PaperTable(
  'Video-based generative performance',
  'Mean score of a judge, 0 to 5, by criterion. The mean of the five is not in the '
  'paper; that of its own rows is computed here.',
  tuple(
    Column(title, benchmark, (title.lower(),))
    for title, benchmark in (
      ('Correctness', 'generic'),
      ('Detail', 'generic'),
      ('Context', 'generic'),
      ('Temporal', 'temporal'),
      ('Consistency', 'consistency'),
      ('Mean', 'generative'),
    )
  ),
  _rows(
    """
    VideoChat | 2.23 | 2.50 | 2.53 | 1.94 | 2.24 | -
    LLaMA-Adapter | 2.03 | 2.32 | 2.30 | 1.98 | 2.15 | -
    Video-LLaMA | 1.96 | 2.18 | 2.16 | 1.82 | 1.79 | -
    Video-ChatGPT | 2.40 | 2.52 | 2.62 | 1.98 | 2.37 | -
    Valley | 2.43 | 2.13 | 2.86 | 2.04 | 2.45 | -
    BT-Adapter | 2.68 | 2.69 | 3.27 | 2.34 | 2.46 | -
    VTimeLLM | 2.78 | 3.10 | 3.40 | 2.49 | 2.47 | -
    Video-LLaVA | 2.84 | 2.86 | 3.44 | 2.46 | 2.57 | -
    VideoChat2 | 3.02 | 2.88 | 3.51 | 2.66 | 2.81 | -
    LLaMA-VID 7B | 2.96 | 3.00 | 3.53 | 2.46 | 2.51 | -
    LLaMA-VID 13B | 3.07 | 3.05 | 3.60 | 2.58 | 2.63 | -
    GPT-4V | 3.85 | 3.45 | 3.84 | 3.63 | 2.80 | -
    VLM-SFT | 2.79 | 2.82 | 3.37 | 2.28 | 2.49 | 2.75
    VLM-RLAIF | 3.63 | 3.25 | 4.00 | 3.23 | 3.32 | 3.49
    """
  ),
)

QA = PaperTable(
  'Zero-shot video question answering',
  'Accuracy in %, and mean score of a judge, 0 to 5. The scores of the two models of '
  'the paper are in no source read; a re-evaluation by others (Oracle-RLAIF) found the '
  'released weights at 68.5, 54.2 and 46.1 %.',
  tuple(
    column
    for name, benchmark in (
      ('MSVD', 'msvd_qa'),
      ('MSRVTT', 'msrvtt_qa'),
      ('ActivityNet', 'activitynet_qa'),
    )
    for column in (
      Column(f'{name} %', benchmark, ('accuracy',), percent=True),
      Column('score', benchmark, ('score',)),
    )
  ),
  _rows(
    """
    FrozenBiLM | 32.2 | - | 16.8 | - | 24.7 | -
    VideoChat | 56.3 | 2.8 | 45.0 | 2.5 | 26.5 | 2.2
    LLaMA-Adapter | 54.9 | 3.1 | 43.8 | 2.7 | 34.2 | 2.7
    Video-LLaMA | 51.6 | 2.5 | 29.6 | 1.8 | 12.4 | 1.1
    Video-ChatGPT | 64.9 | 3.3 | 49.3 | 2.8 | 35.2 | 2.7
    Chat-UniVi | 65.0 | 3.6 | 54.6 | 3.1 | 45.8 | 3.2
    Video-LLaVA | 70.7 | 3.9 | 59.2 | 3.5 | 45.3 | 3.3
    BT-Adapter | - | - | - | - | 45.7 | -
    LLaMA-VID | - | - | - | - | 47.4 | -
    VideoChat2 | - | - | - | - | 49.1 | -
    VLM-SFT | 67.2 | - | 52.4 | - | 44.1 | -
    VLM-RLAIF | 76.4 | - | 63.0 | - | 57.3 | -
    """
  ),
)

R1 = ('t2v_r1', 'r1', 'r@1', 'r_at_1', 'recall_1', 'recall_at_1')
R5 = ('t2v_r5', 'r5', 'r@5', 'r_at_5', 'recall_5', 'recall_at_5')
RETRIEVAL = PaperTable(
  'Zero-shot text-to-video retrieval',
  'R@1 and R@5 in %, of a generated description against captions in the text space of '
  'CLIP. The paper does not fix CLIP, split or prompt; its R@5 are in no source read.',
  tuple(
    Column(f'{name} {title}', benchmark, metrics, percent=True)
    for name, benchmark in (('MSVD', 'msvd_retrieval'), ('MSRVTT', 'msrvtt_retrieval'))
    for title, metrics in (('R@1', R1), ('R@5', R5))
  ),
  _rows(
    """
    Video-ChatGPT | ~26.0 | - | ~14.7 | -
    LLaMA-VID | ~27.3 | - | ~17.0 | -
    Video-LLaVA | ~29.4 | - | ~18.7 | -
    VLM-SFT | 26.65 | - | ~13.1 | -
    VLM-RLAIF | 36.03 | - | ~21.0 | -
    """
  ),
)

TOP1 = ('top1', 'top_1', 'top-1', 'accuracy')
TOP5 = ('top5', 'top_5', 'top-5')
ACTION = PaperTable(
  'Zero-shot action recognition',
  'Top-1 and top-5 in %, of a generated description against class names in the text '
  "space of CLIP. The paper's top-5 are in no source read.",
  tuple(
    Column(f'{name} {title}', benchmark, metrics, percent=True)
    for name, benchmark in (('UCF101', 'ucf101'), ('HMDB51', 'hmdb51'))
    for title, metrics in (('top-1', TOP1), ('top-5', TOP5))
  ),
  _rows(
    """
    Video-ChatGPT | ~51.5 | - | ~37.1 | -
    Video-LLaVA | ~52.3 | - | ~36.7 | -
    LLaMA-VID | ~56.6 | - | ~38.9 | -
    VLM-SFT | 53.03 | - | ~38.6 | -
    VLM-RLAIF | 62.83 | - | ~44.8 | -
    """
  ),
)

TABLES: Sequence[PaperTable] = (GENERATIVE, QA, RETRIEVAL, ACTION)
