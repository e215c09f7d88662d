"""The table of our weights: name, shape, and the neutral tensors that each is made of.

    ours              tower/layers/q/w [3]
    neutral           vision.encoder.layers.3.self_attn.q_proj.weight

Ours stack the layers of a network.
"""

import dataclasses
import pathlib
from collections.abc import Iterable

from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.weights.errors import ConvertError, join_names
from vlm_rlaif_jax.weights.names import MODULES
from vlm_rlaif_jax.weights.tensors import Tensors, is_floating

# Name within a layer of ours -> within a layer of theirs.
_LLAMA = {
  'attn_norm/scale': 'input_layernorm.weight',
  'mlp_norm/scale': 'post_attention_layernorm.weight',
  **{f'{name}/w': f'{module}.weight' for name, module in MODULES.items()},
}
_CLIP = {
  f'{ours}/{leaf}': f'{clip}.{name}'
  for ours, clip, weight in (
    ('attn_norm', 'layer_norm1', 'scale'),
    ('mlp_norm', 'layer_norm2', 'scale'),
    ('q', 'self_attn.q_proj', 'w'),
    ('k', 'self_attn.k_proj', 'w'),
    ('v', 'self_attn.v_proj', 'w'),
    ('o', 'self_attn.out_proj', 'w'),
    ('up', 'mlp.fc1', 'w'),
    ('down', 'mlp.fc2', 'w'),
  )
  for leaf, name in ((weight, 'weight'), ('bias', 'bias'))
}
PARTS = ('llama', 'projector', 'tower', 'text')
JOINT = ('tower/tail/', 'tower/post_norm/', 'tower/projection/')  # joint embedding only
_OPTIONAL = ('text/', *JOINT)  # each may be absent, but only as a group


@dataclasses.dataclass(frozen=True)
class Weight:
  """One of our weights and the neutral tensors that it is made of.

  Attributes:
    shape: of one layer, in our network.
    foreign_shape: of one layer, in foreign files.
    sources: one neutral name, or one a layer.
    is_stacked: whether it has a leading layer axis.
  """

  name: str
  shape: tuple[int, ...]
  foreign_shape: tuple[int, ...]
  sources: tuple[str, ...]
  is_stacked: bool = False

  @property
  def full_shape(self) -> tuple[int, ...]:
    """The shape with the layer axis, if there is one."""
    return (len(self.sources), *self.shape) if self.is_stacked else self.shape

  @property
  def part(self) -> str:
    """One of `PARTS`."""
    return self.name.partition('/')[0]

  @property
  def group(self) -> str:
    """Which weights it is absent with, if only the joint embedding needs it; or ''."""
    return next((start for start in _OPTIONAL if self.name.startswith(start)), '')

  @property
  def is_linear(self) -> bool:
    """Whether it is of the decoder's layers and can have an adapter or be quantized."""
    return self.name.startswith('llama/layers/') and self.name.endswith('/w')


def weights(cfg: VlmConfig) -> list[Weight]:
  """Returns all our weights, CLIP's text tower included."""
  return [*_llama(cfg), *_projector(cfg), *_tower(cfg), *_text(cfg)]


def select_weights(
  tensors: Tensors, cfg: VlmConfig, parts: Iterable[str], folder: pathlib.Path
) -> list[Weight]:
  """Returns the weights that the tensors give.

  What only the joint embedding needs may be absent, but only as a group: a text tower
  with a hole is an error, and so is one in the layers behind the feature layer.

  Args:
    tensors: by neutral name.
    parts: those of `PARTS` that are required.
    folder: names the checkpoint in the error.

  Raises:
    ConvertError: lists what is missing, unexpected, misshapen or not floating.
  """
  table = weights(cfg)
  present = {w.group for w in table if any(name in tensors for name in w.sources)}
  parts = {*parts, 'text'}
  selected = [
    weight
    for weight in table
    if weight.part in parts and (not weight.group or weight.group in present)
  ]
  expected = {name: w.foreign_shape for w in selected for name in w.sources}
  problems = [f'missing {n} {expected[n]}' for n in expected if n not in tensors]
  problems += [
    f'unexpected {n} {tuple(t.shape)}' for n, t in tensors.items() if n not in expected
  ]
  for name, shape in expected.items():
    if name not in tensors:
      continue
    tensor = tensors[name]
    if tuple(tensor.shape) != shape:
      problems.append(f'{name} has shape {tuple(tensor.shape)}, expected {shape}')
    elif not is_floating(tensor.dtype):
      problems.append(f'{name} has dtype {tensor.dtype}, expected a floating one')
  if problems:
    raise ConvertError(f'{folder}: {join_names(problems)}')
  return selected


def _single(
  name: str,
  shape: tuple[int, ...],
  source: str,
  foreign_shape: tuple[int, ...] | None = None,
) -> Weight:
  return Weight(name, shape, foreign_shape or shape, (source,))


def _llama(cfg: VlmConfig) -> list[Weight]:
  llama = cfg.llama
  width, mlp = llama.width, llama.mlp
  full, kv = llama.heads * llama.head_dim, llama.kv_heads * llama.head_dim
  shapes = {
    'attn_norm/scale': (width,),
    'mlp_norm/scale': (width,),
    'q/w': (full, width),
    'k/w': (kv, width),
    'v/w': (kv, width),
    'o/w': (width, full),
    'gate/w': (mlp, width),
    'up/w': (mlp, width),
    'down/w': (width, mlp),
  }
  return [
    _single('llama/tokens/w', (llama.vocab, width), 'model.embed_tokens.weight'),
    *(
      Weight(
        f'llama/layers/{name}',
        shapes[name],
        shapes[name],
        tuple(f'model.layers.{i}.{source}' for i in range(llama.layers)),
        is_stacked=True,
      )
      for name, source in _LLAMA.items()
    ),
    _single('llama/final_norm/scale', (width,), 'model.norm.weight'),
    _single('llama/head/w', (llama.vocab, width), 'lm_head.weight'),
  ]


def _projector(cfg: VlmConfig) -> list[Weight]:
  width = cfg.llama.width
  return [
    weight
    for name, number, fan_in in (('in', 0, cfg.vision.width), ('out', 2, width))
    for weight in (
      _single(f'projector/{name}/w', (width, fan_in), f'projector.{number}.weight'),
      _single(f'projector/{name}/bias', (width,), f'projector.{number}.bias'),
    )
  ]


def _norm(name: str, source: str, width: int) -> list[Weight]:
  return [
    _single(f'{name}/scale', (width,), f'{source}.weight'),
    _single(f'{name}/bias', (width,), f'{source}.bias'),
  ]


def _clip_layers(
  start: str, tower: str, width: int, mlp: int, numbers: Iterable[int]
) -> list[Weight]:
  def shape(name: str) -> tuple[int, ...]:
    if name.startswith('up/'):
      return (mlp, width) if name.endswith('w') else (mlp,)
    if name == 'down/w':
      return (width, mlp)
    return (width, width) if name.endswith('/w') else (width,)

  return [
    Weight(
      f'{start}/{name}',
      shape(name),
      shape(name),
      tuple(f'{tower}.encoder.layers.{i}.{source}' for i in numbers),
      is_stacked=True,
    )
    for name, source in _CLIP.items()
  ]


def _tower(cfg: VlmConfig) -> list[Weight]:
  vision, start = cfg.vision, 'vision.embeddings'
  width, patch = vision.width, vision.patch_size
  used = vision.layers + vision.feature_layer + 1  # layers that the projector reads
  return [
    _single('tower/class_embedding/w', (width,), f'{start}.class_embedding'),
    _single(
      'tower/patch/w',
      (width, 3 * patch * patch),
      f'{start}.patch_embedding.weight',
      (width, 3, patch, patch),
    ),
    _single(
      'tower/positions/w',
      (vision.patches + 1, width),
      f'{start}.position_embedding.weight',
    ),
    *_norm('tower/pre_norm', 'vision.pre_layrnorm', width),
    *_clip_layers('tower/layers', 'vision', width, vision.mlp, range(used)),
    *_clip_layers(
      'tower/tail', 'vision', width, vision.mlp, range(used, vision.layers)
    ),
    *_norm('tower/post_norm', 'vision.post_layernorm', width),
    _single('tower/projection/w', (cfg.joint, width), 'vision.projection.weight'),
  ]


def _text(cfg: VlmConfig) -> list[Weight]:
  text, start = cfg.text, 'text.embeddings'
  width = text.width
  return [
    _single('text/tokens/w', (text.vocab, width), f'{start}.token_embedding.weight'),
    _single(
      'text/positions/w', (text.context, width), f'{start}.position_embedding.weight'
    ),
    *_clip_layers('text/layers', 'text', width, text.mlp, range(text.layers)),
    *_norm('text/post_norm', 'text.final_layer_norm', width),
    _single('text/projection/w', (cfg.joint, width), 'text.projection.weight'),
    _single('text/logit_scale/w', (), 'text.logit_scale'),
  ]
