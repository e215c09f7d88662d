"""The frozen networks: pretrained weights, and the tuned model that SFT makes of them.

A base folder holds `model.json` (sizes), `*.safetensors` (our names, layers stacked)
and a Hugging Face tokenizer. The tiny one comes with the package; `launch.convert`
makes others from released checkpoints.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec

from vlm_rlaif_jax.config.build import ConfigError, flatten
from vlm_rlaif_jax.config.models import LINEARS, LoraConfig, VlmConfig
from vlm_rlaif_jax.config.sections import Quant
from vlm_rlaif_jax.config.stages import MERGED
from vlm_rlaif_jax.convert import names, packed, sources
from vlm_rlaif_jax.core import hosts, sharding, trees
from vlm_rlaif_jax.core.quant import blocks, int4, nf4
from vlm_rlaif_jax.core.quant.nf4 import Nf4
from vlm_rlaif_jax.core.quant.product import Leaf
from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.nn.vlm import VIDEO, Vlm
from vlm_rlaif_jax.train import artefacts

TINY = pathlib.Path(__file__).parents[1] / 'data' / 'world' / 'base'


@dataclasses.dataclass(frozen=True)
class Base:
  """Frozen weights on the host, their tokenizer, and who they are.

  A base in NF4 has a fingerprint of its own, and so have the stages that stand on it:
  what was trained on the 16-bit base stays with that one, whatever its residency was.
  """

  params: dict[str, Any]
  tokenizer: tokens.Tokenizer
  fingerprint: str


def base_folder(base: str) -> pathlib.Path:
  return pathlib.Path(base) if base else TINY


def load(base: str, cfg: VlmConfig) -> Base:
  """Reads a base folder and checks every leaf against the sizes of the config."""
  return hosts.together(lambda: _load(base, cfg))


def _load(base: str, cfg: VlmConfig) -> Base:
  folder = base_folder(base)
  files = sorted(folder.glob('*.safetensors'))
  if not files:
    raise artefacts.ArtefactError(
      f'{folder}: no base weights; make them from a released checkpoint with '
      f'python -m launch.convert CHECKPOINT {folder}'
    )
  flat = {}
  for file in files:
    try:
      flat |= safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
      raise artefacts.ArtefactError(f'{file}: cannot be read ({error})') from None
  flat = {name: value for name, value in flat.items() if not name.startswith('text/')}
  expected = {
    name: leaf
    for name, leaf in trees.flatten(abstract_params(cfg)).items()
    if name in flat or not name.startswith(names.JOINT)  # LLaVA has no joint embedding
  }
  whole = {name: leaf.shape for name, leaf in expected.items()}
  through = packed.dtype_of(files)
  if through:
    for name in filter(is_quantised, whole):
      parts = packed.shapes(name, expected.pop(name).shape, f'{name}/scale' in flat)
      expected |= {n: jax.ShapeDtypeStruct(*what) for n, what in parts.items()}
  problems = trees.mismatches(flat, expected)
  if problems:
    raise artefacts.ArtefactError(
      f'{folder}: does not fit config.model ({cfg.name}): {"; ".join(problems[:5])}'
      + (f' and {len(problems) - 5} more' if len(problems) > 5 else '')
    )
  return Base(
    params=trees.unflatten(packed.joined(flat, whole, through)),
    tokenizer=tokens.load_tokenizer(folder),
    fingerprint=fingerprint(folder),
  )


def fingerprint(folder: pathlib.Path) -> str:
  """Hash of the files of weights of a base folder."""
  digest = hashlib.sha256()
  for file in sorted(folder.glob('*.safetensors')):
    with file.open('rb') as stream:
      while chunk := stream.read(1 << 24):
        digest.update(chunk)
  return digest.hexdigest()[:16]


def tuned_fingerprint(base: str, sft: str) -> str:
  """Of a base with an SFT artefact merged into it, from the fingerprints of both."""
  return hashlib.sha256(f'{base}+{sft}'.encode()).hexdigest()[:16]


def origin(
  base: str, sft: str | pathlib.Path = MERGED, prefix: str = ''
) -> dict[str, str]:
  """What an artefact says of where its base was; fingerprints decide whether it is.

  Args:
    sft: the folder of the SFT stage merged into the base, `MERGED` if there is none.
    prefix: of the fields; 'critic_' for the base of value and reward.
  """
  place = MERGED if str(sft) == MERGED else str(pathlib.Path(sft).resolve())
  return {
    f'{prefix}base_folder': str(base_folder(base).resolve()),
    f'{prefix}sft_folder': place,
  }


def save(folder: pathlib.Path, params: dict, cfg: VlmConfig) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  flat = {name: np.asarray(value) for name, value in trees.flatten(params).items()}
  safetensors.numpy.save_file(flat, folder / 'model.safetensors')
  (folder / 'model.json').write_text(json.dumps(flatten(cfg), indent=1) + '\n')


@functools.lru_cache(maxsize=16)
def abstract(cfg: VlmConfig, lora: LoraConfig | None = None):
  """Shapes and logical axes of every weight, without making one."""
  size = cfg.vision.image_size
  return jax.eval_shape(
    Vlm(cfg, lora).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 2, size, size, 3), jnp.float32),
    jax.ShapeDtypeStruct((1, 3), jnp.int32),
    jax.ShapeDtypeStruct((1, 3), jnp.bool_),
  )


def abstract_params(cfg: VlmConfig):
  return meta.unbox(abstract(cfg))['params']


@functools.partial(jax.jit, static_argnums=0)
def init(cfg: VlmConfig, key) -> dict:
  """Random weights of a whole network; for pretraining and for tests.

  Compiled whole, so that the pass that declares the weights is not computed.
  """
  size = cfg.vision.image_size
  ids = jnp.array([[1, VIDEO, 1]])
  variables = Vlm(cfg).init(key, jnp.zeros((1, 2, size, size, 3)), ids, ids != 0)
  return meta.unbox(variables)['params']


def init_adapter(cfg: VlmConfig, lora: LoraConfig, key, dtype='float32') -> dict:
  """A fresh adapter: A uniform, B zero, so that it changes nothing yet."""
  shapes = meta.unbox(abstract(cfg, lora))['lora']
  leaves = trees.flatten(shapes)
  keys = jax.random.split(key, len(leaves))
  made = {}
  for k, (name, leaf) in zip(keys, leaves.items(), strict=True):
    bound = leaf.shape[-1] ** -0.5 if name.endswith('/a') else 0.0
    made[name] = jax.random.uniform(k, leaf.shape, dtype, -bound, bound)
  return trees.unflatten(made)


def abstract_adapter(cfg: VlmConfig, lora: LoraConfig, dtype='float32'):
  """Shapes of an adapter."""
  shapes = meta.unbox(abstract(cfg, lora))['lora']
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)


def check_adapter(adapter, cfg: VlmConfig, lora: LoraConfig, where: str) -> None:
  """Refuses an adapter with leaves missing, left over or misshapen."""
  expected = trees.flatten(meta.unbox(abstract(cfg, lora))['lora'])
  problems = trees.mismatches(trees.flatten(adapter), expected)
  if problems:
    raise artefacts.ArtefactError(f'{where}: adapter does not fit: {problems[0]}')


def merge(params: dict, adapter: dict, lora: LoraConfig) -> dict:
  """W + alpha / rank B A, in the dtype of W; what was in NF4 no longer is."""
  flat = trees.flatten(params, is_leaf=_is_leaf)
  pairs = trees.flatten(adapter)
  for name, b in pairs.items():
    if name.endswith('/b'):
      stem = name[:-2]
      w, a, b = flat[f'{stem}/w'], np.asarray(pairs[f'{stem}/a']), np.asarray(b)
      merged = (
        sources.merged(*layer, lora.alpha / lora.rank)
        for layer in zip(_layers(w), a, b, strict=True)
      )
      flat[f'{stem}/w'] = _filled(w, merged, w.dtype)
  return trees.unflatten(flat)


def _is_leaf(x) -> bool:
  return isinstance(x, Leaf)


def _layers(w) -> Iterator[np.ndarray]:
  """The matrices of a stacked weight, unpacked one at a time, in its own dtype."""
  if not isinstance(w, Nf4):
    yield from np.asarray(w)
    return
  for index in range(w.codes.shape[0]):
    layer = jax.tree.map(lambda x, i=index: np.asarray(x)[i], w)
    yield np.asarray(nf4.dequantize(layer, w.dtype))


def _filled(like, layers: Iterable, dtype) -> np.ndarray:
  """`[L, out, in]` of a weight's shape, one layer after the other."""
  count = like.codes.shape[0] if isinstance(like, Nf4) else like.shape[0]
  out = np.empty((count, *like.shape[-2:]), dtype)
  for index, layer in enumerate(layers):
    out[index] = layer
  return out


def tuned(base: Base, folder: pathlib.Path, cfg: VlmConfig) -> Base:
  """The base with an SFT artefact merged into it: what later stages start from.

  Args:
    folder: of the SFT stage; `MERGED` for a base that was converted after its tuning.
  """
  if str(folder) == MERGED:
    return base
  artefact = artefacts.load(folder, 'sft', base.fingerprint)
  lora = lora_of(artefact)
  check_adapter(artefact.parts['lora'], cfg, lora, str(folder))
  params = merge(base.params, artefact.parts['lora'], lora)
  params['projector'] = artefact.parts['projector']
  return Base(
    params,
    base.tokenizer,
    tuned_fingerprint(base.fingerprint, artefact.fingerprint),
  )


def lora_of(artefact: artefacts.Artefact) -> LoraConfig:
  try:
    fields = artefact.info['lora']
    return LoraConfig(**{**fields, 'targets': tuple(fields['targets'])})
  except (KeyError, TypeError, ValueError) as error:
    raise ConfigError(f'artefact.json: lora section is damaged ({error})') from None


def stored_dtype(name: str, dtype) -> str:
  """Norms stay in float32; everything else of a frozen base is in `dtype`."""
  return 'float32' if 'scale' in name and 'norm' in name else dtype


def on_device(
  params: dict, cfg: VlmConfig, mesh, dtype=None, held: Quant | None = None
) -> dict:
  """Host weights -> device, laid out by the rules, in `dtype`; norms in float32.

  Args:
    held: how the linears of the decoder are to be held; None: as they are.
  """
  where = sharding.shardings(abstract(cfg)['params'], mesh)
  layout: dict[str, Any] = trees.flatten(where)
  dtype = cfg.dtype if dtype is None else dtype
  if held is not None:
    check_held(params, held)

  def put(name, value):
    value = value if _is_leaf(value) else np.asarray(value)
    if held is not None and is_quantised(name):
      value = quantised(value, held, dtype)
    if isinstance(value, Leaf):
      return sharding.put(value, leaf_layout(value, layout[name]))
    return sharding.put(value.astype(stored_dtype(name, dtype)), layout[name])

  flat = trees.flatten(params, is_leaf=_is_leaf)
  return trees.unflatten({name: put(name, value) for name, value in flat.items()})


def is_quantised(name: str) -> bool:
  """Whether a weight is one of the decoder's linears: not head, embeddings or CLIP."""
  pieces = name.split('/')
  return pieces[:2] == ['llama', 'layers'] and pieces[2] in LINEARS and len(pieces) == 4


def check_held(params: dict, held: Quant, field: str = 'quant') -> None:
  """Refuses to hold a base that is in NF4 already in another way than the settings'."""
  packed = any(isinstance(x, Nf4) for x in jax.tree.leaves(params, is_leaf=_is_leaf))
  if packed and held.residency not in ('nf4', 'nf4_bf16'):
    raise ConfigError(
      f'config.{field}.residency: {held.residency!r} needs a base in 16 bits, this one '
      "is in NF4; choose 'nf4', or 'nf4_bf16' to have it unpacked"
    )


def quantised(value: np.ndarray | Nf4, held: Quant, dtype) -> np.ndarray | Leaf:
  """Stacked matrices `[L, out, in]` in the form that the settings name.

  What is in NF4 already stays as it was made, whatever `double` and `through` say.
  """
  if isinstance(value, Nf4):
    return value if held.residency == 'nf4' else _filled(value, _layers(value), dtype)
  if held.residency == 'native':
    return value
  if held.residency == 'int4':
    return int4.quantize(value, held.group)
  quantise = lambda w: nf4.quantize(w, held.double, held.through)
  if held.residency == 'nf4':
    return quantise(value)
  # a layer at a time: float32 copies stay small
  return _filled(value, (nf4.dequantize(quantise(w), dtype) for w in value), dtype)


def leaf_layout(leaf: Leaf, whole: NamedSharding):
  """The layout of a quantised leaf from that of the stacked `[L, out, in]`.

  Codes and scales are `[L, in, out]`. Where the input axis does not divide into whole
  pairs of blocks, the output axis is split over its devices too (`down` of 7B over 4 or
  8: 86 pairs); matrices that are held as one row stay whole.
  """
  layer, out, inp = whole.spec
  mesh = whole.mesh
  ways = lambda axes: sharding.ways(mesh, axes)
  if blocks.is_flat(leaf.shape, leaf.block):
    layer = out = inp = None
  elif leaf.shape[1] % (2 * leaf.block * ways(inp)):
    both = tuple(axes for axes in (out, inp) if axes)
    out = both if leaf.shape[0] % ways(both) == 0 else out
    inp = None
  wide, small = PartitionSpec(layer, inp, out), PartitionSpec(layer)
  return jax.tree.map(
    lambda x: NamedSharding(mesh, wide if x.ndim == 3 else small), leaf
  )


def held_bytes(params, held: Quant) -> dict:
  """What a summary says of a base: its residency and its bytes, those of linears too.

  Bytes of the whole arrays; a device has a share of what is sharded.
  """
  parts = trees.flatten(params)
  linears = [
    x for name, x in parts.items() if '/layers/' in name and '_norm/' not in name
  ]
  return {
    'residency': held.residency,
    'bytes': trees.nbytes(params),
    'linear_bytes': trees.nbytes(linears),
  }
