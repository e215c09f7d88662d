"""Operations of a PPO iteration, counted from shapes, phase by phase."""

import dataclasses

from vlm_rlaif_jax.rl import algorithms
from vlm_rlaif_jax.settings.models import LlamaConfig, LoraConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.train.profiling import flops


@dataclasses.dataclass(frozen=True)
class Count:
  """Operations of one part of a phase, for all rows of an iteration.

  Attributes:
    phase: 'rollout', 'score' or 'update'.
    needed: what the mathematics needs.
    recomputed: what full rematerialization adds.
    of_critic: the part runs the critic, not the actor.
  """

  phase: str
  needed: float
  recomputed: float = 0.0
  of_critic: bool = False


def lengths(settings: PpoRun, of_critic: bool = False) -> tuple[int, int]:
  """Returns embedded positions of a prompt, and of a prompt with its response.

  Args:
    of_critic: in the critic, whose tower may see another number of patches.
  """
  vision = (settings.critic if of_critic else settings.model).vision
  visual = settings.data.frames + vision.patches
  prompt = settings.ppo.query_tokens + visual - 1
  return prompt, prompt + settings.ppo.response_tokens


def counts(
  settings: PpoRun,
  actor: LoraConfig | None,
  critic: LoraConfig | None,
  suffix: int,
  tokens: float | None = None,
) -> dict[str, Count]:
  """Returns the parts of an iteration by name.

  Args:
    actor, critic: adapters of both networks.
    suffix: tokens of the reward prompt.
    tokens: of a response, on average; None: all that there is room for.
  """
  config, rows = settings.ppo, settings.ppo.rollout_batch
  policy, value = settings.model.llama, settings.critic.llama
  response = config.response_tokens if tokens is None else tokens
  prompt, _ = lengths(settings)
  critic_prompt, _ = lengths(settings, of_critic=True)
  length, critic_length = prompt + response, critic_prompt + response

  def forward(
    cfg: LlamaConfig, lora: LoraConfig | None, length: float, read: float = 0
  ) -> float:
    return rows * flops.forward(cfg, lora, length, read)

  def training(
    cfg: LlamaConfig, lora: LoraConfig | None, length: float, read: float = 0
  ) -> tuple:
    each = flops.training(cfg, lora, length, read)  # type: ignore[arg-type]
    return tuple(config.epochs * rows * count for count in each)

  parts = {
    'prefill': Count('rollout', forward(policy, actor, prompt, 1)),
    'decode': Count('rollout', rows * flops.decode(policy, actor, prompt, response)),
    'policy': Count('score', forward(policy, actor, length, response)),
    'reference': Count('score', forward(policy, actor, length, response)),
    'value': Count('score', forward(value, critic, critic_length), of_critic=True),
    'reward': Count(
      'score', forward(value, critic, critic_length + suffix), of_critic=True
    ),
    'update policy': Count('update', *training(policy, actor, length, response)),
    'update value': Count(
      'update', *training(value, critic, critic_length), of_critic=True
    ),
  }
  has_value = algorithms.LEARNERS[config.algorithm].has_value
  without = () if has_value else ('value', 'update value')
  return {name: count for name, count in parts.items() if name not in without}


def step_flops(
  settings: PpoRun,
  actor: LoraConfig | None,
  critic: LoraConfig | None,
  suffix: int,
  tokens: float,
) -> tuple[float, float, float]:
  """Returns positions of an iteration, needed operations, and recomputed ones.

  Args:
    tokens: of a response, on average: decoding ends with the last one, and what is
      computed of a row behind its end is needed by nobody.
  """
  parts = counts(settings, actor, critic, suffix, tokens).values()
  positions = settings.ppo.rollout_batch * (lengths(settings)[0] + tokens)
  needed = sum(part.needed for part in parts)
  return positions, needed, sum(part.recomputed for part in parts)
