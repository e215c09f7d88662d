"""Names of weights in other people's files, by way of one neutral spelling.

    LLaVA, 2023       model.vision_tower.vision_tower.vision_model.encoder.layers.3. ...
    Hugging Face      model.vision_tower.encoder.layers.3. ...
    CLIP alone        vision_model.encoder.layers.3. ...
    neutral           vision.encoder.layers.3.self_attn.q_proj.weight

The decoder's neutral names are those of LLaMA. `weight_table` maps them to ours.
"""

import collections
import re
from collections.abc import Callable, Iterable

from vlm_rlaif_jax.settings.models import LINEARS
from vlm_rlaif_jax.weights.errors import ConvertError
from vlm_rlaif_jax.weights.tensors import Tensor, Tensors

_NEUTRAL = (  # start of a foreign name -> of the neutral one; the first match counts
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


def to_neutral(tensors: Tensors) -> dict[str, Tensor]:
  """Returns tensors by their neutral names, without those that can be recomputed.

  Raises:
    ConvertError: two names have the same meaning.
  """
  learned = {n: t for n, t in tensors.items() if not re.match(_IGNORED, n)}
  bare_tower = ''
  if 'embeddings.class_embedding' in learned:
    bare_tower = 'vision.'
  elif 'embeddings.token_embedding.weight' in learned:
    bare_tower = 'text.'
  out: dict[str, Tensor] = {}
  for name, tensor in learned.items():
    new = neutral_name(name)
    if new == name and bare_tower and re.match(_BARE_TOWER, name):
      new = bare_tower + name
    if new in out:
      raise ConvertError(f'two tensors mean {new}; one of them is {name}')
    out[new] = tensor
  return out


def neutral_name(name: str) -> str:
  """Returns the neutral spelling of one name; others are returned as they are."""
  for pattern, start in _NEUTRAL:
    if match := re.match(pattern, name):
      return start + name[match.end() :]
  return name


def count_layers(names: Iterable[str], pattern: str) -> int:
  """Returns how many layers occur in the names that match a pattern with one number."""
  layers = collections.Counter(
    match.group(1) for name in names if (match := re.match(pattern, name))
  )
  return len(layers)


def check_layers(
  names: Iterable[str], pattern: str, layers: int, part: str, path: str
) -> None:
  """Raises ConvertError if the names are of fewer layers than `config.json` states.

  Args:
    part: of the network, in the error.
    path: of the section of `config.json`, in the error.
  """
  count = count_layers(names, pattern)
  if count < layers:
    raise ConvertError(
      f'{path}expected {layers} layers of the {part} (num_hidden_layers), found {count}'
    )


# ---------------------------------------------------------------- out


def llava_name(name: str) -> str:
  """Returns the name in LLaVA's original layout of a neutral one."""
  name = re.sub(
    r'^vision\.(?!projection)', 'model.vision_tower.vision_tower.vision_model.', name
  )
  return re.sub(r'^projector\.', 'model.mm_projector.', name)


def hugging_face_name(name: str) -> str:
  """Returns the name in `LlavaForConditionalGeneration`, as versions 4 and 5 load."""
  name = re.sub(r'^vision\.', 'vision_tower.vision_model.', name)
  name = name.replace('projector.0.', 'multi_modal_projector.linear_1.')
  name = name.replace('projector.2.', 'multi_modal_projector.linear_2.')
  return re.sub(r'^(model\.|lm_head\.)', r'language_model.\1', name)


LAYOUTS: dict[str, Callable[[str], str]] = {
  'llava': llava_name,
  'hf': hugging_face_name,
}


# ---------------------------------------------------------------- adapters

MODULES = {  # linear of ours -> module within a layer of LLaMA
  name: f'self_attn.{name}_proj' if name in 'qkvo' else f'mlp.{name}_proj'
  for name in LINEARS
}
_PEFT = (
  r'(?:base_model\.model\.)?(?P<rest>.*\.layers\.(?P<layer>\d+)\.'
  r'(?P<module>(?:self_attn|mlp)\.\w+_proj))\.lora_(?P<side>[AB])(?:\.\w+)?\.weight'
)
_LINEARS = {module: linear for linear, module in MODULES.items()}
DECODERS = {  # start of the decoder's modules in the network that PEFT wraps
  'llava': 'model.',  # LLaMA's own, too
  'hf': 'model.language_model.',  # LlavaForConditionalGeneration, from 4.52 on
}


def parse_peft_name(name: str) -> tuple[str, int, str] | None:
  """Returns (linear, layer, 'a' or 'b') of PEFT's name of a tensor.

  Returns:
    None for what is not an adapter of a linear of the decoder.
  """
  match = re.fullmatch(_PEFT, name)
  if match is None or not neutral_name(match['rest']).startswith('model.layers.'):
    return None
  linear = _LINEARS.get(match['module'])
  if linear is None:
    return None
  return linear, int(match['layer']), match['side'].lower()


def peft_name(linear: str, layer: int, side: str, layout: str = 'llava') -> str:
  """Returns PEFT's name of `a` or `b` of a linear."""
  start = f'base_model.model.{DECODERS[layout]}layers.{layer}'
  return f'{start}.{MODULES[linear]}.lora_{side.upper()}.weight'
