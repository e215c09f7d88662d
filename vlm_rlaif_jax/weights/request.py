"""What a conversion is asked for."""

import dataclasses
from typing import Any

from vlm_rlaif_jax.settings.reward import RewardPrompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What a conversion is asked for; `launch/convert.py` explains each."""

  to: str = ''  # ours, peft, peft-hf, llava, hf; '': what is usual for the source
  dtype: str = ''
  bits: int = 0  # of the decoder's linears, 4 or 16; 0: as they are
  merge: bool = False
  partial: bool = False
  base: str = ''
  sft: str = ''
  critic: str = ''
  critic_sft: str = ''
  vision: str = ''
  projector: str = ''
  base_name: str = ''
  critic_base_name: str = ''
  reward_prompt: str = ''
  placeholder: str = ''
  overwrite: bool = False

  @property
  def scoring(self) -> RewardPrompt | None:
    """The turn that a reward model reads; None: nothing is said of it."""
    said = {'prompt': self.reward_prompt, 'placeholder': self.placeholder}
    given: dict[str, Any] = {name: value for name, value in said.items() if value}
    return RewardPrompt(**given) if given else None
