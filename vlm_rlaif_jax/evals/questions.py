"""Questions of the benchmark files, and of held-out videos."""

import dataclasses

from vlm_rlaif_jax.data import examples, readers
from vlm_rlaif_jax.data.examples import Skipped
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.settings.sections import DataConfig


@dataclasses.dataclass(frozen=True)
class Question:
  """What is written beside an answer, the video that it is about, its file and row."""

  row: dict
  video: Video
  where: str


def own_questions(data: DataConfig, skipped: Skipped) -> list[Question]:
  """Every question about the held-out videos of `data.train`."""
  return [
    Question(
      {
        'question_id': f'{item.key}_{number}',
        'video_name': item.video.paths[0],
        'images': list(item.video.paths),
        **({'clip': list(item.video.clip)} if item.video.clip else {}),
        'question': question,
        'answer': answer,
        'kind': 'held out',
      },
      item.video,
      item.where,
    )
    for item in readers.read(data, 'qa', skipped, held_out=True)
    if item.video
    for number, (question, answer) in enumerate(item.turns)
  ]


def benchmark_question(row: dict, where: str) -> Question:
  for field in ('video_name', 'question_id', 'question', 'answer'):
    if not isinstance(row.get(field), str):
      raise examples.DataError(f'{where}: {field} must be a str')
  if not isinstance(row.get('kind', ''), str):
    raise examples.DataError(f'{where}: kind must be a str, got {row["kind"]!r}')
  paths = row.get('images')
  named = {'video': row['video_name']} if paths is None else {'images': paths}
  video = examples.video_of(named, where)
  assert video is not None
  return Question(row, video, where)
