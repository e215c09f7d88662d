"""One run of each stage: its sections, its own settings, and checks across them."""

import dataclasses
import os
from typing import Any, Literal

from vlm_rlaif_jax.config.build import flatten
from vlm_rlaif_jax.config.models import LoraConfig, VlmConfig
from vlm_rlaif_jax.config.ranges import within
from vlm_rlaif_jax.config.sections import (
  SIZES,
  AdamW,
  Checkpoint,
  Data,
  Log,
  Mesh,
  Optim,
  Profile,
  Quant,
  World,
)

MERGED = 'merged'  # in place of an SFT artefact: the base was tuned before


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """What every stage has.

  `base` is the folder of the pretrained weights ('': the one that comes with the tiny
  size). Paths of earlier artefacts default to '': `<workdir>/<size>/<stage>`.
  """

  size: Literal['tiny', '7b', '13b'] = '7b'
  seed: int = 42
  base: str = ''
  model: VlmConfig = VlmConfig()
  quant: Quant = Quant()
  data: Data = Data()
  world: World = World()
  mesh: Mesh = Mesh()
  checkpoint: Checkpoint = Checkpoint()
  log: Log = Log()
  profile: Profile = Profile()

  @property
  def stage(self) -> str:
    return type(self).__name__.removesuffix('Run').lower()

  @property
  def lineage(self) -> dict[str, Any]:
    """What stages that build on one another agree on, by dotted name.

    Seed, weights and network, and the data: which samples, and how a video is seen.
    Their summaries keep it.
    """
    data, place = self.data, lambda path: os.path.abspath(path) if path else ''
    which = ('train', 'holdout', 'frames', 'aspect', 'max_samples')
    world = {} if data.root else flatten(self.world, 'world.')
    return {
      'seed': self.seed,
      'base': place(self.base),
      'data.root': place(data.root),
      **{f'data.{name}': getattr(data, name) for name in which},
      **world,
      **{f'model.{name}': value for name, value in self.model.identity.items()},
    }

  def __post_init__(self):
    within(self, '[0, 4294967295]', 'seed')  # JAX takes 32 bits of it
    named = self.model.name
    if named in SIZES and named != self.size:
      raise ValueError(
        f'size: the network is that of {named!r}, got {self.size!r}; a size is chosen '
        f'after the colon: --config configs/{self.stage}.py:{self.size}'
      )
    visual = self.data.frames + self.model.vision.patches
    longest = self.data.buckets[-1]
    room = self.model.llama.max_positions
    if visual + longest > room:
      raise ValueError(
        f'data.buckets: {longest} text and {visual} visual tokens exceed '
        f'model.llama.max_positions {room}'
      )

  def _check_room(self, field: str, frames: int, prompt: int, answer: int) -> None:
    """Refuses answers that would go past the last position of the decoder."""
    visual, room = frames + self.model.vision.patches, self.model.llama.max_positions
    if visual + prompt + answer > room:
      raise ValueError(
        f'{field}: {visual} visual tokens, {prompt} of a prompt and {answer} of an '
        f'answer exceed model.llama.max_positions {room}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
  """See; say all that differs; answer short questions and judge; all questions."""

  tower_steps: int = 1200
  tower_batch: int = 128
  lists_strips: int = 16384  # seen once; half as many stills, a quarter as many parts
  lists_steps: int = 2000
  lists_batch: int = 24  # strips a step, half as many texts, a quarter of the others
  questions_steps: int = 4000
  questions_batch: int = 14  # strips, and texts; a quarter of the others
  questions_rate: float = 3e-3  # peak of the learning rate, instead of optim's
  questions_whole: float = 0.2  # share of the steps, the last, with whole prompts
  forms_steps: int = 800
  forms_batch: int = 14  # texts, half as many strips, a quarter of the others
  forms_rate: float = 1.5e-3
  noise: float = 0.03  # on normalised pixels, against overfitting to clean edges
  contrastive: float = 0.3  # weight of CLIP's loss beside the naming of attributes
  courses: float = 0.3  # weight of naming what objects do beside how far they move
  judged: float = 3.0  # weight of a "Yes" or "No" among the tokens of answers

  def __post_init__(self):
    within(self, '>= 1', 'tower_steps', 'lists_steps', 'questions_steps', 'forms_steps')
    within(self, '>= 1', 'lists_strips', 'lists_batch', 'questions_batch')
    within(self, '>= 1', 'forms_batch')
    within(self, '>= 2', 'tower_batch')  # half of it has captions
    within(self, '> 0', 'questions_rate', 'forms_rate', 'judged')
    within(self, '[0, 1]', 'questions_whole')
    within(self, '>= 0', 'noise', 'contrastive', 'courses')


@dataclasses.dataclass(frozen=True, kw_only=True)
class BaseRun(Run):
  """The tiny image-text base, from stills and texts of the world."""

  optim: AdamW = AdamW()  # its rates; Muon for matrices
  base_run: Pretraining = Pretraining()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curriculum:
  """Short answers first, then long ones; one pass each."""

  order: Literal['short_long', 'mixed', 'long_short'] = 'short_long'
  stages: tuple[str, ...] = ('short', 'long')
  short_words: int = 12  # the longest answer of a short sample, where one file has both

  def __post_init__(self):
    within(self, '>= 0', 'short_words')
    unknown = set(self.stages) - {'short', 'long'}
    if unknown or not self.stages:
      raise ValueError(f'stages: choose some of short, long; got {self.stages}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftRun(Run):
  """Supervised fine-tuning: LoRA and the projector."""

  optim: Optim = Optim()
  lora: LoraConfig = LoraConfig(rank=32, alpha=32.0, targets=('q', 'k', 'v', 'o'))
  projector_lr: float = 0.0  # of the projector; 0: the learning rate of the adapter
  sft: Curriculum = Curriculum()

  def __post_init__(self):
    super().__post_init__()
    within(self, '>= 0', 'projector_lr')


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitRun(Run):
  """Policy initialisation: plain SFT of a fresh adapter on the tuned model."""

  optim: Optim = Optim(batch_size=128, accumulate=2)
  lora: LoraConfig = LoraConfig()
  sft: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
  """AI preference labelling with context (paper section 3)."""

  temperature: float = 1.0  # of the two answers
  top_p: float = 1.0
  response_tokens: int = 512
  context: Literal['narrative', 'none'] = 'narrative'
  clip_frames: int = 20  # at most this many of the sampled frames in one clip
  caption_tokens: int = 256
  judge: Literal['options', 'claims'] = 'options'
  both_orders: bool = True  # options: ask with the answers swapped, too
  inconsistent: Literal['keep', 'drop', 'average'] = 'average'  # orders that disagree
  ties: Literal['keep', 'drop'] = 'drop'  # margins of exactly zero
  min_margin: float = 0.0  # log-odds up to which a pair is a tie
  compare: int = 0  # questions that are judged in the other context too, to compare
  caption_prompt: str = 'caption'
  options_prompt: str = 'judge_options'
  claims_prompt: str = 'judge_claims'
  batch: int = 32  # prompts generated or judged at a time, over all devices

  def __post_init__(self):
    within(self, '>= 0', 'compare', 'min_margin')
    within(self, '> 0', 'temperature')  # two greedy answers are one
    within(self, '(0, 1]', 'top_p')
    within(self, '>= 1', 'response_tokens', 'clip_frames', 'caption_tokens', 'batch')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRun(Run):
  label: Label = Label()
  sft: str = ''

  def __post_init__(self):
    super().__post_init__()
    label, frames, shortest = self.label, self.data.frames, self.data.buckets[0]
    clip = min(frames, label.clip_frames)
    self._check_room('label.response_tokens', frames, shortest, label.response_tokens)
    self._check_room('label.caption_tokens', clip, shortest, label.caption_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardPrompt:
  """The turn that is appended to an answer before it is scored."""

  prompt: str = 'reward'
  placeholder: Literal['empty', 'literal', 'captions'] = 'empty'  # of {factual_prompt}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
  """Pairwise (Bradley-Terry) loss with a centring term."""

  centring: float = 1e-3  # weight of |mean(r1 + r2)|
  eval_pairs: int = 500  # held out
  eval_every: int = 400  # steps; 0: after the last one only
  filter_too_long: bool = False  # drop pairs over the last bucket instead of stopping

  def __post_init__(self):
    within(self, '>= 0', 'centring', 'eval_every')
    within(self, '>= 1', 'eval_pairs')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardRun(Run):
  optim: Optim = Optim(
    learning_rate=2e-5, schedule='constant', batch_size=16, clip_norm=0.3
  )
  lora: LoraConfig = LoraConfig()
  reward: Reward = Reward()
  scoring: RewardPrompt = RewardPrompt()
  sft: str = ''
  pairs: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gate:
  """PPO does not start on a judge or a reward model that is not good enough.

  0 asks for nothing. A share that was not measured is refused in a reward model; of the
  judge there may be none (no truth, one order), which is said.
  """

  judge_agreement: float = 0.0  # of labels with ground truth, where there is one
  order_agreement: float = 0.55  # of the judge with itself, answers swapped
  reward_accuracy: float = 0.6  # on held-out pairs
  override: bool = False

  def __post_init__(self):
    within(self, '[0, 1]', 'judge_agreement', 'order_agreement', 'reward_accuracy')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ppo:
  """PPO with a KL penalty (Schulman et al. 2017; Ziegler et al. 2019).

  Defaults are the reference's numbers. Each quirk of its implementation is a field
  below; `configs/ppo.py` sets them together as the presets `parity` and `masked`.
  """

  iterations: int = 0  # rollouts; 0: one pass over the prompts
  rollout_batch: int = 256  # answers sampled between updates
  step_batch: int = 128  # answers an optimiser step
  micro_batch: int = 64  # answers in memory at a time, over all devices
  sample_batch: int = 0  # answers sampled at a time, over all devices; 0: all
  epochs: int = 2  # passes over one rollout
  query_tokens: int = 128  # longer prompts are dropped, with their videos
  response_tokens: int = 896
  temperature: float = 1.0
  kl_coef: float = 0.1  # beta
  gamma: float = 1.0
  gae_lambda: float = 1.0
  clip_ratio: float = 0.2  # epsilon of the surrogate
  clip_value: float = 0.2  # how far a value may move from its old one
  value_coef: float = 0.1
  stop_penalty: float = -8.0  # for an answer without end of sequence
  length_bonus: float = -10.0  # times the share of response_tokens used
  correct_bonus: float = 2.0  # times the match with a gold answer, see answer_types
  reward_bias: float = 0.0
  eval_prompts: int = 64  # held-out prompts whose mean reward is followed
  eval_every: int = 10  # iterations
  logprob_gap: float = 0.05  # nats a token, sampler against trainer, that stop the run
  logit_chunk: int = 128  # positions whose logits exist at a time; 0: all

  # Quirks of the reference: docstrings name the row of its register (B..).
  mask_pads: bool = False  # B10: leave pads out of GAE, whitening, losses, statistics
  terminal: Literal['last_index', 'last_token'] = 'last_index'  # B40
  kl: Literal['k1_clamped', 'k1', 'k3'] = 'k1_clamped'  # B09
  reward_scale: float = 10.0  # B04: on all rewards when they are not whitened
  whiten_rewards: bool = False
  whiten_scope: Literal['batch', 'device', 'row'] = 'batch'
  value_head_init: Literal['zero', 'reward'] = 'zero'  # B05
  value_adapter_init: Literal['reward', 'fresh'] = 'reward'  # B42: fresh: B = 0
  clip_value_by: Literal['absolute', 'std'] = 'absolute'  # B12: std of the returns
  stop_at: Literal['eos', 'question_last', 'question_first'] = 'question_last'  # B06
  stop_texts: tuple[str, ...] = (' ?', '?')
  relative_stop_penalty: bool = True  # added to the score; else in its place
  answer_types: Literal['off', 'data'] = 'off'  # B07: gold answers from the records
  unknown: Literal['remove', 'suppress'] = 'remove'  # B36: id 0 in answers
  reference_dtype: Literal['float32', 'bfloat16'] = 'float32'  # B16: its log-softmax

  def __post_init__(self):
    within(self, '>= 1', 'rollout_batch', 'step_batch', 'micro_batch', 'epochs')
    within(self, '>= 1', 'query_tokens', 'response_tokens')
    within(self, '>= 1', 'eval_prompts', 'eval_every')
    within(self, '>= 0', 'iterations', 'sample_batch', 'logit_chunk')
    within(self, '>= 0', 'kl_coef', 'value_coef')
    within(self, '> 0', 'temperature')
    within(self, '[0, 1]', 'gamma', 'gae_lambda')
    within(self, '(0, inf]', 'clip_ratio', 'clip_value', 'logprob_gap')
    within(self, 'finite', 'stop_penalty', 'length_bonus', 'correct_bonus')
    within(self, 'finite', 'reward_bias', 'reward_scale')
    for big, small in (
      ('rollout_batch', 'step_batch'),
      ('step_batch', 'micro_batch'),
      ('rollout_batch', 'sample_batch'),
    ):
      if getattr(self, big) % (getattr(self, small) or getattr(self, big)):
        raise ValueError(
          f'{big}: {getattr(self, big)} is not a multiple of {small} '
          f'{getattr(self, small)}'
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoRun(Run):
  """Reinforcement learning: four adapters on two bases."""

  optim: AdamW = AdamW(learning_rate=3e-5, warmup=5.0, clip_norm=1.0)
  critic: VlmConfig = VlmConfig()  # the network of value and reward
  critic_size: Literal['tiny', '7b', '13b'] = '13b'
  critic_base: str = ''
  critic_quant: Quant = Quant()
  ppo: Ppo = Ppo()
  scoring: RewardPrompt = RewardPrompt()
  gate: Gate = Gate()
  sft: str = ''
  critic_sft: str = ''
  init: str = ''
  reward: str = ''
  label: str = ''

  @property
  def one_base(self) -> bool:
    """Whether value and reward stand on the policy's own base."""
    other = self.critic_base or self.critic_sft
    return self.critic_size == self.size and not other

  def __post_init__(self):
    super().__post_init__()
    self._check_room(
      'ppo.response_tokens',
      self.data.frames,
      self.ppo.query_tokens,
      self.ppo.response_tokens,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
  """Zero-shot QA and descriptions, for several checkpoints side by side."""

  models: tuple[str, ...] = ('base', 'sft', 'rlaif')
  clips: int = 0  # test clips; 0: all
  temperature: float = 0.0  # 0: greedy
  answer_tokens: int = 64
  describe_tokens: int = 512
  batch: int = 32
  template: Literal['vicuna_v1', 'llava_v0'] = 'vicuna_v1'  # B31

  def __post_init__(self):
    within(self, '>= 0', 'clips', 'temperature')
    within(self, '>= 1', 'answer_tokens', 'describe_tokens', 'batch')
    unknown = set(self.models) - {'base', 'sft', 'init', 'rlaif'}
    if unknown or not self.models:
      raise ValueError(
        f'models: choose some of base, sft, init, rlaif; got {self.models}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRun(Run):
  eval: Eval = Eval()
  sft: str = ''
  init: str = ''
  ppo: str = ''

  def __post_init__(self):
    super().__post_init__()
    for name in ('answer_tokens', 'describe_tokens'):
      shortest, answer = self.data.buckets[0], getattr(self.eval, name)
      self._check_room(f'eval.{name}', self.data.frames, shortest, answer)
