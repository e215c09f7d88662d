"""Settings of PPO and of its gate."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import Any, Literal

from vlm_rlaif_jax.settings import ppo_checks
from vlm_rlaif_jax.settings.build import ConfigError, changes
from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.constants import SIZES
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.settings.models import COMPUTED, CacheKind, VlmConfig
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.settings.sections import AdamWConfig, QuantConfig
from vlm_rlaif_jax.settings.stage import MERGED, Requirement, Run, SftInput, StageSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class GateConfig:
  """PPO does not start on a judge or a reward model that is not good enough.

  0 asks for nothing. A share that was not measured is refused in a reward model; of the
  judge there may be none (no truth, one order), which is said.
  """

  judge_agreement: float = 0.0  # least share of labels that agree with known facts
  order_agreement: float = 0.55  # least share of questions whose two orders agree
  # least accuracy of the reward model on its held-out pairs, its base as critic_quant
  reward_accuracy: float = 0.6
  # least lead of that accuracy over the same without the video, as stage reward has it;
  # not of ppo.blind_reward, where reward_accuracy is that without the video
  grounding: float = 0.0
  override: bool = False  # start whatever was measured

  def __post_init__(self):
    within(self, '[0, 1]', 'judge_agreement', 'order_agreement')
    within(self, '[0, 1]', 'reward_accuracy', 'grounding')


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoConfig:
  """PPO with a KL penalty (Schulman et al. 2017; Ziegler et al. 2019).

  Defaults are the reference's numbers. Each quirk of its implementation is a field
  below; `configs/ppo.py` sets them together as the presets `parity` and `masked`.
  """

  # PPO with a value function, or GRPO, which compares the answers of a group instead
  # and reads no gamma, gae_lambda, clip_value*, value_*, terminal, kl (its loss has
  # k3), reward_scale, whiten_*
  algorithm: Literal['ppo', 'grpo'] = 'ppo'
  group: int = 1  # answers to each question of a rollout
  # rollouts, each followed by an update; 0: one pass over the prompts
  iterations: int = 0
  rollout_batch: int = 256  # answers sampled between updates
  step_batch: int = 128  # answers per optimizer step
  micro_batch: int = 64  # answers in memory at a time, over all devices
  sample_batch: int = 0  # answers sampled at a time, over all devices; 0: all
  epochs: int = 2  # passes over one rollout
  query_tokens: int = 128  # longest prompt; longer ones are dropped, with their videos
  response_tokens: int = 896  # longest answer
  temperature: float = 1.0  # temperature of sampling and of the log-probabilities
  # beta, the weight of the KL penalty; where there is a target, that at the start
  kl_coef: float = 0.1
  # KL of an answer in nats, as `kl` estimates it, that beta is adapted to (Ziegler et
  # al. 2019); 0: fixed
  kl_target: float = 0.0
  # answers in which beta changes by a fifth at most; more than a fifth of rollout_batch
  kl_horizon: float = 10000.0
  # KL of an answer in nats, as `kl` estimates it, over which the run ends; 0: never
  kl_stop: float = 0.0
  gamma: float = 1.0  # discount
  gae_lambda: float = 1.0  # lambda of generalized advantage estimation
  clip_ratio: float = 0.2  # epsilon: how far the ratio may move from 1
  clip_value: float = 0.2  # how far a value may move from its old one
  value_coef: float = 0.1  # weight of the value loss
  stop_penalty: float = -8.0  # reward of an answer without end of sequence
  # reward of an answer of response_tokens; shorter ones: their share
  length_bonus: float = -10.0
  correct_bonus: float = 2.0  # reward of the match with a gold answer, see answer_types
  # what PPO learns from: the score of the reward model; or direct RLAIF, the judge's of
  # every claim of the answer, 2 p - 1 each, by `judge.claims_score`
  reward: Literal['model', 'judge'] = 'model'
  # control: the reward model scores with zeros in place of the video
  blind_reward: bool = False
  reward_bias: float = 0.0  # added to the reward of every answer
  eval_prompts: int = 64  # held-out prompts whose mean reward is followed
  eval_every: int = 10  # iterations between evaluations on held-out prompts
  # policy that the run leaves: the last, or that of the evaluation with the best score
  # of held-out answers, by the judge with the narrative, or by the truth
  select: Literal['last', 'judge', 'truth'] = 'last'
  # difference of sampler and trainer that stops the run, in nats per token
  logprob_gap: float = 0.05
  logit_chunk: int = 128  # positions whose logits exist at a time; 0: all
  # lengths below response_tokens at which short answers are scored and learned from;
  # each is compiled; needs mask_pads, which makes the length change nothing
  length_buckets: tuple[int, ...] = ()
  # weights of sampling: base and adapter apart, or their sum rounded to the model's
  # dtype, which takes 13.5 GB more a device at 7B
  rollout_weights: Literal['beside', 'merged'] = 'beside'
  # keys and values while sampling: in the model's dtype, or in 8 bits with a scale a
  # token and head, which halves them; PPO learns with the trainer's log-probabilities
  rollout_cache: CacheKind = 'native'

  # Quirks of the reference, with their rows in docs/departures.md (B..).

  # leave pads out of GAE, whitening, losses and statistics (B10)
  mask_pads: bool = False
  # position of an answer's reward: last of the array, a pad after most answers and so
  # not with mask_pads; or last real token (B40)
  terminal: Literal['last_index', 'last_token'] = 'last_index'
  # estimate of the KL penalty per token (B09)
  kl: Literal['k1_clamped', 'k1', 'k3'] = 'k1_clamped'
  reward_scale: float = 10.0  # factor of all rewards when they are not whitened (B04)
  whiten_rewards: bool = False  # whiten rewards before advantages are estimated
  # scope of the statistics that whiten
  whiten_scope: Literal['batch', 'device', 'row'] = 'batch'
  # weights of the value head at the start (B05)
  value_head_init: Literal['zero', 'reward'] = 'zero'
  # value adapter at the start: of the reward model, or B = 0 (B42)
  value_adapter_init: Literal['reward', 'fresh'] = 'reward'
  # unit of clip_value: 1, or the standard deviation of returns (B12)
  clip_value_by: Literal['absolute', 'std'] = 'absolute'
  # what ends an answer: eos alone; or stop_texts too, the last or first found (B06)
  stop_at: Literal['eos', 'question_last', 'question_first'] = 'question_last'
  # texts of one token each that end an answer unless stop_at is eos (B06)
  stop_texts: tuple[str, ...] = (' ?', '?')
  # add stop_penalty to the score; False: put it in its place
  relative_stop_penalty: bool = True
  # gold answers of the records: not used, or used (B07)
  answer_types: Literal['off', 'data'] = 'off'
  # the unknown token in answers: removed as a pad, or never sampled (B36)
  unknown: Literal['remove', 'suppress'] = 'remove'
  # dtype of the log-softmax of the reference policy (B16)
  reference_dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    within(self, '>= 1', 'rollout_batch', 'step_batch', 'micro_batch', 'epochs')
    within(self, '>= 1', 'query_tokens', 'response_tokens', 'group')
    within(self, '>= 1', 'eval_prompts', 'eval_every')
    within(self, '>= 0', 'iterations', 'sample_batch', 'logit_chunk')
    within(self, '>= 0', 'kl_coef', 'kl_target', 'kl_stop', 'value_coef')
    within(self, '> 0', 'temperature', 'kl_horizon')
    within(self, '[0, 1]', 'gamma', 'gae_lambda')
    within(self, '(0, inf]', 'clip_ratio', 'clip_value', 'logprob_gap')
    within(self, 'finite', 'stop_penalty', 'length_bonus', 'correct_bonus')
    within(self, 'finite', 'reward_bias', 'reward_scale')
    ppo_checks.check_together(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoInputs(SftInput):
  """Artifacts of earlier stages that PPO starts from."""

  critic_sft: str = ''  # folder of the critic's stage sft, or 'merged'
  init: str = ''  # folder of stage init; '': `<workdir>/<size>/init`
  reward: str = ''  # folder of stage reward; '': `<workdir>/<critic_size>/reward`
  label: str = ''  # folder of stage label, whose agreement the gate reads


@dataclasses.dataclass(frozen=True, kw_only=True)
class PpoRun(Run):
  """Reinforcement learning: four adapters on two bases.

  `judge` has the captions and claims of `ppo.select='judge'` and `ppo.reward='judge'`,
  as the stage label, and the captions of `scoring.placeholder='captions'`.
  """

  optim: AdamWConfig = AdamWConfig(learning_rate=3e-5, warmup=5.0, clip_norm=1.0)
  critic: VlmConfig = VlmConfig()  # the network of value and reward
  # size of the network of value and reward
  critic_size: Literal['tiny', 'small', '7b', '13b'] = '13b'
  # folder of the critic's pretrained weights; '': the policy's base if the sizes
  # agree
  critic_base: str = ''
  critic_quant: QuantConfig = QuantConfig()
  ppo: PpoConfig = PpoConfig()
  scoring: RewardPrompt = RewardPrompt()
  # captions and claims of ppo.select=judge, ppo.reward=judge, scoring.placeholder=
  # captions: clip_frames, caption_*, claims_*, batch; other fields do nothing in PPO
  judge: LabelConfig = LabelConfig()
  gate: GateConfig = GateConfig()
  inputs: PpoInputs = PpoInputs()

  @property
  def one_base(self) -> bool:
    """Whether value and reward stand on the policy's own base."""
    other = self.critic_base or self.inputs.critic_sft
    return self.critic_size == self.size and not other

  @property
  def narrates(self) -> bool:
    """Whether a judge or the reward model reads narratives of the videos."""
    by_judge = 'judge' in (self.ppo.reward, self.ppo.select)
    return by_judge or self.scoring.placeholder == 'captions'

  def inputs_for(self, other: Requirement) -> dict[str, Any]:
    """Returns what another stage takes over; a critic's stage takes the critic's."""
    shared = super().inputs_for(other)
    inputs = shared['inputs']
    if other.of_critic and not self.one_base:
      shared |= {'base': self.critic_base, 'model': self.critic}
      inputs |= {'sft': self.inputs.critic_sft}
    if self.inputs.label:
      inputs['pairs'] = str(pathlib.Path(self.inputs.label) / 'pairs.json')
    return shared

  def completed(self, configured: Callable[[], Run]) -> 'PpoRun':
    """Returns the settings with `critic` following `model` where they share a base.

    Raises:
      ConfigError: the critic was edited into another network, or is of another size;
        or it stands on a base of its own that has no SFT.
    """
    if self.critic.name in SIZES and self.critic.name != self.critic_size:
      raise ConfigError(
        f"config.critic_size: the critic's network is that of {self.critic.name!r}, "
        f'got {self.critic_size!r}'
      )
    if not self.one_base:
      same_place = os.path.abspath(self.base) == os.path.abspath(self.critic_base)
      elsewhere = self.critic_base and not same_place
      if elsewhere and self.critic_size == self.size and not self.inputs.critic_sft:
        raise ConfigError(
          f"config.inputs.critic_sft: stage sft of size {self.size} tunes the policy's "
          f'base; name the SFT of critic_base {self.critic_base}, or '
          f"'{MERGED}' if it needs none"
        )
      return self
    critic, shared = self.critic.identity, self.model.identity
    if critic == shared:
      return self
    if critic != configured().critic.identity:  # type: ignore[attr-defined]
      raise ConfigError(
        'config.critic: stands on the base of config.model and must be the same '
        f'network; model -> critic: {"; ".join(changes(shared, critic))}'
      )
    own = {name: getattr(self.critic, name) for name in COMPUTED}
    return dataclasses.replace(self, critic=dataclasses.replace(self.model, **own))

  def __post_init__(self):
    super().__post_init__()
    if self.ppo.blind_reward and self.gate.grounding and not self.gate.override:
      raise ValueError(
        f'gate.grounding: asks for a lead of {self.gate.grounding:g} by the video, '
        'which ppo.blind_reward hides from the reward model; use 0, or '
        'gate.override=True'
      )
    if 'judge' in (self.ppo.select, self.ppo.reward) and self.judge.context == 'none':
      raise ValueError(
        "judge.context: 'none' is for the stage label; the judge of PPO's answers "
        'always reads the narrative: use narrative, or ppo.select=last'
      )
    frames, lengths = (
      self.data.frames,
      (self.ppo.query_tokens, self.ppo.response_tokens),
    )
    # A critic on the policy's base follows `model`, see `completed`
    for network in ('model',) if self.one_base else ('model', 'critic'):
      self._check_room('ppo.response_tokens', frames, *lengths, network)


def requires(settings: PpoRun) -> list[Requirement]:
  """Returns the artifacts of the policy and of the critic, in the order of making."""
  size, critics, inputs = settings.size, settings.critic_size, settings.inputs
  needed = [Requirement('sft', size, 'sft')]
  if not settings.one_base:
    needed.append(Requirement('sft', critics, 'critic_sft', of_critic=True))
  if inputs.label or not inputs.reward:
    needed.append(Requirement('label', critics, 'label', of_critic=True, optional=True))
  needed.append(Requirement('reward', critics, 'reward', of_critic=True))
  return [*needed, Requirement('init', size, 'init')]


def batches(settings: PpoRun) -> list[tuple[str, int]]:
  """Returns the numbers of rows that the devices have to share, by dotted name."""
  names = ('rollout_batch', 'step_batch', 'micro_batch', 'sample_batch')
  rows = [(f'config.ppo.{name}', getattr(settings.ppo, name)) for name in names]
  return [*rows, *[('config.judge.batch', settings.judge.batch)] * settings.narrates]


def summary_line(summary: dict) -> str:
  """Returns what the terminal prints when the stage is done."""
  iterations = f'{summary["iterations"]} iterations'
  if summary['reward_before'] is None:
    return f'{iterations}, nothing held out'
  line = (
    f'{iterations}, reward on {summary["held_out"]} held-out prompts '
    f'{summary["reward_before"]:.2f} -> {summary["reward_after"]:.2f}'
  )
  final = summary.get('final_iteration', summary['iterations'])
  return (
    line if final == summary['iterations'] else f'{line} at iteration {final}, the best'
  )


STAGE = StageSpec(
  settings=PpoRun,
  run='vlm_rlaif_jax.stages.ppo:run',
  summary_line=summary_line,
  requires=requires,
  data_files=lambda settings: ('rl', 'truth'),  # held-out answers are graded by truth
  parts=('value', 'value_head'),
  phases='vlm_rlaif_jax.plan.ppo:ppo_phases',
  resident='vlm_rlaif_jax.plan.ppo:ppo_resident',
  batches=batches,
  then=('eval',),
)
