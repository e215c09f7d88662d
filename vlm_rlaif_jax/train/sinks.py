"""Where metrics go beside `metrics.jsonl`: TensorBoard, and Weights & Biases."""

import dataclasses
import html
import importlib.util
import pathlib
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vlm_rlaif_jax.data.decoder_pool import DecoderPool
from vlm_rlaif_jax.data.frame_decoding import uniform_indices
from vlm_rlaif_jax.data.packets import VideoError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.settings.sections import DataConfig, LogConfig

RUN_ID = 'wandb_id.txt'  # below the folder of a stage; a resumed run goes on with it
FRAMES = 5  # of a video in a picture


@dataclasses.dataclass(frozen=True)
class Media:
  """What is more than a number, by name.

  Attributes:
    texts: in Markdown.
    pictures: `uint8[H, W, 3]`.
    histograms: values, of any shape.
  """

  texts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  histograms: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Sink(Protocol):
  """Receives metrics on the first host."""

  def scalars(self, step: int, row: Mapping[str, float]) -> None:
    """Writes the numbers of a step."""

  def media(self, step: int, media: Media) -> None:
    """Writes texts, pictures and histograms of a step."""

  def flush(self) -> None:
    """Writes what is pending."""

  def close(self) -> None:
    """Writes what is pending, and ends."""


class TensorBoard:
  """Event files in `<stage>/tensorboard`.

  Args:
    resumed_at: steps of the run so far; events of later ones are superseded. 0: those
      of a run before are removed.
  """

  def __init__(self, folder: pathlib.Path, resumed_at: int):
    self.folder = folder / 'tensorboard'
    if not resumed_at:
      shutil.rmtree(self.folder, ignore_errors=True)
    self.opened = self._open(resumed_at + 1 if resumed_at else None)

  def _open(self, purge_step: int | None = None) -> Any:
    """Opens a file; files are named by the second, and by how many there are."""
    import tensorboardX

    self.folder.mkdir(parents=True, exist_ok=True)
    count = len(list(self.folder.iterdir()))
    return tensorboardX.SummaryWriter(
      str(self.folder), purge_step=purge_step, filename_suffix=f'.{count:05d}'
    )

  @property
  def writer(self) -> Any:
    if self.opened is None:
      self.opened = self._open()
    return self.opened

  def scalars(self, step: int, row: Mapping[str, float]) -> None:
    for name, value in row.items():
      self.writer.add_scalar(name, value, step)

  def media(self, step: int, media: Media) -> None:
    for name, text in media.texts.items():
      self.writer.add_text(name, text, step)
    for name, picture in media.pictures.items():
      self.writer.add_image(name, picture, step, dataformats='HWC')
    for name, values in media.histograms.items():
      self.writer.add_histogram(name, np.ravel(values), step)

  def flush(self) -> None:
    # A flush of tensorboardX leaves out what its thread has not taken from a queue.
    self.close()

  def close(self) -> None:
    if self.opened is not None:
      self.opened.close()
      self.opened = None


class WeightsAndBiases:
  """A run of a W&B project; its files are in `<stage>/wandb`.

  `WANDB_MODE=offline` in the environment sends nothing; `wandb sync` does so later.

  Args:
    settings: that the run has in the project.
  """

  def __init__(
    self,
    project: str,
    folder: pathlib.Path,
    resumed_at: int,
    settings: Mapping[str, Any],
  ):
    import wandb  # type: ignore[import-not-found]  # an extra

    self.wandb = wandb
    path = folder / RUN_ID
    if not (resumed_at and path.is_file()):
      path.write_text(f'{secrets.token_hex(4)}\n')
    parts = folder.resolve().parts
    try:
      self.run = wandb.init(
        project=project,
        id=path.read_text().strip(),
        resume='allow',
        name='/'.join(parts[-3:]),
        group='/'.join(parts[-3:-1]),
        job_type=folder.name,
        dir=str(folder),
        config=dict(settings),
        settings=wandb.Settings(console='off', silent=True),
      )
    except wandb.Error as error:
      line = str(error).splitlines()[0]
      raise ConfigError(
        f'config.log.wandb={project}: {line}; run `wandb login`, or set '
        'WANDB_MODE=offline'
      ) from None
    # A resumed run logs some steps again, which W&B's own counter would refuse.
    self.run.define_metric('step')
    self.run.define_metric('*', step_metric='step')

  def scalars(self, step: int, row: Mapping[str, float]) -> None:
    self.run.log({'step': step, **row})

  def media(self, step: int, media: Media) -> None:
    values: dict[str, Any] = {'step': step}
    for name, text in media.texts.items():
      values[name] = self.wandb.Html(f'<pre>{html.escape(text)}</pre>')
    for name, picture in media.pictures.items():
      values[name] = self.wandb.Image(picture)
    for name, array in media.histograms.items():
      values[name] = self.wandb.Histogram(np.ravel(array).tolist())
    self.run.log(values)

  def flush(self) -> None:
    pass  # a process of W&B's own writes, which outlives this one

  def close(self) -> None:
    self.run.finish()


def check(log: LogConfig) -> None:
  """Raises ConfigError if a package that a setting needs is not installed."""
  if log.wandb and importlib.util.find_spec('wandb') is None:
    raise ConfigError(
      f'config.log.wandb={log.wandb}: the package wandb is not installed: '
      "pip install -e '.[wandb]'"
    )


def make(
  log: LogConfig,
  folder: pathlib.Path,
  resumed_at: int,
  settings: Mapping[str, Any],
) -> list[Sink]:
  """Returns the sinks that settings name."""
  makers: list[Callable[[], Sink]] = []
  if log.tensorboard:
    makers.append(lambda: TensorBoard(folder, resumed_at))
  if log.wandb:
    makers.append(lambda: WeightsAndBiases(log.wandb, folder, resumed_at, settings))
  return [one() for one in makers]


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Returns a table in Markdown; texts in it stay in their cells."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(f'| {" | ".join(map(_cell, line))} |' for line in lines)


def _cell(value: Any) -> str:
  """Returns a value in one line, without what Markdown or HTML would read."""
  text = f'{value:.3f}' if isinstance(value, float) else str(value)
  return html.escape(' '.join(text.split()), quote=False).replace('|', '\\|')


def film_strips(
  videos: Sequence[Video | None], data: DataConfig
) -> list[np.ndarray | None]:
  """Returns frames of each video side by side, `uint8[H, W, 3]`; None without frames.

  Of a part of a video they are of that part. Features of a video may be on disk after
  the video itself was moved away.
  """
  few = DataConfig(root=str(data.root), frames=FRAMES)

  def strip(video: Video | None) -> np.ndarray | None:
    if video is None:
      return None
    decoders = whole if video.clip is None else parts
    try:
      frames = list(decoders.read(video.paths, video.clip))
    except VideoError:
      return None
    places = uniform_indices(len(frames), min(FRAMES, len(frames)))
    return np.concatenate([frames[place] for place in places], axis=1)

  with DecoderPool(few, 0) as whole, DecoderPool(data, 0) as parts:
    return [strip(video) for video in videos]
