"""Stage artefacts beside foreign files: finding their base, merging, converting.

A checkpoint that people bring is one of four things, and `open_any` tells which:

    stage    runs/7b/ppo, with its artefact  an adapter (and head) on one of our bases
    base     model.json                      ours
    adapter  adapter_config.json             PEFT's, on a base of either kind
    network  config.json                     LLaVA, LLaMA, CLIP
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from vlm_rlaif_jax.config.build import from_config_dict
from vlm_rlaif_jax.config.models import LoraConfig
from vlm_rlaif_jax.config.stages import RewardPrompt
from vlm_rlaif_jax.convert import (
  adapters,
  files,
  names,
  sizes,
  sources,
  targets,
  writing,
)
from vlm_rlaif_jax.convert.files import ConvertError
from vlm_rlaif_jax.convert.sources import Checkpoint
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.data import pairs, prompts, tokens
from vlm_rlaif_jax.train import artefacts, bases


@dataclasses.dataclass(frozen=True)
class Ground:
  """What an adapter was trained on.

  Attributes:
    base: one of our bases; '' where nothing says which.
    sft: the SFT stage that was merged into it; '' if none was.
  """

  base: str
  sft: str = ''

  def __str__(self) -> str:
    tuned = f' with {self.sft} merged into it' if self.sft else ''
    return f'{self.base or "a base that its artefact does not name"}{tuned}'


@dataclasses.dataclass(frozen=True)
class Opened:
  """A network, and what has been trained on top of it.

  Attributes:
    kind: 'stage', 'base', 'adapter' or 'network'.
    network: with an earlier SFT merged into it.
    adapter: None, or what answers (or scores) with the network.
    head: None, or the reward head, `{'w': float32[D], 'b': float32[]}`.
    scoring: the turn that the reward model reads after an answer.
    frames: a video, as trained; 0: not known.
    aspect: how frames become squares, as trained.
    artefact: of a stage.
    ground: of a stage: what network was read from.
  """

  kind: str
  network: Checkpoint
  adapter: adapters.Adapter | None = None
  head: dict | None = None
  scoring: RewardPrompt = RewardPrompt()
  frames: int = 0
  aspect: str = 'pad'
  artefact: artefacts.Artefact | None = None
  ground: Ground | None = None

  @property
  def merged(self) -> Checkpoint:
    """The network with the adapter merged into it."""
    if self.adapter is None:
      return self.network
    return sources.with_adapter(self.network, self.adapter.flat, self.adapter.lora)

  @property
  def places(self) -> list[pathlib.Path]:
    """Folders and files that it was read from, or still will be."""
    files = {tensor.place[0] for tensor in self.network.tensors.values()}
    tuned = [pathlib.Path(self.ground.sft)] if self.ground and self.ground.sft else []
    return [
      self.network.folder,
      *tuned,
      *(pathlib.Path(file) for file in files if file),
    ]

  def describe(self) -> str:
    lines = self.network.describe()
    if self.adapter is not None:
      lines += f'; {self.adapter.describe()}'
    return lines + ('; reward head' if self.head is not None else '')


def kind_of(folder: pathlib.Path) -> str:
  if not folder.is_dir():
    raise ConvertError(f'{folder}: no such folder')
  if _artefact_json(folder).is_file():
    return 'stage'
  if sources.is_ours(folder):
    return 'base'
  if adapters.find(folder):
    return 'adapter'
  if (folder / 'config.json').is_file():
    return 'network'
  raise ConvertError(
    f'{folder}: not a checkpoint; none of artefact/artefact.json, model.json, '
    'adapter_config.json and config.json is there'
  )


def open_any(
  folder: pathlib.Path,
  *,
  base: str = '',
  sft: str = '',
  vision: str = '',
  projector: str = '',
  scoring: RewardPrompt | None = None,
) -> Opened:
  """Finds out what a folder is, and what it stands on.

  Args:
    base: for an adapter or a stage: the network under it, of either kind.
    sft: for a stage: the folder of the SFT stage that its base was tuned by.
    vision: a CLIP folder, for a network without its tower.
    projector: a file, for a network without a projector or in place of its own.
    scoring: the turn that a reward model reads; None: as its artefact records, or the
      reference's.
  """
  kind = kind_of(folder)
  given = {'base': base, 'sft': sft, 'vision': vision, 'projector': projector}
  _refuse(given, _OPENED_WITH[kind], f'{folder} ({kind})')
  path = lambda text: pathlib.Path(text) if text else None
  if kind == 'stage':
    opened = _open_stage(folder, base, sft)
  elif kind == 'adapter':
    opened = _open_adapter(folder, base, path(vision), path(projector))
  else:
    network = sources.open_checkpoint(folder, path(vision), path(projector))
    opened = Opened(kind, network)
  if scoring is None:
    return opened
  if opened.head is None:
    raise ConvertError(f'scoring: {folder} has no reward head')
  _check_scoring(scoring)
  return dataclasses.replace(opened, scoring=scoring)


_OPENED_WITH = {
  'stage': ('base', 'sft'),
  'base': ('projector',),
  'adapter': ('base', 'vision', 'projector'),
  'network': ('vision', 'projector'),
}


def _refuse(given: dict, applies: Iterable[str], what: str, start: str = '') -> None:
  """Refuses what was asked for and would be ignored."""
  idle = [
    start + name for name, value in given.items() if value and name not in applies
  ]
  if idle:
    raise ConvertError(f'{", ".join(idle)}: without effect on {what}; leave it out')


def _check_scoring(scoring: RewardPrompt) -> None:
  try:
    pairs.reward_prompt(scoring)
  except (OSError, ValueError) as error:
    raise ConvertError(f'scoring: {error}') from None


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


def convert(
  source: pathlib.Path,
  out: pathlib.Path,
  request: Request,
  progress: targets.Progress = lambda items: items,
  say: Callable[[str], None] = lambda text: None,
) -> None:
  """A checkpoint -> another kind of checkpoint.

  Kinds, names, shapes, dtypes and companions are checked before anything is written;
  values, which must be finite, as they are written.
  """
  kind = kind_of(source)
  to = request.to or ('peft' if kind == 'stage' else 'ours')
  layout = {'peft': 'llava', 'peft-hf': 'hf'}.get(to)
  if layout and kind != 'stage':
    raise ConvertError(f'--to={to}: {source} is no stage with an adapter of ours')
  if kind == 'stage' and to == 'ours' and not request.merge:
    raise ConvertError(f'--to=ours: {source} is ours; --merge makes a base of it')
  artefact = kind == 'adapter' and to == 'ours' and not request.merge
  if request.bits == 4 and (artefact or to != 'ours'):
    raise ConvertError('--bits=4: only a base of ours is written in NF4 (--to=ours)')
  if out.exists() and not request.overwrite:
    raise ConvertError(f'{out}: exists already; give another, or --overwrite')
  _check_flags(request, kind, to, artefact)
  _check_out(out, [source, *_paths(request)])
  if artefact:
    _write_artefact(source, out, request, say)
  else:
    opened = open_any(
      source,
      base=request.base,
      sft=request.sft,
      vision=request.vision,
      projector=request.projector,
    )
    say(f'{source}: {opened.describe()}')
    _check_out(out, opened.places)
    if layout:
      named = _published(opened, layout, request, say)
      with writing.whole_folder(out, replace=request.overwrite) as part:
        export_adapter(opened, part, *named, request.dtype, layout)
    else:
      _write_network(opened.merged, out, to, request, progress)
      if not sources.has_tokenizer(out):
        say(f'{source}: has no tokenizer; put tokenizer.model or .json into {out}')
  say(f'-> {out}')


def _check_flags(request: Request, kind: str, to: str, artefact: bool) -> None:
  """Refuses what this conversion would ignore."""
  applies = ['to', 'overwrite']
  if artefact:
    applies += ['base', 'sft', 'critic', 'critic_sft', 'reward_prompt', 'placeholder']
  else:
    applies += ['dtype', *_OPENED_WITH[kind]]
  if to == 'ours' and not artefact:
    applies += ['bits', 'partial']
  if to.startswith('peft'):
    applies += ['base_name', 'critic_base_name']
  elif kind in ('stage', 'adapter'):
    applies += ['merge']
  target = {'ours': 'the artefact of a stage' if artefact else 'a base'}.get(to, to)
  what = f'a conversion of this kind ({kind} to {target})'
  _refuse(dataclasses.asdict(request), applies, what, '--')


def _paths(request: Request) -> list[pathlib.Path]:
  """Everything on disk that a request names, beside the checkpoint itself."""
  fields = ('base', 'sft', 'critic', 'critic_sft', 'vision', 'projector')
  given = (getattr(request, field) for field in fields)
  return [
    *(pathlib.Path(text) for text in given if text and text != bases.MERGED),
    *([prompts.find(request.reward_prompt)] if request.reward_prompt else []),
  ]


def _check_out(out: pathlib.Path, inputs: Iterable[pathlib.Path]) -> None:
  """Refuses to write over what is read, and to replace what no conversion wrote."""
  places = (out.resolve(), *writing.beside(out))
  for read in inputs:
    there = read.resolve()
    for place in places:
      if there.is_relative_to(place) or place.is_relative_to(there):
        raise ConvertError(
          f'{out}: {read} is read, and one holds the other; give OUT a place of its own'
        )
  if out.exists() and not _is_output(out):
    raise ConvertError(
      f'{out}: not an earlier output of this command, so --overwrite leaves it alone; '
      'move it away, or give another OUT'
    )


def _is_output(folder: pathlib.Path) -> bool:
  """Whether a folder is empty, or could have been written by a conversion."""
  inside = {path.name for path in folder.iterdir()} if folder.is_dir() else {'a file'}
  if not inside:
    return True
  try:
    kind = kind_of(folder)
  except ConvertError:
    return False
  if kind == 'stage':  # a run has its checkpoints and metrics beside the artefact
    return inside <= {'artefact', 'summary.json'}
  weights = ('*.safetensors', '*.bin')
  return kind == 'adapter' or any(any(folder.glob(pattern)) for pattern in weights)


def _write_network(network: Checkpoint, out, to: str, request: Request, progress):
  _check_companions(network.folder)
  dtype = request.dtype or network.dtype
  if to != 'ours':
    targets.write_foreign(out, network, to, dtype, progress, replace=request.overwrite)
    return
  if not request.dtype and dtype == 'float16':
    dtype = 'bfloat16'
  whole = tuple(part for part in names.PARTS if part != 'text')
  parts = network.parts if request.partial else whole
  lacks = [part for part in parts if part not in network.parts]
  if lacks:
    hints = {'tower': '--vision', 'projector': '--projector', 'llama': 'a LLaMA'}
    raise ConvertError(
      f'{network.folder}: has no {" and no ".join(lacks)}; give '
      f'{" and ".join(hints[part] for part in lacks)}, or --partial for the rest alone'
    )
  form = targets.form_of(network, dtype, request.bits or network.bits)
  targets.write_ours(out, network, form, parts, progress, replace=request.overwrite)


def _check_companions(folder: pathlib.Path) -> None:
  """What travels with the weights is refused, if damaged, before they are written."""
  if sources.has_tokenizer(folder):
    tokens.load_tokenizer(folder)
  settings = folder / 'generation_config.json'
  if settings.is_file():
    files.read_json(settings)


def _write_artefact(source, out, request: Request, say) -> None:
  if not request.base:
    raise ConvertError(
      '--base: give the base (converted before) that the adapter is on'
    )
  artefact = import_adapter(
    source,
    pathlib.Path(request.base),
    request.sft,
    request.critic,
    request.critic_sft,
    request.scoring,
  )
  parts, info = artefact.parts, artefact.info
  for part, lora in (('lora', 'lora'), ('value', 'critic_lora')):
    if part in parts:
      adapter = adapters.Adapter(trees.flatten(parts[part]), _lora(info[lora]))
      say(f'{source}: {part}: {adapter.describe()}')
  say(f'{", ".join(sorted(parts))}, as stage {info["stage"]} leaves them')
  if 'scoring' in info:
    scoring = ', '.join(f'{name} {value!r}' for name, value in info['scoring'].items())
    say(
      f'recorded as what the reward model reads after an answer: {scoring}; '
      '--reward_prompt and --placeholder choose another'
    )
  with writing.whole_folder(out, replace=request.overwrite) as part:
    artefacts.save(part / 'artefact', artefact)
    artefacts.write_summary(
      part, {'stage': artefact.info['stage'], 'converted_from': str(source)}
    )


# ---------------------------------------------------------------- PEFT


def _open_adapter(folder, base: str, vision, projector) -> Opened:
  found = adapters.find(folder)
  place = found.get('') or found['policy']
  adapter = adapters.read(place)
  base = base or adapter.base
  if not pathlib.Path(base).is_dir() or not base:
    raise ConvertError(
      f'{place}: an adapter needs the network under it; its config names {base!r}, '
      'which is not a folder here; give one with base'
    )
  beside = folder / 'non_lora_trainables.bin'
  tuned = sources.read_projector(beside) if beside.is_file() else {}
  network = sources.open_checkpoint(pathlib.Path(base), vision, projector)
  adapters.check(adapter, network.cfg, place, base)
  if tuned:
    network = sources.with_projector(network, tuned, beside)
  head = None
  path = adapters.find_head(folder, 'reward_head')
  if path is not None:
    head = adapters.read_head(path)
    adapters.check_head(head, network.cfg, path)
  return Opened('adapter', network, adapter, head)


def import_adapter(
  folder: pathlib.Path,
  base: pathlib.Path,
  sft: str,
  critic: str,
  critic_sft: str,
  scoring: RewardPrompt | None = None,
) -> artefacts.Artefact:
  """PEFT files -> an artefact of the stage that would have made them.

      projector beside it: sft     reward_head: reward     two adapters: ppo
      none of these: init

  Args:
    base: one of our bases; sft: of the stage that tuned it, '' if it came tuned.
    critic, critic_sft: the same for the value adapter of a PPO checkpoint.
    scoring: the turn that a reward model reads; None: the reference's.
  """
  found = adapters.find(folder)
  beside = folder / 'non_lora_trainables.bin'
  projector = sources.read_projector(beside) if beside.is_file() else {}
  fingerprint, cfg = _our_base(base, sft)
  place = found.get('') or found['policy']
  adapter = adapters.read(place)
  adapters.check(adapter, cfg, place, base)
  parts: dict = {'lora': trees.unflatten(adapter.flat)}
  info: dict = {
    'stage': 'init',
    'base': fingerprint,
    **bases.origin(str(base), sft or bases.MERGED),
    'lora': dataclasses.asdict(adapter.lora),
    'template': prompts.TEMPLATE,
  }
  head = adapters.find_head(folder, 'reward_head')
  if projector and ('value' in found or head is not None):
    raise ConvertError(
      f'{beside}: a projector beside a head, expected one of them: only stage sft '
      'keeps a projector; give it to the base (--projector), then take it away here'
    )
  if critic_sft and not critic:
    raise ConvertError('--critic_sft: tunes the base that --critic names; give both')
  if critic and 'value' not in found:
    raise ConvertError(f'--critic: {folder} has no value adapter to put on it')
  if scoring is not None and (head is None or 'value' in found):
    raise ConvertError(
      f'--reward_prompt, --placeholder: {folder} has no reward head that reads a prompt'
    )
  if 'value' in found:
    if not critic:
      raise ConvertError(f'{folder}: the value adapter needs its base; give --critic')
    value_path = adapters.find_head(folder, 'value_head.pt')
    if value_path is None:
      raise ConvertError(f'{folder}: no value_head.pt beside the value adapter')
    critic_base, critic_cfg = _our_base(pathlib.Path(critic), critic_sft)
    value = adapters.read(found['value'])
    adapters.check(value, critic_cfg, found['value'], critic)
    parts |= {
      'value': trees.unflatten(value.flat),
      'value_head': adapters.read_head(value_path),
    }
    adapters.check_head(parts['value_head'], critic_cfg, value_path)
    info |= {
      'stage': 'ppo',
      'critic_base': critic_base,
      **bases.origin(critic, critic_sft or bases.MERGED, 'critic_'),
      'critic_lora': dataclasses.asdict(value.lora),
    }
  elif head is not None:
    parts['head'] = adapters.read_head(head)
    adapters.check_head(parts['head'], cfg, head)
    scoring = scoring or RewardPrompt()
    _check_scoring(scoring)
    info |= {'stage': 'reward', 'scoring': dataclasses.asdict(scoring)}
  elif projector:
    flat = {name: tensor.read() for name, tensor in projector.items()}
    parts['projector'] = _our_projector(flat, cfg, beside)
    info['stage'] = 'sft'
  return artefacts.Artefact(parts, info)


def _our_projector(flat: dict, cfg, where) -> dict:
  wanted = {
    leaf.sources[0]: leaf for leaf in names.leaves(cfg) if leaf.part == 'projector'
  }
  problems = trees.mismatches(
    flat, {n: np.empty(leaf.shape, np.bool_) for n, leaf in wanted.items()}
  )
  if problems:
    raise ConvertError(f'{where}: {files.listed(problems)}')
  named = {
    wanted[n].name.removeprefix('projector/'): files.floats(where, n, a)
    for n, a in flat.items()
  }
  return trees.unflatten(named)


def _our_base(folder: pathlib.Path, sft: str):
  """Fingerprint, sizes of one of our bases, tuned by an SFT artefact or as it is."""
  if not sources.is_ours(folder):
    raise ConvertError(
      f'{folder}: not one of our bases (no model.json); convert it first'
    )
  cfg = sizes.of_model_json(folder / 'model.json')
  fingerprint = bases.fingerprint(folder)
  if sft and sft != bases.MERGED:
    artefact = artefacts.load(pathlib.Path(sft), 'sft', fingerprint)
    fingerprint = bases.tuned_fingerprint(fingerprint, artefact.fingerprint)
  return fingerprint, cfg


def _published(
  stage: Opened, layout: str, request: Request, say: Callable[[str], None]
) -> tuple[str, str]:
  """Under which names others find the networks below policy and value adapter.

  A PEFT file names one folder. Where an SFT stage was merged into a base there is none
  until somebody writes it, so its name has to be given.
  """
  assert stage.artefact is not None and stage.ground is not None
  ground, info = stage.ground, stage.artefact.info
  name = request.base_name
  if not name and ground.sft:
    raise ConvertError(f'--base_name: the adapter stands on {_how(ground, layout)}')
  if not name:
    name = ground.base
    say(
      f'the adapter stands on {_how(ground, layout)}; until then only vlm_rlaif_jax '
      'can open what the files name'
    )
  else:
    say(f'the adapter stands on {ground}; its file names {name}')
  if info['stage'] != 'ppo':
    if request.critic_base_name:
      raise ConvertError('--critic_base_name: only a PPO stage has a value adapter')
    return name, ''
  critic = _critic_ground(info)
  value = request.critic_base_name
  if not value and info.get('critic_base') == info.get('base'):
    value = name
  if not value:
    what = _how(critic, layout, 'critic_base_name')
    raise ConvertError(f'--critic_base_name: the value adapter stands on {what}')
  say(f'the value adapter stands on {critic}; its file names {value}')
  return name, value


def _how(ground: Ground, layout: str, flag: str = 'base_name') -> str:
  """What an adapter stands on, and the command that makes it a network for others."""
  source = ground.sft or ground.base or 'ITS_BASE'
  return (
    f'{ground}; write that network with python -m launch.convert {source} OUT '
    f'--to={layout}, and name it with --{flag}=OUT'
  )


def _critic_ground(info: dict) -> Ground:
  """What the value adapter of a PPO artefact was trained on, as recorded."""
  sft = str(info.get('critic_sft_folder') or '')
  return Ground(
    str(info.get('critic_base_folder') or ''), '' if sft == bases.MERGED else sft
  )


def export_adapter(
  stage: Opened,
  folder: pathlib.Path,
  base_name: str,
  critic_base_name: str = '',
  dtype: str = '',
  layout: str = 'llava',
) -> None:
  """An artefact -> PEFT files, laid out as the reference does.

  Args:
    base_name, critic_base_name: what they name as the networks under them.
    dtype: of the adapters; '': as they are.
    layout: of the network that they are for, 'llava' or 'hf'.

  sft      ./ and non_lora_trainables.bin        init     ./
  reward   adapter_model/lora_default/ and reward_head
  ppo      adapter_model/lora_policy/, lora_value/ and value_head.pt
  """
  assert stage.artefact is not None and stage.adapter is not None
  name, parts = stage.artefact.info['stage'], stage.artefact.parts
  place = {'reward': 'adapter_model/lora_default', 'ppo': 'adapter_model/lora_policy'}
  adapters.write(
    folder / place.get(name, ''),
    stage.adapter.flat,
    stage.adapter.lora,
    base_name,
    dtype,
    layout,
  )
  if name == 'ppo':
    adapters.write(
      folder / 'adapter_model/lora_value',
      trees.flatten(parts['value']),
      _lora(stage.artefact.info['critic_lora']),
      critic_base_name,
      dtype,
      layout,
    )
    adapters.write_head(folder / 'value_head.pt', parts['value_head'])
  if name == 'reward':
    adapters.write_head(folder / 'reward_head', parts['head'])
  if name == 'sft':
    projector = sources.projector_of(parts['projector'])
    writing.write_torch(
      folder / 'non_lora_trainables.bin',
      {_PROJECTORS[layout](name): tensor.read() for name, tensor in projector.items()},
    )
  cfg = stage.network.cfg
  config = sizes.to_config_json(cfg, layout, stage.network.dtype, cfg.llama.vocab)
  (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
  writing.copy_files(stage.network.folder, folder, sources.TRAVELS)


_PROJECTORS: dict[str, Callable[[str], str]] = {  # as in the model that peft wraps
  'llava': lambda name: f'base_model.model.{names.original(name)}',
  'hf': lambda name: f'base_model.model.model.{names.hugging_face(name)}',
}


# ---------------------------------------------------------------- stages


def _artefact_json(folder: pathlib.Path) -> pathlib.Path:
  inner = folder / 'artefact' / 'artefact.json'
  return inner if inner.is_file() else folder / 'artefact.json'


def _lora(fields: dict) -> LoraConfig:
  return LoraConfig(**{**fields, 'targets': tuple(fields['targets'])})


_PARTS = {  # that a stage leaves beside its adapter
  'sft': ('projector',),
  'init': (),
  'reward': ('head',),
  'ppo': ('value', 'value_head'),
}


def _load(folder: pathlib.Path, stage: str) -> artefacts.Artefact:
  """An artefact with the parts and the settings that its stage leaves.

  Raises:
    UserError: names the part or the field of `artefact.json` that is not as it must be.
  """
  artefact = artefacts.load(folder, stage)
  info, path = artefact.info, _artefact_json(folder)
  if stage not in _PARTS:
    raise ConvertError(
      f'{path}: stage is {stage!r}, expected one of {", ".join(_PARTS)}'
    )
  lost = [part for part in ('lora', *_PARTS[stage]) if part not in artefact.parts]
  if lost:
    raise ConvertError(f'{path}: parts is missing {", ".join(lost)} of stage {stage}')
  kinds = ('base', 'base_folder', 'sft_folder')
  for name in (*kinds, *(f'critic_{kind}' for kind in kinds)):
    if not isinstance(info.get(name) or '', str):
      raise ConvertError(f'{path}: {name} is {info[name]!r}, expected a text')
  adapted = {'lora': 'lora'} | ({'critic_lora': 'value'} if stage == 'ppo' else {})
  for name, part in adapted.items():
    lora = _section(LoraConfig, info, name, path, ('rank', 'alpha', 'targets'))
    wanted = {f'llama/layers/{x}/{side}' for x in lora.targets for side in 'ab'}
    if wanted != trees.flatten(artefact.parts[part]).keys():
      raise ConvertError(f'{path}: {name}.targets are not those of {part}.safetensors')
  if 'scoring' in info:
    _section(RewardPrompt, info, 'scoring', path)
  return artefact


def _section(kind, info: dict, name: str, path: pathlib.Path, needed=()):
  """A section of `artefact.json` as settings."""
  section = sizes.Section(info, f'{path}: ').section(name)
  for field in needed:
    if field not in section.values:
      raise section.wrong(field, 'what its stage leaves')
  try:
    return from_config_dict(kind, section.values, f'{path}: {name}')
  except TypeError as error:
    raise ConvertError(f'{path}: {name}: {error}') from None


def _open_stage(folder: pathlib.Path, base: str, sft: str) -> Opened:
  path = _artefact_json(folder)
  info = files.read_json(path)
  stage = str(info.get('stage'))
  if sft and stage == 'sft':
    raise ConvertError(f'sft: {folder} is itself an SFT stage; leave it out')
  if path.parent.name != 'artefact':
    raise ConvertError(f'{path.parent}: an artefact is found in a folder of that name')
  folder = path.parent.parent
  artefact = _load(folder, stage)
  run = _run_settings(folder)
  trained_on = str(artefact.info.get('base'))
  told = [str(info.get('base_folder') or ''), str(run.get('base') or '')]
  where: list[str] = [base] if base else [*told, '']
  seen = []
  for candidate in dict.fromkeys(where):
    place = bases.base_folder(candidate)
    if not sources.is_ours(place):
      continue
    fingerprint, tuning, tuned_by = bases.fingerprint(place), None, ''
    if stage != 'sft':
      recorded = (info.get('sft_folder'), run.get('sft'))
      tuned_by, tuning = _sft_stage(folder, sft, recorded)
    if tuning is not None and tuning.info.get('base') == fingerprint:
      fingerprint = bases.tuned_fingerprint(fingerprint, tuning.fingerprint)
    else:
      tuning, tuned_by = None, ''
    seen.append(f'{place} is {fingerprint}')
    if fingerprint == trained_on:
      break
  else:
    raise ConvertError(
      f'{path}: trained on weights {trained_on}, and '
      f'{"; ".join(seen) or "none of our bases was found"}; give base (and sft)'
    )
  network = sources.open_checkpoint(place)
  if tuning is not None:
    lora, flat = _lora(tuning.info['lora']), trees.flatten(tuning.parts['lora'])
    network = sources.with_adapter(network, flat, lora)
    projector = sources.projector_of(tuning.parts['projector'])
    network = sources.with_projector(network, projector, folder)
  if 'projector' in artefact.parts:
    projector = sources.projector_of(artefact.parts['projector'])
    network = sources.with_projector(network, projector, folder)
  adapter = adapters.Adapter(
    trees.flatten(artefact.parts['lora']),
    _lora(artefact.info['lora']),
    str(place),
  )
  adapters.check(adapter, network.cfg, path, place)
  return Opened(
    'stage',
    network,
    adapter,
    artefact.parts.get('head'),
    RewardPrompt(**artefact.info.get('scoring', {})),
    int(run.get('data.frames', 0)),
    run.get('data.aspect', 'pad'),
    artefact,
    Ground(str(place.resolve()), tuned_by),
  )


def _run_settings(folder: pathlib.Path) -> dict:
  """What the run of a stage was asked to do, where its checkpoints still say so."""
  path = folder / 'checkpoints' / 'identity.json'
  return files.read_json(path) if path.is_file() else {}


def _sft_stage(
  folder: pathlib.Path, named: str, recorded: Iterable[str | None]
) -> tuple[str, artefacts.Artefact | None]:
  """The SFT stage that a later stage stands on, and what it left; '' and None: none.

  As named; else as recorded, where it still is; else beside the stage.
  """
  for place in () if named else (*recorded, str(folder.parent / 'sft')):
    if place and (
      place == bases.MERGED or _artefact_json(pathlib.Path(place)).is_file()
    ):
      named = place
      break
  if named in ('', bases.MERGED):
    return '', None
  return str(pathlib.Path(named).resolve()), _load(pathlib.Path(named), 'sft')
