"""Foreign names and ours: one table a direction, one neutral spelling between them.

    LLaVA, 2023       model.vision_tower.vision_tower.vision_model.encoder.layers.3. ...
    Hugging Face      model.vision_tower.encoder.layers.3. ...
    CLIP alone        vision_model.encoder.layers.3. ...
    neutral           vision.encoder.layers.3.self_attn.q_proj.weight
    ours              tower/layers/q/w [3]

The decoder's neutral names are those of LLaMA; ours stack its layers.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable

from vlm_rlaif_jax.settings.models import LINEARS, VlmConfig
from vlm_rlaif_jax.weights.tensor_files import (
  ConvertError,
  Tensors,
  is_floating,
  listed,
)

_NEUTRAL = (  # of a foreign name, first match
  (r'model\.vision_tower\.vision_tower\.(?:vision_model\.)?', 'vision.'),
  (r'(?:model\.)?vision_tower\.(?:vision_model\.)?', 'vision.'),
  (r'(?:model\.)?mm_projector\.', 'projector.'),
  (r'(?:model\.)?multi_modal_projector\.linear_1\.', 'projector.0.'),
  (r'(?:model\.)?multi_modal_projector\.linear_2\.', 'projector.2.'),
  (r'model\.language_model\.', 'model.'),
  (r'language_model\.model\.', 'model.'),
  (r'language_model\.lm_head\.', 'lm_head.'),
  (r'vision_model\.', 'vision.'),
  (r'text_model\.', 'text.'),
  (r'visual_projection\.', 'vision.projection.'),
  (r'text_projection\.', 'text.projection.'),
  (r'logit_scale$', 'text.logit_scale'),
)
_BARE_TOWER = r'(embeddings|encoder|pre_layrnorm|post_layernorm|final_layer_norm)\.'
_IGNORED = (
  r'.*(rotary_emb\.inv_freq|embeddings\.position_ids)$'  # recomputed, not learned
)

# Name within ours -> name within a layer of theirs.
_LLAMA = {
  'attn_norm/scale': 'input_layernorm.weight',
  'mlp_norm/scale': 'post_attention_layernorm.weight',
  **{f'{n}/w': f'self_attn.{n}_proj.weight' for n in 'qkvo'},
  **{f'{n}/w': f'mlp.{n}_proj.weight' for n in ('gate', 'up', 'down')},
}
_CLIP = {
  f'{mine}/{own}': f'{theirs}.{name}'
  for mine, theirs, own in (
    ('attn_norm', 'layer_norm1', 'scale'),
    ('mlp_norm', 'layer_norm2', 'scale'),
    ('q', 'self_attn.q_proj', 'w'),
    ('k', 'self_attn.k_proj', 'w'),
    ('v', 'self_attn.v_proj', 'w'),
    ('o', 'self_attn.out_proj', 'w'),
    ('up', 'mlp.fc1', 'w'),
    ('down', 'mlp.fc2', 'w'),
  )
  for own, name in ((own, 'weight'), ('bias', 'bias'))
}
PARTS = ('llama', 'projector', 'tower', 'text')
JOINT = ('tower/tail/', 'tower/post_norm/', 'tower/projection/')  # joint embedding only
_WHOLE = ('text/', *JOINT)  # each may be absent, but only whole


def neutral(tensors: Tensors) -> dict:
  """Foreign names -> neutral ones; what can be recomputed is left out."""
  kept = {n: t for n, t in tensors.items() if not re.match(_IGNORED, n)}
  bare = ''
  if 'embeddings.class_embedding' in kept:
    bare = 'vision.'
  elif 'embeddings.token_embedding.weight' in kept:
    bare = 'text.'
  out = {}
  for name, tensor in kept.items():
    new = rename(name)
    if new == name and bare and re.match(_BARE_TOWER, name):
      new = bare + name
    if new in out:
      raise ConvertError(f'two tensors mean {new}, one of them {name}')
    out[new] = tensor
  return out


def rename(name: str) -> str:
  for pattern, start in _NEUTRAL:
    if match := re.match(pattern, name):
      return start + name[match.end() :]
  return name


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One of our weights and the neutral tensors that it is made of.

  Attributes:
    shape: of one layer, ours; theirs: the same in the foreign file.
    sources: one name, or one a layer.
    stacked: with a leading layer axis.
  """

  name: str
  shape: tuple[int, ...]
  theirs: tuple[int, ...]
  sources: tuple[str, ...]
  stacked: bool = False

  @property
  def whole(self) -> tuple[int, ...]:
    return (len(self.sources), *self.shape) if self.stacked else self.shape

  @property
  def part(self) -> str:
    return self.name.partition('/')[0]

  @property
  def group(self) -> str:
    """Which leaves it is absent with, if only the joint embedding needs it; or ''."""
    return next((start for start in _WHOLE if self.name.startswith(start)), '')

  @property
  def is_linear(self) -> bool:
    """A linear of the decoder's layers: what can carry an adapter or be quantized."""
    return self.name.startswith('llama/layers/') and self.name.endswith('/w')


def leaves(cfg: VlmConfig) -> list[Leaf]:
  """All our weights, CLIP's text tower included."""
  return [*_llama(cfg), *_projector(cfg), *_tower(cfg), *_text(cfg)]


def _one(name, shape, source, theirs=None) -> Leaf:
  return Leaf(name, shape, theirs or shape, (source,))


def _llama(cfg: VlmConfig) -> list[Leaf]:
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
    _one('llama/tokens/w', (llama.vocab, width), 'model.embed_tokens.weight'),
    *(
      Leaf(
        f'llama/layers/{name}',
        shapes[name],
        shapes[name],
        tuple(f'model.layers.{i}.{theirs}' for i in range(llama.layers)),
        stacked=True,
      )
      for name, theirs in _LLAMA.items()
    ),
    _one('llama/final_norm/scale', (width,), 'model.norm.weight'),
    _one('llama/head/w', (llama.vocab, width), 'lm_head.weight'),
  ]


def _projector(cfg: VlmConfig) -> list[Leaf]:
  width = cfg.llama.width
  return [
    leaf
    for mine, number, fan_in in (('in', 0, cfg.vision.width), ('out', 2, width))
    for leaf in (
      _one(f'projector/{mine}/w', (width, fan_in), f'projector.{number}.weight'),
      _one(f'projector/{mine}/bias', (width,), f'projector.{number}.bias'),
    )
  ]


def _norm(mine: str, theirs: str, width: int) -> list[Leaf]:
  return [
    _one(f'{mine}/scale', (width,), f'{theirs}.weight'),
    _one(f'{mine}/bias', (width,), f'{theirs}.bias'),
  ]


def _clip_layers(mine, theirs, width, mlp, numbers) -> list[Leaf]:
  def shape(name):
    if name.startswith('up/'):
      return (mlp, width) if name.endswith('w') else (mlp,)
    if name == 'down/w':
      return (width, mlp)
    return (width, width) if name.endswith('/w') else (width,)

  return [
    Leaf(
      f'{mine}/{name}',
      shape(name),
      shape(name),
      tuple(f'{theirs}.encoder.layers.{i}.{source}' for i in numbers),
      stacked=True,
    )
    for name, source in _CLIP.items()
  ]


def _tower(cfg: VlmConfig) -> list[Leaf]:
  vision, at = cfg.vision, 'vision.embeddings'
  width, patch = vision.width, vision.patch_size
  kept = vision.layers + vision.feature_layer + 1
  return [
    _one('tower/class_embedding/w', (width,), f'{at}.class_embedding'),
    _one(
      'tower/patch/w',
      (width, 3 * patch * patch),
      f'{at}.patch_embedding.weight',
      (width, 3, patch, patch),
    ),
    _one(
      'tower/positions/w',
      (vision.patches + 1, width),
      f'{at}.position_embedding.weight',
    ),
    *_norm('tower/pre_norm', 'vision.pre_layrnorm', width),
    *_clip_layers('tower/layers', 'vision', width, vision.mlp, range(kept)),
    *_clip_layers(
      'tower/tail', 'vision', width, vision.mlp, range(kept, vision.layers)
    ),
    *_norm('tower/post_norm', 'vision.post_layernorm', width),
    _one('tower/projection/w', (cfg.joint, width), 'vision.projection.weight'),
  ]


def _text(cfg: VlmConfig) -> list[Leaf]:
  text, at = cfg.text, 'text.embeddings'
  width = text.width
  return [
    _one('text/tokens/w', (text.vocab, width), f'{at}.token_embedding.weight'),
    _one('text/positions/w', (text.context, width), f'{at}.position_embedding.weight'),
    *_clip_layers('text/layers', 'text', width, text.mlp, range(text.layers)),
    *_norm('text/post_norm', 'text.final_layer_norm', width),
    _one('text/projection/w', (cfg.joint, width), 'text.projection.weight'),
    _one('text/logit_scale/w', (), 'text.logit_scale'),
  ]


def chosen(tensors: Tensors, cfg: VlmConfig, parts: Iterable[str], where) -> list[Leaf]:
  """The leaves that the tensors give; refuses what is missing, left over, misshapen.

  What only the joint embedding needs may be absent, but only whole: a text tower with
  a hole is an error, and so is one in the layers behind the feature layer.

  Args:
    tensors: by neutral name.
    parts: of PARTS, that must be there.
    where: names the checkpoint in the error.
  """
  every = leaves(cfg)
  held = {leaf.group for leaf in every if any(n in tensors for n in leaf.sources)}
  parts = {*parts, 'text'}
  wanted = [
    leaf
    for leaf in every
    if leaf.part in parts and (not leaf.group or leaf.group in held)
  ]
  expected = {name: leaf.theirs for leaf in wanted for name in leaf.sources}
  problems = [f'missing {n} {expected[n]}' for n in expected if n not in tensors]
  problems += [
    f'left over {n} {tuple(t.shape)}' for n, t in tensors.items() if n not in expected
  ]
  for name, shape in expected.items():
    if name not in tensors:
      continue
    found = tensors[name]
    if tuple(found.shape) != shape:
      problems.append(f'{name} has shape {tuple(found.shape)}, expected {shape}')
    elif not is_floating(found.dtype):
      problems.append(f'{name} has dtype {found.dtype}, expected a floating one')
  if problems:
    raise ConvertError(f'{where}: {listed(problems)}')
  return wanted


# ---------------------------------------------------------------- out


def original(name: str) -> str:
  """Neutral -> LLaVA's original layout."""
  name = re.sub(
    r'^vision\.(?!projection)', 'model.vision_tower.vision_tower.vision_model.', name
  )
  return re.sub(r'^projector\.', 'model.mm_projector.', name)


def hugging_face(name: str) -> str:
  """Neutral -> LlavaForConditionalGeneration; these names load in 4 and in 5."""
  name = re.sub(r'^vision\.', 'vision_tower.vision_model.', name)
  name = name.replace('projector.0.', 'multi_modal_projector.linear_1.')
  name = name.replace('projector.2.', 'multi_modal_projector.linear_2.')
  return re.sub(r'^(model\.|lm_head\.)', r'language_model.\1', name)


LAYOUTS: dict[str, Callable[[str], str]] = {'llava': original, 'hf': hugging_face}


# ---------------------------------------------------------------- adapters

MODULES = {name: _LLAMA[f'{name}/w'].removesuffix('.weight') for name in LINEARS}
_ADAPTED = (
  r'(?:base_model\.model\.)?(?P<rest>.*\.layers\.(?P<layer>\d+)\.'
  r'(?P<module>(?:self_attn|mlp)\.\w+_proj))\.lora_(?P<side>[AB])(?:\.\w+)?\.weight'
)


def adapted(name: str) -> tuple[str, int, str] | None:
  """PEFT's name -> (linear, layer, 'a' or 'b'), or None if it is not one of ours."""
  match = re.fullmatch(_ADAPTED, name)
  if match is None or not rename(match['rest']).startswith('model.layers.'):
    return None
  linear = {theirs: mine for mine, theirs in MODULES.items()}.get(match['module'])
  if linear is None:
    return None
  return linear, int(match['layer']), match['side'].lower()


DECODERS = {  # as the modules are called within the network that peft wraps
  'llava': 'model.',  # LLaMA's own, too
  'hf': 'model.language_model.',  # LlavaForConditionalGeneration, from 4.52 on
}


def peft_name(linear: str, layer: int, side: str, layout: str = 'llava') -> str:
  start = f'base_model.model.{DECODERS[layout]}layers.{layer}'
  return f'{start}.{MODULES[linear]}.lora_{side.upper()}.weight'


def counted(tensors: Iterable[str], pattern: str) -> int:
  """How many layers the names of a pattern with one number speak of."""
  found = collections.Counter(
    match.group(1) for name in tensors if (match := re.match(pattern, name))
  )
  return len(found)
