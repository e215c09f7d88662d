"""Zero-shot action recognition: the class whose text is nearest to what a model says.

A model says which action it sees; the answer is compared with a text for each class in
CLIP's text space. The test videos of the chosen splits are all answered once.

    classInd.txt                   number and name of each class of UCF101 (Soomro et
                                   al. 2012)
    testlist01.txt ... 03.txt      class/video.avi, a test video a line
    <class>_test_split1.txt ...    of HMDB51 (Kuehne et al. 2011): video, and 1 (train),
                                   2 (test) or 0 (neither)
"""

import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from vlm_rlaif_jax.data import examples, prompts, rows, words
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark, Locate, Outputs, Tools
from vlm_rlaif_jax.evals.records import Item, Values
from vlm_rlaif_jax.settings.eval import EvalRun

TIE = 1e-6  # cosines that differ by less are equal: the error of float32
TOP = (1, 5)
TEMPLATES = {
  'name': ('{}',),
  'single': ('a video that shows the action: {}.',),
  'ensemble': (
    'a video that shows the action: {}.',
    'in this clip, the action is {}.',
    'what happens is {}.',
    'an example of {}.',
    'an action called {}.',
    '{}',
  ),
}
_HMDB = re.compile(r'(.+)_test_split([1-3])\.txt')
_CLASSES = 'classInd.txt'
_UCF = re.compile(r'testlist0([1-3])\.txt')
_WORDS = re.compile(r'(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[_\s-]+')

Tests = Mapping[int, Sequence[tuple[str, str, str]]]
"""By split, (where, class, name of the video) of each test video."""


def class_text(name: str) -> str:
  """Returns 'apply eye makeup' of 'ApplyEyeMakeup', 'brush hair' of 'brush_hair'."""
  return ' '.join(word.lower() for word in _WORDS.split(name) if word)


# ---------------------------------------------------------------------------- files


def read_ucf101(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun
) -> list[Item]:
  """Returns the test videos of the chosen splits of UCF101."""
  index = next((path for path in files if path.name == _CLASSES), None)
  if index is None:
    raise DataError(
      f'{files[0]}: expected {_CLASSES} beside it; give their folder '
      '(config.eval.annotations)'
    )
  classes = _numbered_classes(index)
  tests: dict[int, list[tuple[str, str, str]]] = {}
  for path in files:
    if match := _UCF.fullmatch(path.name):
      tests[int(match[1])] = [
        _ucf_row(where, line, classes, index)
        for where, line in rows.read_lines(path, 'a line a video, class/video.avi')
      ]
  return _items(tests, classes, files, locate, settings)


def _numbered_classes(path: pathlib.Path) -> list[str]:
  """Returns the names in lines `number name`, in the order of the numbers."""
  names: list[tuple[str, str]] = []
  for where, line in rows.read_lines(path, 'lines of a number and a class'):
    number, _, name = line.partition(' ')
    if number != str(len(names) + 1) or not name.strip():
      raise DataError(
        f'{where}: must be {len(names) + 1} and the name of a class, got {line!r}'
      )
    names.append((name.strip(), where))
  examples.check_distinct('class', names)
  return [name for name, _ in names]


def _ucf_row(
  where: str, line: str, classes: Sequence[str], index: pathlib.Path
) -> tuple[str, str, str]:
  """Returns (where, class, video) of a line `class/video.avi`, with a number or not."""
  video = line.split()[0]
  label, slash, name = video.partition('/')
  if not slash or not name:
    raise DataError(f'{where}: must be class/video.avi, got {line!r}')
  if label not in classes:
    raise DataError(f'{where}: the class {label!r} is not in {index}')
  return where, label, video


def read_hmdb51(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun
) -> list[Item]:
  """Returns the test videos, marked 2, of the chosen splits of HMDB51."""
  tests: dict[int, list[tuple[str, str, str]]] = {}
  classes = []
  for path in sorted(files):
    match = _HMDB.fullmatch(path.name)
    if not match:
      raise DataError(f'{path}: must be named <class>_test_split<1, 2 or 3>.txt')
    label, split = match[1], int(match[2])
    if label not in classes:
      classes.append(label)
    for where, line in rows.read_lines(path, 'a line a video, with a mark'):
      video, _, mark = line.rpartition(' ')
      if mark not in ('0', '1', '2') or not video:
        raise DataError(f'{where}: must be a video and 0, 1 or 2, got {line!r}')
      if mark == '2':
        tests.setdefault(split, []).append((where, label, f'{label}/{video.strip()}'))
  return _items(tests, classes, files, locate, settings)


def _items(
  tests: Tests,
  classes: Sequence[str],
  files: Sequence[pathlib.Path],
  locate: Locate,
  settings: EvalRun,
) -> list[Item]:
  """Returns an item for each video that is a test video of a chosen split."""
  chosen = settings.text_scores.splits
  absent = [str(split) for split in chosen if not tests.get(split)]
  if absent:
    raise DataError(
      f'{files[0].parent}: no test videos of split {", ".join(absent)}, which '
      'config.text_scores.splits has'
    )
  by_name: dict[str, tuple[str, str, list[int]]] = {}
  for split in chosen:
    examples.check_distinct('video', ((name, where) for where, _, name in tests[split]))
    for where, label, name in tests[split]:
      by_name.setdefault(name, (where, label, []))[2].append(split)
  prompt = prompts.load(settings.text_scores.action_prompt)
  return [
    Item(
      key=name,
      video=locate(name),
      video_name=name,
      prompts=(prompt,),
      reference=class_text(label),
      fields={'class': label, 'classes': list(classes), 'splits': splits},
      location=where,
    )
    for name, (where, label, splits) in by_name.items()
  ]


# --------------------------------------------------------------------------- scores


def score(items: Sequence[Item], outputs: Outputs, tools: Tools) -> Values:
  """Returns top-1, top-5 and macro top-1 as values an item, and lengths.

  With several splits each is the mean of theirs; `macro` is the mean over the classes
  of the mean over the videos of a class. Classes without a video are candidates and do
  not count in it. A class that ties with the right one counts as nearer.

  Returns:
    top1, top5, macro; chance: what guessing gives at top 1; words of the answer;
    over_limit: it exceeds the context of the text tower.
  """
  assert tools.encode_texts is not None
  classes = items[0].fields['classes']
  answers = [texts[0] for texts in outputs.predictions]
  encoded = tools.encode_texts(answers)
  vectors = class_vectors(classes, tools)
  labels = np.asarray([classes.index(item.fields['class']) for item in items])
  rank = class_ranks(encoded.vectors @ vectors.T, labels)
  weight, macro = _weights(items, labels)
  return {
    **{f'top{k}': ((rank <= k) * weight).tolist() for k in TOP},
    'macro': ((rank <= 1) * macro).tolist(),
    'chance': [1 / len(classes)] * len(items),
    'words': [float(words.count(text)) for text in answers],
    'over_limit': [float(flag) for flag in encoded.is_long],
  }


def class_vectors(classes: Sequence[str], tools: Tools) -> np.ndarray:
  """Returns a unit vector a class: of its text, or the mean of several, normalized."""
  assert tools.encode_texts is not None
  templates = TEMPLATES[tools.settings.text_scores.action_templates]
  texts = [t.format(class_text(name)) for name in classes for t in templates]
  vectors = tools.encode_texts(texts).vectors
  vectors = vectors.reshape(len(classes), len(templates), -1)
  if len(templates) == 1:
    return vectors[:, 0]
  mean = np.mean(vectors, axis=1)
  return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def class_ranks(similarity: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Returns the rank of the right class from 1, after those that tie with it.

  Args:
    similarity: `[items, classes]`.
    labels: `int[items]`.
  """
  right = np.take_along_axis(similarity, labels[:, None], axis=1)
  # What is no number is not less, so that it never puts the right class first.
  return np.sum(~(similarity < right - TIE), axis=1)


def _weights(
  items: Sequence[Item], labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns what makes means over items means over splits, and over their classes."""
  splits = sorted({split for item in items for split in item.fields['splits']})
  accuracy, macro = np.zeros(len(items)), np.zeros(len(items))
  for split in splits:
    inside = np.asarray([split in item.fields['splits'] for item in items])
    counts = np.bincount(labels[inside], minlength=int(labels.max()) + 1)
    share = len(items) / len(splits)
    accuracy += inside * share / np.sum(inside)
    per_class = np.maximum(counts[labels], 1) * np.sum(counts > 0)
    macro += inside * share / per_class
  return accuracy, macro


ALL = (
  Benchmark(
    name='ucf101',
    family='action',
    dataset='ucf101',
    files=(
      (_CLASSES, 'testlist0[1-3].txt'),
      (f'ucfTrainTestlist/{_CLASSES}', 'ucfTrainTestlist/testlist0[1-3].txt'),
    ),
    read=read_ucf101,
    score=score,
    tokens='describe_tokens',
    headline=('top1', 'top5', 'macro'),
  ),
  Benchmark(
    name='hmdb51',
    family='action',
    dataset='hmdb51',
    files=(
      ('*_test_split[1-3].txt',),
      ('testTrainMulti_7030_splits/*_test_split[1-3].txt',),
      ('test_train_splits/*_test_split[1-3].txt',),
    ),
    read=read_hmdb51,
    score=score,
    tokens='describe_tokens',
    headline=('top1', 'top5', 'macro'),
  ),
)
