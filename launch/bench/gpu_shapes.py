"""The shapes of `bench gpu`, the same for both sides; loads neither jax nor torch.

Shapes of `7b` are those of one card of eight in a PPO iteration; `tiny` is for CPUs.
"""

import dataclasses

from vlm_rlaif_jax.settings.models import LlamaConfig, LoraConfig

ROUNDS = 3  # the fastest counts
LORA = LoraConfig()


@dataclasses.dataclass(frozen=True)
class Shapes:
  """The decoder, and the rows and positions of each item.

  Attributes:
    rows: batch size of decoding.
    prompt, response: positions.
    train_rows: rows of a training step and of its attention.
    stacked: layers that are timed together, so that no cache of the chip helps.
    matmul: side of the square product of the ceilings.
    copied: elements of the copy of the ceilings.
    repeats: calls in one timing.
  """

  llama: LlamaConfig
  rows: int = 32
  prompt: int = 753
  response: int = 896
  train_rows: int = 4
  stacked: int = 4
  matmul: int = 8192
  copied: int = 1 << 30
  repeats: int = 10
  dtype: str = 'bfloat16'

  @property
  def length(self) -> int:
    """Returns the positions of a prompt with its response."""
    return self.prompt + self.response

  @property
  def padded_length(self) -> int:
    """Returns the length rounded up to a multiple of 128."""
    return -(-self.length // 128) * 128


SHAPES = {
  '7b': Shapes(LlamaConfig()),
  'tiny': Shapes(
    LlamaConfig(
      vocab=512, width=128, mlp=256, layers=2, heads=2, kv_heads=2, head_dim=64
    ),
    rows=2,
    prompt=97,
    response=48,
    train_rows=2,
    stacked=2,
    matmul=256,
    copied=1 << 20,
    repeats=1,
  ),
}
