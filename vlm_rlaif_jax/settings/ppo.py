"""Settings of PPO and of its gate."""

import dataclasses
from typing import Literal

from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.settings.sections import (
  AdamWConfig,
  QuantConfig,
)
from vlm_rlaif_jax.settings.stage import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateConfig:
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
class PpoConfig:
  """PPO with a KL penalty (Schulman et al. 2017; Ziegler et al. 2019).

  Defaults are the reference's numbers. Each quirk of its implementation is a field
  below; `configs/ppo.py` sets them together as the presets `parity` and `masked`.
  """

  iterations: int = 0  # rollouts; 0: one pass over the prompts
  rollout_batch: int = 256  # answers sampled between updates
  step_batch: int = 128  # answers an optimizer step
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
  # What sampling multiplies by: the base, the adapter beside it; or their sum, rounded
  # to the model's dtype, for as long as a rollout takes (7B: 13.5 GB more a device).
  rollout_weights: Literal['beside', 'merged'] = 'beside'

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

  optim: AdamWConfig = AdamWConfig(learning_rate=3e-5, warmup=5.0, clip_norm=1.0)
  critic: VlmConfig = VlmConfig()  # the network of value and reward
  critic_size: Literal['tiny', '7b', '13b'] = '13b'
  critic_base: str = ''
  critic_quant: QuantConfig = QuantConfig()
  ppo: PpoConfig = PpoConfig()
  scoring: RewardPrompt = RewardPrompt()
  gate: GateConfig = GateConfig()
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
