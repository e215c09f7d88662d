"""The stored answers of an evaluation, side by side, and how right each is."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import qa
from vlm_rlaif_jax.evals.benchmarks import own as own_file
from vlm_rlaif_jax.evals.benchmarks.registry import BENCHMARKS
from vlm_rlaif_jax.evals.judges import names
from vlm_rlaif_jax.reports.page import former, html
from vlm_rlaif_jax.reports.page.run_files import RunFiles
from vlm_rlaif_jax.settings.eval import MODELS
from vlm_rlaif_jax.settings.sections import LONG_KINDS

LETTERS = 'ABCDEFGHIJKLMNOPQRSTUVWXYZ'
FORMER = ('qa', 'describe')  # whose answers were files in the folder of the stage
# Families whose references are texts that no other answer equals, however right it is.
NOT_BY_WORDS = ('generative', 'retrieval', 'action', 'choice')


@dataclasses.dataclass(frozen=True)
class Graded:
  """How right an answer is.

  Attributes:
    correct: whether it is right; None where nothing decides that.
    quality: what answers are ordered by, 1 is perfect; None where nothing says it.
    text: the same in words.
  """

  correct: bool | None
  quality: float | None
  text: str


@dataclasses.dataclass(frozen=True)
class Answered:
  """A question and the answers of all models.

  Attributes:
    answers, grades: by model.
    rewards: by model, where they are stored.
  """

  benchmark: str
  key: str
  kind: str
  video: Video | None
  question: str
  reference: str
  answers: Mapping[str, str]
  grades: Mapping[str, Graded]
  rewards: Mapping[str, float]

  @property
  def outcome(self) -> str:
    """Returns what RLAIF did to the answer of SFT."""
    before, after = (self.grades[name].correct for name in ('sft', 'rlaif'))
    if before is None or after is None:
      same = self.answers['sft'] == self.answers['rlaif']
      return 'same answer' if same else 'other answer'
    if before:
      return 'right in both' if after else 'broken by RLAIF'
    return 'repaired by RLAIF' if after else 'wrong in both'

  @property
  def rank(self) -> tuple[float, float]:
    """Returns what the worst come first by: quality of RLAIF, then what it lost."""
    before, after = (self.grades[name].quality or 0.0 for name in ('sft', 'rlaif'))
    return after, after - before


def read(run: RunFiles, truth: Truth | None) -> list[Answered]:
  """Returns every question that both SFT and RLAIF answered."""
  folder = run.folder / 'eval'
  items = []
  for benchmark in (one for one in FORMER if not (folder / one).is_dir()):
    files = {name: folder / f'{benchmark}_{name}.jsonl' for name in MODELS}
    items += (
      run.attempt(f'answers of {benchmark}', _read, run, benchmark, files, truth) or []
    )
  for place in sorted(folder.glob('*/')) if folder.is_dir() else ():
    files = {name: place / f'answers_{name}.jsonl' for name in MODELS}
    part = run.attempt(f'answers of {place.name}', _read, run, place.name, files, truth)
    items += part or []
  if not items and 'eval' in run.summaries:
    run.say(f'{folder}: no answers of both SFT and RLAIF, so no samples of them')
  return items


def _read(
  run: RunFiles, benchmark: str, files: Mapping[str, pathlib.Path], truth: Truth | None
) -> list[Answered]:
  """Returns the questions of one benchmark."""
  rows = {
    name: {_key(row): row for row in run.read_rows(path, _fields_of(name))}
    for name, path in files.items()
    if path.exists()
  }
  if not {'sft', 'rlaif'} <= rows.keys():
    return []
  folder, verdicts = files['rlaif'].parent, None
  if benchmark not in FORMER and (judge := _judge_of_both(run, folder)):
    verdicts = {name: _verdicts(run, folder, name, judge) for name in rows}
  # Long answers about the built-in world are right by its facts, in whatever words.
  by_words = truth is not None or not run.is_of_world
  items = []

  def verdict_on(name: str, key: str) -> Mapping[str, Any] | None:
    return None if verdicts is None else verdicts[name].get(key, {})

  for key, row in rows['rlaif'].items():
    if key not in rows['sft']:
      continue
    is_graded = by_words or row.get('kind') not in LONG_KINDS
    own = {name: part[key] for name, part in rows.items() if key in part}
    answers = {name: _answer(one) for name, one in own.items()}
    grades = {
      name: _grade(benchmark, key, own[name], text, verdict_on(name, key), truth)
      if is_graded
      else Graded(None, None, '')
      for name, text in answers.items()
    }
    rewards = {
      name: one['reward']
      for name, one in own.items()
      if html.is_number(one.get('reward'))
    }
    fields = row.get('fields') or {}
    kind = str(row.get('kind') or fields.get('kind') or benchmark)
    items.append(
      Answered(
        benchmark, key, kind, video_of(row), _question(row), _reference(row), answers,
        grades, rewards,
      )
    )  # fmt: skip
  return items


def _fields_of(model: str) -> tuple[str, ...] | None:
  """Returns the fields that are kept of a model's rows: one model names the videos."""
  if model == 'rlaif':
    return None
  identity = ('key', 'question_id', 'reference', 'answer')
  return (*identity, 'answers', 'prediction', 'options', 'reward')


def _key(row: Mapping[str, Any]) -> str:
  """Returns the id of an item."""
  return str(row.get('key', row.get('question_id')))


def _answer(row: Mapping[str, Any]) -> str:
  """Returns the answer, or both answers to two phrasings of a question."""
  answers = row.get('answers', row.get('prediction', ''))
  return ' / '.join(map(str, answers)) if isinstance(answers, list) else str(answers)


def _question(row: Mapping[str, Any]) -> str:
  """Returns the question, or both phrasings of it."""
  prompts = row.get('prompts', row.get('question', ''))
  return ' / '.join(map(str, prompts)) if isinstance(prompts, list) else str(prompts)


def _reference(row: Mapping[str, Any]) -> str:
  """Returns the right answer, '' where there is none."""
  return str(row.get('reference', row.get('answer', '')))


def video_of(row: Mapping[str, Any]) -> Video | None:
  """Returns the video of a row; None where the row does not name it."""
  paths = row.get('paths') or row.get('images') or row.get('video_name')
  if isinstance(paths, str):
    paths = [paths]
  if not isinstance(paths, list) or not all(isinstance(one, str) for one in paths):
    return None
  clip = row.get('clip')
  return Video(tuple(paths), (clip[0], clip[1]) if clip else None)


def _judge_of_both(run: RunFiles, folder: pathlib.Path) -> str:
  """Returns a judge of both SFT and RLAIF, by its name in files; '': there is none.

  What two judges say of two answers would be no comparison. Of several it is the one
  of the summary, by whom the numbers of the page are.
  """
  judges = [
    {path.stem.removeprefix(start) for path in folder.glob(f'{start}*.jsonl')}
    for start in ('verdicts_sft_', 'verdicts_rlaif_')
  ]
  both = set.intersection(*judges)
  entries = run.summaries.get('eval', {}).get('benchmarks') or {}
  judge = entries.get(folder.name, {}).get('judge') or {}
  registered = names.read(folder.parent)
  own = [
    name
    for name in sorted(both)
    if judge and registered.get(name) == names.identity_of(judge)
  ]
  plain = names.safe_name(str(judge.get('name', '')))  # of before there was a registry
  own += [plain] if plain in both - registered.keys() else []
  return own[0] if own else min(both, default='')


def _verdicts(
  run: RunFiles, folder: pathlib.Path, model: str, judge: str
) -> dict[str, dict[str, Any]]:
  """Returns the verdict of a judge by key, the mean over its criteria."""
  path = folder / f'verdicts_{model}_{judge}.jsonl'
  rows: dict[str, list[dict[str, Any]]] = {}
  for row in former.current(run, path, [model]):
    if html.is_number(row.get('score')):
      rows.setdefault(str(row.get('key')), []).append(row)
  return {
    key: {
      'score': sum(row['score'] for row in part) / len(part),
      'correct': part[0].get('correct') if len(part) == 1 else None,
    }
    for key, part in rows.items()
  }


def by_facts(key: str, text: str, truth: Truth | None) -> Graded | None:
  """Returns how right an answer is by the facts of its clip; None if none are known."""
  if truth is None or key not in truth or not truth.is_long(key):
    return None
  score = truth.score(key, text)
  facts = 'fact' if score.required == 1 else 'facts'
  words = f'{score.recalled} of {score.required} {facts}, {score.invented} invented'
  is_right = score.invented == 0 and score.recalled == score.required
  return Graded(is_right, score.quality, words)


def _grade(
  benchmark: str,
  key: str,
  own: Mapping[str, Any],
  text: str,
  verdict: Mapping[str, Any] | None,
  truth: Truth | None,
) -> Graded:
  """Returns how right an answer is: by facts, by a judge, or by exact match.

  Args:
    verdict: of the judge, {} where it gave none; None where no judge read the answers.
  """
  graded = by_facts(key, text, truth)
  if graded is not None:
    return graded
  if verdict is not None:
    if not html.is_number(verdict.get('score')):
      return Graded(None, None, 'no verdict of the judge')
    correct, score = verdict.get('correct'), verdict['score']
    words = f'judge: {html.number(score)} of 5'
    return Graded(score >= 3 if correct is None else bool(correct), score / 5, words)
  reference = _reference(own)
  if odds := own.get('options'):
    # As the evaluation counts: an option that ties with the right one is chosen.
    likeliest = [LETTERS[i] for i, value in enumerate(odds) if value == max(odds)]
    is_right = likeliest == [reference]
    words = f'likeliest option: {" and ".join(likeliest)}'
    return Graded(is_right, float(is_right), words)
  if not reference or not _is_by_words(benchmark, reference):
    return Graded(None, None, '')
  is_right = qa.normalize(text) == qa.normalize(reference)
  return Graded(
    is_right, float(is_right), 'exact match' if is_right else 'no exact match'
  )


def _is_by_words(benchmark: str, reference: str) -> bool:
  """Returns whether an answer is right where it has the words of the reference."""
  if benchmark == 'own':
    return own_file.kind_of(reference) == 'short answer'
  record = BENCHMARKS.get(benchmark)
  family = record.family if record else ''
  return benchmark != 'describe' and family not in NOT_BY_WORDS
