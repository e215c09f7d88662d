"""Settings of PPO that do not go together.

Each field alone is in its range; a combination is refused where it would compute
something else than its fields say, or where one of them would do nothing.
"""

import itertools
from typing import Any

KL_MAX_ERROR = 0.2  # largest relative change of beta a horizon, as Ziegler et al. 2019


def check_together(config: Any) -> None:
  """Raises ValueError for fields of a `PpoConfig` that do not go together."""
  _check_counts(config)
  _check_length_buckets(config)
  _check_kl(config)
  if config.reward == 'judge' and config.blind_reward:
    raise ValueError(
      "blind_reward: hides the video from the reward model, and reward='judge' uses "
      'the judge in its place; leave out one of both'
    )
  if config.reward == config.select == 'judge':
    raise ValueError(
      "select: 'judge' is what reward='judge' trains for, and cannot choose among "
      'its policies; use last or truth'
    )
  if config.algorithm == 'grpo' and (config.group < 2 or not config.mask_pads):
    raise ValueError(
      "algorithm: 'grpo' compares answers to one question and leaves out pads; it "
      f'needs group >= 2 (is {config.group}) and mask_pads (preset=masked)'
    )
  if config.algorithm == 'ppo' and config.mask_pads and config.terminal == 'last_index':
    raise ValueError(
      "terminal: 'last_index' is a pad of every answer that ended, and mask_pads "
      "leaves pads out, with the answer's reward on one; use last_token, or "
      'mask_pads=False'
    )


def _check_counts(config: Any) -> None:
  for big, small in (
    ('rollout_batch', 'step_batch'),
    ('step_batch', 'micro_batch'),
    ('rollout_batch', 'sample_batch'),
    ('rollout_batch', 'group'),
  ):
    if getattr(config, big) % (getattr(config, small) or getattr(config, big)):
      raise ValueError(
        f'{big}: {getattr(config, big)} is not a multiple of {small} '
        f'{getattr(config, small)}'
      )


def _check_length_buckets(config: Any) -> None:
  buckets = config.length_buckets
  ends = (0, *buckets, config.response_tokens)
  if any(a >= b for a, b in itertools.pairwise(ends)):
    raise ValueError(
      f'length_buckets: must rise between 0 and response_tokens '
      f'{config.response_tokens}, got {buckets}'
    )
  if buckets and not config.mask_pads:
    raise ValueError(
      'length_buckets: need mask_pads (preset=masked): without it pads count in '
      f'means, and the length of the array decides; got {buckets}'
    )


def _check_kl(config: Any) -> None:
  if not config.kl_target:
    return
  least = KL_MAX_ERROR * config.rollout_batch
  if config.kl_horizon <= least:
    raise ValueError(
      f'kl_horizon: must be > {least:g}, a fifth of rollout_batch '
      f'{config.rollout_batch}, or one rollout takes the weight of the KL penalty to 0 '
      f'or below; got {config.kl_horizon:g}'
    )
  if not config.kl_coef:
    raise ValueError(
      f'kl_coef: is 0, which kl_target={config.kl_target:g} multiplies and so never '
      'changes; start at a weight > 0, as 0.1'
    )
