"""What has been found on disk: a network, and a network with what was trained on it."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from vlm_rlaif_jax.settings.models import LoraConfig, VlmConfig
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.weights import merging, weight_table
from vlm_rlaif_jax.weights.artifacts import Artifact
from vlm_rlaif_jax.weights.errors import ConvertError
from vlm_rlaif_jax.weights.nf4_files import Nf4Tensor
from vlm_rlaif_jax.weights.peft_files import Adapter
from vlm_rlaif_jax.weights.tensors import Tensor, Tensors


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A network on disk, its tensors unread.

  Attributes:
    folder: with its tokenizer and generation settings.
    tensors: by neutral name.
    clip: folder that the tower came from, where it was another one.
    aspect: how frames become squares, as its config says or as its stage was trained;
      '' if nothing says it.
    own_tower: whether the tower is another than the one of the hub with its sizes.
  """

  folder: pathlib.Path
  cfg: VlmConfig
  tensors: dict[str, Tensor]
  clip: pathlib.Path | None = None
  aspect: str = ''
  own_tower: bool = False

  @property
  def parts(self) -> tuple[str, ...]:
    """Those of `weight_table.PARTS` that it has."""
    starts = {'llama': ('model.', 'lm_head.'), 'tower': ('vision.',)}
    return tuple(
      part
      for part in weight_table.PARTS
      if any(n.startswith(starts.get(part, f'{part}.')) for n in self.tensors)
    )

  @property
  def dtype(self) -> str:
    """The dtype of most of its weights that are not in NF4; of 64 bits, float32."""
    total: dict[str, int] = {}
    for tensor in self.tensors.values():
      if not isinstance(tensor, Nf4Tensor):
        name = tensor.dtype.name
        total[name] = total.get(name, 0) + int(np.prod(tensor.shape))
    name = max(total, key=lambda name: total[name], default='float32')
    return 'float32' if name == 'float64' else name

  @property
  def linears(self) -> list[Tensor]:
    """The linears of the decoder's layers, which may be in NF4."""
    sources = {
      source
      for weight in weight_table.weights(self.cfg)
      if weight.is_linear
      for source in weight.sources
    }
    return [tensor for name, tensor in self.tensors.items() if name in sources]

  @property
  def bits(self) -> int:
    """4 if all linears are in NF4, else 16."""
    linears = self.linears
    return 4 if linears and all(isinstance(x, Nf4Tensor) for x in linears) else 16

  def weights(
    self, parts: Iterable[str] = ('llama', 'projector', 'tower')
  ) -> list[weight_table.Weight]:
    """Returns the weights that the tensors give; see `weight_table.select_weights`."""
    return weight_table.select_weights(self.tensors, self.cfg, parts, self.folder)

  def with_adapter(self, flat: dict[str, np.ndarray], lora: LoraConfig) -> 'Checkpoint':
    """Returns the network with an adapter merged into it.

    Args:
      flat: `llama/layers/q/a` `[L, rank, in]` and so on, that fits the network.
    """
    tensors = merging.merge_adapter(self.tensors, flat, lora)
    return dataclasses.replace(self, tensors=tensors)

  def with_projector(self, projector: Tensors, path: pathlib.Path) -> 'Checkpoint':
    """Returns the network with another projector.

    Args:
      projector: tensors by neutral name.
      path: of the projector, in the error if there is none.
    """
    if not projector:
      raise ConvertError(f'{path}: contains no projector')
    tensors = {
      name: tensor
      for name, tensor in self.tensors.items()
      if not name.startswith('projector.')
    }
    return dataclasses.replace(self, tensors=tensors | dict(projector))

  def describe(self) -> str:
    """Returns sizes, parts, dtype and number of files in words."""
    llama, vision = self.cfg.llama, self.cfg.vision
    words = {
      'llama': f'decoder of {llama.layers} layers and width {llama.width}',
      'tower': f'tower of {vision.layers} layers and width {vision.width}',
      'projector': 'two-layer projector',
      'text': 'text tower',
    }
    parts = ', '.join(words[part] for part in self.parts)
    files = len({t.location[0] for t in self.tensors.values() if t.location[0]})
    dtype = f'{self.dtype}, linears in NF4' if self.bits == 4 else self.dtype
    return f'{self.cfg.name}: {parts}; {dtype}, {files} file(s)'


@dataclasses.dataclass(frozen=True)
class BaseRef:
  """The network that an adapter was trained on.

  Attributes:
    base: folder of one of our bases; '' where nothing names it.
    sft: folder of the SFT stage that was merged into it; '' if none was.
  """

  base: str
  sft: str = ''

  def __str__(self) -> str:
    tuned = f' with {self.sft} merged into it' if self.sft else ''
    return f'{self.base or "a base that its artifact does not name"}{tuned}'


@dataclasses.dataclass(frozen=True)
class LoadedCheckpoint:
  """A network, and what has been trained on top of it.

  Attributes:
    kind: 'stage', 'base', 'adapter' or 'network'; see `readers.kind_of`.
    network: with an earlier SFT merged into it.
    adapter: None, or what answers (or scores) with the network.
    head: None, or the reward head, `{'w': float32[D], 'b': float32[]}`.
    scoring: the turn that the reward model reads after an answer.
    frames: sampled from a video in training; 0 if not recorded.
    artifact: of a stage.
    base_ref: of a stage: what the network was read from.
  """

  kind: str
  network: Checkpoint
  adapter: Adapter | None = None
  head: dict[str, Any] | None = None
  scoring: RewardPrompt = RewardPrompt()
  frames: int = 0
  artifact: Artifact | None = None
  base_ref: BaseRef | None = None

  @property
  def aspect(self) -> str:
    """How frames become squares."""
    return self.network.aspect or 'pad'

  @property
  def merged(self) -> Checkpoint:
    """The network with the adapter merged into it."""
    if self.adapter is None:
      return self.network
    return self.network.with_adapter(self.adapter.flat, self.adapter.lora)

  @property
  def paths(self) -> list[pathlib.Path]:
    """Folders and files that it was read from, or still will be."""
    files = {tensor.location[0] for tensor in self.network.tensors.values()}
    sft = [self.base_ref.sft] if self.base_ref and self.base_ref.sft else []
    return [
      self.network.folder,
      *map(pathlib.Path, sft),
      *(pathlib.Path(file) for file in files if file),
    ]

  def describe(self) -> str:
    text = self.network.describe()
    if self.adapter is not None:
      text += f'; {self.adapter.describe()}'
    return text + ('; reward head' if self.head is not None else '')
