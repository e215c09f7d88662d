"""Zero-shot retrieval by descriptions: texts find a video by what a model says of it.

A model describes each video; descriptions and captions are compared in CLIP's text
space (cosines). Nothing is trained for it, and no picture is embedded.

    text to video   each caption is a query among all descriptions
    video to text   each description is a query among all captions; the best of its own
                    counts

Published forms:

    MSRVTT_JSFUSION_test.csv   key, vid_key, video_id, sentence: the 1k-A split (Yu et
                               al. 2018), one caption a video
    MSRVTT_data.json           optional: `sentences`, all captions of each video
    test_list.txt              the test videos of MSVD, a name a line
    AllVideoDescriptions.txt   captions of MSVD (Chen and Dolan 2011): name, caption
    raw-captions.pkl           the same as a pickle, of which plain values are read only
    hard_negatives.json        ours, optional, for any of them: name -> wrong captions
"""

import math
import pathlib
import pickle
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.data import examples, prompts, rows
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.evals.benchmarks import retrieval_scores, sources
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark, Locate
from vlm_rlaif_jax.evals.records import Item
from vlm_rlaif_jax.settings.eval import EvalRun

NEGATIVES = 'hard_negatives.json'
_CSV, _DATA = 'MSRVTT_JSFUSION_test.csv', 'MSRVTT_data.json'
_LIST, _TEXT, _PICKLE = 'test_list.txt', 'AllVideoDescriptions.txt', 'raw-captions.pkl'

Captions = Mapping[str, Sequence[str]]  # by the name of the video


def read_msrvtt(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun
) -> list[Item]:
  """Returns an item a video of a table `key, vid_key, video_id, sentence`.

  Captions of the same videos in `MSRVTT_data.json` are no queries; one of them is the
  description of the ceiling.
  """
  table, *more = files
  captions: dict[str, list[str]] = {}
  locations: dict[str, str] = {}
  keys = []
  for where, row in sources.read(table):
    name = sources.identity(row, 'video_id', where)
    captions.setdefault(name, []).append(sources.text(row, 'sentence', where))
    locations.setdefault(name, where)
    if sources.has(row, ('key',)):
      keys.append((sources.identity(row, 'key', where), where))
  examples.check_distinct('key', keys)
  others: Captions = {}
  for path in more:
    if path.name != NEGATIVES:
      others = _sentences(path)
  negatives = _negatives(files, captions)
  return _items(captions, locations, others, negatives, locate, settings)


def _sentences(path: pathlib.Path) -> Captions:
  """Returns the captions in `sentences` of `MSRVTT_data.json`."""
  content = sources.read_object(path)
  sentences = content.get('sentences')
  if not isinstance(sentences, list):
    raise DataError(f'{path}: must have `sentences`, a list of video_id and caption')
  captions: dict[str, list[str]] = {}
  for number, row in enumerate(sentences):
    where = f'{path} sentences {number}'
    if not isinstance(row, dict):
      raise DataError(f'{where}: must be an object, got {type(row).__name__}')
    name = sources.identity(row, 'video_id', where)
    captions.setdefault(name, []).append(sources.text(row, 'caption', where))
  return captions


def read_msvd(
  files: Sequence[pathlib.Path], locate: Locate, settings: EvalRun
) -> list[Item]:
  """Returns an item for each video that the list names; each caption is a query."""
  if len(files) < 2:
    raise DataError(
      f'{files[0]}: expected {_LIST} with {_TEXT} or {_PICKLE}; give their folder '
      '(config.eval.annotations)'
    )
  names, given, *_ = files
  lines = rows.read_lines(names, 'the name of a video a line')
  examples.check_distinct('video', ((name, where) for where, name in lines))
  read = _pickled if given.suffix == '.pkl' else _described
  captions = read(given, {name for _, name in lines})
  for where, name in lines:
    if name not in captions:
      raise DataError(f'{where}: the video {name!r} has no caption in {given}')
  ordered = {name: captions[name] for _, name in lines}
  locations = {name: where for where, name in lines}
  negatives = _negatives(files, ordered)
  return _items(ordered, locations, {}, negatives, locate, settings)


def _described(path: pathlib.Path, names: set[str]) -> Captions:
  """Returns the captions of some videos in lines `name caption`.

  The lines of the file's head, and those of videos that no list names, are no captions.
  """
  captions: dict[str, list[str]] = {}
  for where, line in rows.read_lines(path, 'a name and a caption a line'):
    name, _, caption = line.partition(' ')
    if name in names:
      row = {'caption': caption}
      captions.setdefault(name, []).append(sources.text(row, 'caption', where))
  return captions


class _PlainUnpickler(pickle.Unpickler):
  """Reads dicts, lists, texts and numbers; a pickle can do nothing else by itself."""

  def find_class(self, module: str, name: str) -> Any:
    """Refuses every class and function, so that no code of the file can run."""
    raise pickle.UnpicklingError(f'it names {module}.{name}')


def _pickled(path: pathlib.Path, names: set[str]) -> Captions:
  """Returns the captions of some videos in a pickle: name -> captions, split or not."""
  problem = (
    f'expected a pickle of dicts, lists and texts: name -> captions; {_TEXT} is read '
    'in its place'
  )
  try:
    with path.open('rb') as file:
      content = _PlainUnpickler(file, encoding='utf-8').load()
  except Exception as error:  # a damaged pickle raises almost anything
    raise DataError(f'{path}: cannot be read ({error}); {problem}') from None
  if not isinstance(content, dict):
    raise DataError(f'{path}: {problem}, got {type(content).__name__}')
  captions: dict[str, list[str]] = {}
  for name in sorted(names & content.keys()):
    for number, words in enumerate(content[name]):
      where = f'{path} {name} {number}'
      if isinstance(words, list | tuple) and all(isinstance(w, str) for w in words):
        words = ' '.join(words)
      row = {'caption': words}
      captions.setdefault(name, []).append(sources.text(row, 'caption', where))
  return captions


def _negatives(files: Sequence[pathlib.Path], names: Iterable[str]) -> Captions:
  """Returns the wrong captions of `hard_negatives.json`, where that is there.

  Args:
    names: of the videos; each has some in the file.
  """
  path = next((path for path in files if path.name == NEGATIVES), None)
  if path is None:
    return {}
  content = sources.read_object(path)
  for name in names:
    texts = content.get(name)
    if not texts or not isinstance(texts, list) or not all(map(_is_text, texts)):
      raise DataError(f'{path}: {name!r} must have a list of texts, got {texts!r}')
  return {name: content[name] for name in names}


def _is_text(value: Any) -> bool:
  """Returns whether a value is a text that says something."""
  return isinstance(value, str) and bool(value.strip())


def _items(
  captions: Captions,
  locations: Mapping[str, str],
  others: Captions,
  negatives: Captions,
  locate: Locate,
  settings: EvalRun,
) -> list[Item]:
  """Returns the items; the reference of each is its first caption.

  Args:
    captions: those that are queries.
    locations: file and row of each video.
    others: further captions; those that are queries are left out.
    negatives: captions that differ a little from a right one.
  """
  prompt = prompts.load(settings.text_scores.retrieval_prompt)
  return [
    Item(
      key=name,
      video=locate(name),
      video_name=name,
      prompts=(prompt,),
      reference=queries[0],
      fields={
        'captions': list(queries),
        'others': [text for text in others.get(name, ()) if text not in queries],
        'negatives': list(negatives.get(name, ())),
      },
      location=locations[name],
    )
    for name, queries in captions.items()
  ]


def _benchmark(name: str, read: Any, files: Any) -> Benchmark:
  """Returns the record of one data set; hard negatives are read where they are."""
  return Benchmark(
    name=name,
    family='retrieval',
    dataset=name.removesuffix('_retrieval'),
    files=(*((*names, NEGATIVES) for names in files), *files),
    read=read,
    score=retrieval_scores.score,
    numbers=retrieval_scores.median_ranks,
    tokens='describe_tokens',
    best=dict.fromkeys(retrieval_scores.NO_SHARES, math.inf),
    headline=retrieval_scores.HEADLINE,
  )


ALL = (
  _benchmark('msvd_retrieval', read_msvd, ((_LIST, _TEXT), (_LIST, _PICKLE))),
  _benchmark('msrvtt_retrieval', read_msrvtt, ((_CSV, _DATA), (_CSV,))),
)
