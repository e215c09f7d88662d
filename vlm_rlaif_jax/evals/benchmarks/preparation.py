"""From the annotation files of a benchmark to the items that can be asked about."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence

from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.data import batches, fields, holdout, packets, readers, tokens
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals.benchmarks import sources
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark
from vlm_rlaif_jax.evals.records import Item
from vlm_rlaif_jax.settings.eval import EvalRun
from vlm_rlaif_jax.settings.sections import DataConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
  """A benchmark with its items.

  Attributes:
    items: whose videos are there.
    of: items of the split that was chosen, those without a video among them.
    rows: items of the annotation files, of either split.
    missing: by name, why a video is not there or cannot be read.
    files: the annotation files.
    fingerprint: of their contents.
  """

  benchmark: Benchmark
  items: tuple[Item, ...]
  of: int
  rows: int
  missing: Mapping[str, str]
  files: tuple[pathlib.Path, ...]
  fingerprint: str

  def without(self, bad: Mapping[Video, str]) -> 'Prepared':
    """Returns the benchmark without the items whose video cannot be read."""
    reasons = {one.video_name: bad[one.video] for one in self.items if one.video in bad}
    items = tuple(one for one in self.items if one.video not in bad)
    return dataclasses.replace(self, items=items, missing={**self.missing, **reasons})

  def describe(self) -> str:
    """Returns '6,900 of 8,000 items' with the videos that are missing."""
    text = f'{self.benchmark.name}: {len(self.items):,} of {self.of:,} items'
    if not self.benchmark.needs_all_files:
      tasks = len({item.fields['kind'] for item in self.items})
      text += f' ({tasks} of {len(self.benchmark.files[0])} tasks)'
    if not self.missing:
      return text
    names = ', '.join(list(self.missing)[:3]) + (
      ', ...' if len(self.missing) > 3 else ''
    )
    return f'{text}; {len(self.missing):,} videos missing: {names}'


def prepare(benchmark: Benchmark, settings: EvalRun, data: DataConfig) -> Prepared:
  """Returns the items of a benchmark about videos of the split that are there.

  Videos that are not there are counted, never an error, unless it is all of them.
  """
  root = pathlib.Path(data.root)
  files = sources.find(benchmark, root / settings.eval.annotations)
  locate = sources.Locator(root, settings.videos, benchmark.name, benchmark.dataset)
  assert benchmark.read is not None
  items = benchmark.read(files, locate, settings)
  rows = len(items)
  _check_places(items, settings)
  items = _of_split(items, settings)
  bad = readers.missing((item.video for item in items), readers.data_files(data))
  prepared = Prepared(
    benchmark=benchmark,
    items=tuple(items),
    of=len(items),
    rows=rows,
    missing={},
    files=files,
    fingerprint=hosts.files_fingerprint(files),
  ).without(bad)
  if not prepared.items:
    example = next(iter(prepared.missing.values()), '')
    raise DataError(
      f'{benchmark.name}: no item of split {settings.eval.split} has a video '
      f'({prepared.of:,} items; {example}); config.eval.videos='
      f'{settings.videos!r} says where they are, below {root}'
    )
  cut = tuple(cut_to_span(item, data) for item in prepared.items)
  return dataclasses.replace(prepared, items=cut)


def check_files(benchmarks: Sequence[Prepared]) -> None:
  """Raises DataError for an annotation file that two benchmarks read.

  Names as test_qa.json are those of several test sets, and the items of one of them
  would be counted as those of another.
  """
  names: dict[pathlib.Path, str] = {}
  for one in benchmarks:
    for path in one.files:
      first = names.setdefault(path.resolve(), one.benchmark.name)
      if first != one.benchmark.name:
        raise DataError(
          f'{path}: is read for {first} and for {one.benchmark.name}; put the files of '
          'each into a folder of its name (config.eval.annotations)'
        )


def _check_places(items: Sequence[Item], settings: EvalRun) -> None:
  """Raises DataError where `eval.videos` has one place for two videos."""
  names: dict[Video, Item] = {}
  for item in items:
    first = names.setdefault(item.video, item)
    if sources.bare(first.video_name) != sources.bare(item.video_name):
      raise DataError(
        f'{item.location}: {item.video.paths[0]} is the video of {item.video_name!r} '
        f'and of {first.video_name!r} by config.eval.videos={settings.videos!r}; '
        'write {name} in place of {stem}'
      )


def readable(
  prepared: Prepared, bad: Mapping[Video, str], data: DataConfig
) -> Prepared:
  """Returns a benchmark without the items whose video cannot be decoded.

  Raises:
    DataError: there is one, and the policy is to stop; or no item is left.
  """
  if data.on_bad_sample == 'stop':
    for item in prepared.items:
      if item.video in bad:
        raise DataError(
          f'{item.location}: {bad[item.video]} (data.on_bad_sample=skip counts such '
          'videos as missing)'
        )
  left = prepared.without(bad)
  if not left.items:
    raise DataError(
      f'{prepared.benchmark.name}: none of its {len(prepared.items):,} items has a '
      f'video that can be read; {next(iter(bad.values()))}'
    )
  return left


def _of_split(items: Sequence[Item], settings: EvalRun) -> list[Item]:
  """Returns the items of the split, by the names of their videos, of `clips` videos."""
  share, split = settings.eval.dev_share, settings.eval.split
  chosen = [
    item for item in items if ('dev' if _is_dev(item.video, share) else 'test') == split
  ]
  if not settings.eval.clips:
    return chosen
  names = list(dict.fromkeys(item.video_name for item in chosen))
  used = set(names[: settings.eval.clips])
  return [item for item in chosen if item.video_name in used]


def _is_dev(video: Video, share: float) -> bool:
  """Returns whether a video is of the dev split, as for questions of every task."""
  return holdout.in_share(holdout.name_of(video), share, 'dev')


def cut_to_span(item: Item, data: DataConfig) -> Item:
  """Returns an item with the part of its video that its `span` in seconds names.

  Of pictures, those of the span. Of a file, the frames of it among those sampled from
  the whole, and at least one; their number is rounded up to a fifth of the sample, so
  that few programs are compiled.
  """
  span = item.fields.get('span')
  if span is None:
    return item
  start, end = span
  if not item.video.is_file:
    rate, pictures = item.fields['pictures_per_second'], item.video.paths
    first = min(math.floor(start * rate), len(pictures) - 1)
    last = max(math.ceil(end * rate), first + 1)
    return dataclasses.replace(item, video=Video(pictures[first:last]))
  path = pathlib.Path(data.root) / item.video.paths[0]
  try:
    seconds = packets.duration(path)
  except packets.UntimedError as error:
    raise DataError(
      f'{item.location}: {error}, and the question is about {start:g} to {end:g} s; '
      'write the video as an mp4'
    ) from None
  except packets.VideoError:
    return item  # which encoding says, with what it does about it
  step = max(data.frames // 5, 1)
  first = min(math.floor(start / seconds * data.frames), data.frames - 1)
  last = min(math.ceil(end / seconds * data.frames), data.frames)
  length = min(-(-max(last - first, 1) // step) * step, data.frames)
  first = min(first, data.frames - length)
  clip = (first, first + length)
  whole = clip == (0, data.frames)
  video = Video(item.video.paths, None if whole else clip)
  return dataclasses.replace(item, video=video)


def check_lengths(
  prepared: Prepared, tokenizer: Tokenizer, settings: EvalRun, data: DataConfig
) -> None:
  """Raises DataError for a question whose prompt, or with its answer, is too long."""
  longest = getattr(settings.eval, prepared.benchmark.tokens)
  room = settings.model.llama.max_positions
  for item in prepared.items:
    for text in item.prompts:
      fields.check_text(text, item.location)
      prompt = tokens.encode_prompt(tokenizer, text, settings.eval.template)
      try:
        length = batches.bucket(len(prompt), data.buckets)
      except ValueError as error:
        raise DataError(f'{item.location}: {error} (config.data.buckets)') from None
      visual = data.frames + settings.model.vision.patches
      if visual + length + longest > room:
        raise DataError(
          f'{item.location}: {visual} visual tokens, {length} of the prompt and '
          f'{longest} of an answer (config.eval.{prepared.benchmark.tokens}) exceed '
          f'model.llama.max_positions {room}'
        )
