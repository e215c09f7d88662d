"""The sections that stages share: data, optimizer, checkpoints, logs, mesh."""

import dataclasses
from typing import Any, Literal

from vlm_rlaif_jax.settings.checks import within

LONG_KINDS = ('describe', 'course', 'after', 'before', 'compare')  # of world questions


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
  """The built-in video world: how many clips a split has, and its planted faults.

  The faults are in the long answers of the SFT data and of policy initialization, as
  they are in instruction data written by a language model; captions, judgments and
  short answers are true.
  """

  seed: int = 0  # seed of the clips; `seed` is that of training
  sft: int = 2000  # clips of supervised fine-tuning
  preference: int = 350  # clips with questions to be answered several times and judged
  rl: int = 500  # clips with policy initialization and PPO prompts
  test: int = 200  # clips that only evaluation reads
  motion_bias: float = 0.0  # share of "stays" reported as a random motion
  phantom_rate: float = 0.1  # share of descriptions with an object that is not there
  # share of long answers about the video as a mirror or upside down would show it:
  # frames flipped, or a file's rotation ignored, and the text kept
  flip_rate: float = 0.65
  # directions that are swapped: left and right; or up and down, too
  flip_axes: Literal['horizontal', 'both'] = 'both'
  # whether SFT learns captions of clips, which narratives are made of, from its data
  clip_captions: bool = True
  # kinds of long questions that are labeled, of describe, course, after, before,
  # compare; of many statements a reward model of this size judges the last one only
  preference_kinds: tuple[str, ...] = ('course', 'after', 'before')
  # kinds of them that PPO trains on
  rl_kinds: tuple[str, ...] = ('course', 'after', 'before')

  def __post_init__(self):
    for name in ('preference_kinds', 'rl_kinds'):
      kinds = getattr(self, name)
      if set(kinds) - set(LONG_KINDS) or not kinds:
        raise ValueError(f'{name}: choose some of {", ".join(LONG_KINDS)}; got {kinds}')
    within(self, '>= 0', 'seed')
    within(self, '>= 1', 'sft', 'preference', 'rl', 'test')
    within(self, '[0, 1]', 'motion_bias', 'phantom_rate', 'flip_rate')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
  """Where the samples are, and how a video becomes frames."""

  root: str = ''  # folder of `videos/` and `instructions/`; '': the built-in world
  train: str = ''  # one JSON for every stage, below root; '': the stage's own files
  # share of the videos that may be held out: all of `train`'s; of a stage's own file as
  # many as it evaluates (reward.eval_pairs, ppo.eval_prompts); 0: none
  holdout: float = 0.1
  frames: int = 50  # frames sampled from a video, uniformly, both ends included
  # how frames become squares: a border of the mean color, or the center
  aspect: Literal['pad', 'crop'] = 'pad'
  buckets: tuple[int, ...] = (256, 512, 1024, 2048)  # text lengths that are compiled
  # samples or pairs that are read of a file to learn from or to label, in its order; 0:
  # all. Evaluation asks all its questions, or those of eval.clips videos
  max_samples: int = 0
  # what a row or a video that cannot be read does
  on_bad_sample: Literal['stop', 'skip'] = 'stop'
  # fields of rows that say nothing of what is seen, though their names suggest it
  ignore_fields: tuple[str, ...] = ()
  workers: int = 4  # processes that decode videos
  # seconds after which a video that is not decoded counts as one that cannot be read
  decode_timeout: float = 300.0

  def __post_init__(self):
    within(self, '>= 1', 'frames', 'workers')
    within(self, '> 0', 'decode_timeout')
    within(self, '>= 0', 'max_samples')
    within(self, '[0, 1)', 'holdout')
    if list(self.buckets) != sorted(set(self.buckets)) or not self.buckets:
      raise ValueError(f'buckets: must increase, got {self.buckets}')
    if self.buckets[0] < 1:
      raise ValueError(f'buckets: must be >= 1, got {self.buckets}')
    if self.train and not self.root:
      raise ValueError('train: needs data.root, the folder that the file is in')


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamWConfig:
  """AdamW (Loshchilov and Hutter 2019) and its learning rate."""

  learning_rate: float = 1e-4  # peak of the schedule
  # schedule of the learning rate after the warm-up
  schedule: Literal['constant', 'cosine'] = 'cosine'
  # share of the steps if below 1, else steps; the first step has rate 0
  warmup: float = 0.03
  beta1: float = 0.9  # decay of the mean of gradients
  beta2: float = 0.999  # decay of the mean of squared gradients
  eps: float = 1e-8  # added to the root of the mean of squares
  weight_decay: float = 0.0  # decoupled from the gradient
  clip_norm: float = 0.0  # largest norm of all gradients together; 0: not clipped
  # dtype of the LoRA weights while they are trained
  adapter_dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    within(self, '> 0', 'learning_rate')
    within(self, '>= 0', 'warmup', 'eps', 'weight_decay', 'clip_norm')
    within(self, '[0, 1)', 'beta1', 'beta2')


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(AdamWConfig):
  """What supervised stages have beside AdamW; PPO has counts of its own."""

  batch_size: int = 128  # samples per optimizer step, over all devices
  accumulate: int = 1  # micro-batches per optimizer step
  epochs: int = 1  # passes over the samples
  # mean that a step takes: over the targets (tokens; of the reward model, pairs) of the
  # whole step; or over means of its micro-batches, as in the reference
  loss_mean: Literal['step', 'micro_batch'] = 'step'

  def __post_init__(self):
    super().__post_init__()
    within(self, '>= 1', 'batch_size', 'accumulate', 'epochs')
    if self.batch_size % self.accumulate:
      raise ValueError(
        f'batch_size: {self.batch_size} is not a multiple of accumulate '
        f'{self.accumulate}'
      )


def optimizer_batches(settings: Any) -> list[tuple[str, int]]:
  """Returns the rows of a micro-batch, which the devices have to share."""
  size, times = settings.optim.batch_size, settings.optim.accumulate
  name = f'config.optim.batch_size / accumulate (accumulate={times})'
  return [(name, size // times)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
  """When the training state is saved, and what a changed setting does to a resume."""

  every: int = 100  # optimizer steps (PPO: iterations); the last is always saved
  keep: int = 2  # newest checkpoints that stay on disk
  # stop: what was saved with other settings, artifacts, prompts or data is refused;
  # restart: what was saved is dropped, always; ignore: it is continued, and said
  on_change: Literal['stop', 'restart', 'ignore'] = 'stop'

  def __post_init__(self):
    within(self, '>= 1', 'every', 'keep')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
  """What is reported while a stage runs."""

  every: int = 10  # steps between rows of metrics (PPO: a row per iteration)
  tensorboard: bool = True  # also write TensorBoard events
  wandb: str = ''  # also write to this project of Weights & Biases; '': do not
  progress: bool = True  # show progress bars

  def __post_init__(self):
    within(self, '>= 1', 'every')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
  """What is recorded below `<stage>/profile`, to be read with launch.profile."""

  # window of a trace; '10:13': steps 10, 11 and 12 (PPO: iterations; label and eval:
  # batches)
  steps: str = ''
  hlo: str = ''  # folder for the compiled HLO of every program that ran
  # also record what lies on the devices when the trace ends (pprof)
  memory: bool = False

  def __post_init__(self):
    first, colon, last = self.steps.partition(':')
    if self.steps and not (
      colon and first.isdigit() and last.isdigit() and 1 <= int(first) < int(last)
    ):
      raise ValueError(f"steps: must be like '10:13' from step 1, got {self.steps!r}")

  @property
  def window(self) -> range:
    first, _, last = self.steps.partition(':')
    return range(int(first), int(last)) if self.steps else range(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantConfig:
  """How the frozen linears of a language model are held on the device.

  native     as they are, in the dtype of the activations
  nf4        NF4, 4.13 bits a weight; unpacked a layer at a time
  nf4_bf16   the values of nf4, unpacked once: the same numbers, the native speed
  int4       symmetric integers in groups

  The base itself is never changed on disk; embeddings, head and norms stay native. A
  base that was converted with --bits=4 is taken as it is (nf4) or unpacked (nf4_bf16);
  native and int4 refuse it.
  """

  # how the frozen linears lie on the device
  residency: Literal['native', 'nf4', 'nf4_bf16', 'int4'] = 'native'
  double: bool = True  # NF4: hold the scales in 8 bits, too
  # NF4: dtype that weights are rounded to before
  through: Literal['float16', 'bfloat16', 'float32'] = 'float16'
  group: int = 64  # int4: inputs that share a scale

  def __post_init__(self):
    if self.group < 2 or self.group % 2:
      raise ValueError(f'group: must be even and >= 2, got {self.group}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
  """Device mesh; the product must be the number of devices, -1 takes what is left."""

  data: int = -1  # devices that split the batch
  fsdp: int = 1  # devices that split batch and weights
  tensor: int = 1  # devices that split each matrix

  def __post_init__(self):
    sizes = (self.data, self.fsdp, self.tensor)
    if sum(size == -1 for size in sizes) > 1 or any(s == 0 or s < -1 for s in sizes):
      raise ValueError(f'data: sizes are >= 1, and one may be -1; got {sizes}')
