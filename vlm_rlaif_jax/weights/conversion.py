"""Conversion of one kind of checkpoint into another, as `launch.convert` runs it."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.data import chat_templates, prompts, tokens
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.weights import (
  adapters,
  artifact_paths,
  artifacts,
  bases,
  folders,
  network_files,
  peft_files,
  readers,
  tower_files,
  weight_forms,
  weight_table,
  writers,
)
from vlm_rlaif_jax.weights.checkpoint import Checkpoint
from vlm_rlaif_jax.weights.errors import ConvertError
from vlm_rlaif_jax.weights.json_section import read_json
from vlm_rlaif_jax.weights.peft_stages import (
  export_adapter,
  import_adapter,
  resolve_base_names,
)

Log = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """The options of a conversion; `launch/convert.py` explains each."""

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
    """The turn that a reward model reads; None where no option names one."""
    options = {'prompt': self.reward_prompt, 'placeholder': self.placeholder}
    named: dict[str, Any] = {name: value for name, value in options.items() if value}
    return RewardPrompt(**named) if named else None

  @property
  def paths(self) -> list[pathlib.Path]:
    """The paths that it reads, besides the checkpoint itself."""
    fields = ('base', 'sft', 'critic', 'critic_sft', 'vision', 'projector')
    values = (getattr(self, field) for field in fields)
    return [
      *(pathlib.Path(text) for text in values if text and text != bases.MERGED),
      *([prompts.find(self.reward_prompt)] if self.reward_prompt else []),
    ]


def _ignore(text: str) -> None:
  del text


def convert(
  source: pathlib.Path,
  out: pathlib.Path,
  request: Request,
  progress: writers.Progress = writers.without_progress,
  log: Log = _ignore,
) -> None:
  """Converts a checkpoint.

  Kinds, names, shapes, dtypes and companions are checked before anything is written;
  values, which must be finite, as they are written.

  Args:
    progress: wraps the iteration over tensors.
    log: receives a line on what was found and what is recorded.

  Raises:
    UserError: one line on what is missing, unexpected, damaged or of the wrong size.
  """
  # what is asked for
  kind = readers.kind_of(source)
  to = request.to or ('peft' if kind == 'stage' else 'ours')
  layout = {'peft': 'llava', 'peft-hf': 'hf'}.get(to, '')
  makes_artifact = kind == 'adapter' and to == 'ours' and not request.merge
  _check_request(request, source, kind, to, makes_artifact)
  if out.exists() and not request.overwrite:
    raise ConvertError(f'{out}: exists already; give another, or --overwrite')
  _check_out(out, [source, *request.paths])
  if makes_artifact:
    _write_artifact(source, out, request, log)
    log(f'-> {out}')
    return

  # what is there
  checkpoint = readers.load_checkpoint(
    source,
    base=request.base,
    sft=request.sft,
    vision=request.vision,
    projector=request.projector,
  )
  log(f'{source}: {checkpoint.describe()}')
  _check_out(out, checkpoint.paths)

  # written
  if layout:
    base_names = resolve_base_names(
      checkpoint, layout, request.base_name, request.critic_base_name, log
    )
    with folders.atomic_folder(out, replace=request.overwrite) as part:
      export_adapter(checkpoint, part, *base_names, request.dtype, layout)
  else:
    _write_network(checkpoint.merged, out, to, request, progress)
  _log_use(source, out, to, log)
  log(f'-> {out}')


def _log_use(source: pathlib.Path, out: pathlib.Path, to: str, log: Log) -> None:
  """Says what others need to know of an output before they open it."""
  if to.startswith('peft'):
    places = (
      f'{place} ({role or "the adapter"})'
      for role, place in peft_files.find(out).items()
    )
    log(f'PeftModel.from_pretrained(network, PATH) opens {", ".join(places)}')
    return
  if file := chat_templates.other_template(source):
    log(
      f"{source / file}: the network has learned another conversation than Vicuna's, "
      '"USER: ... ASSISTANT: ...", in which it is trained and asked questions here'
    )
  if not network_files.has_tokenizer(out):
    log(f'{source}: has no tokenizer; put tokenizer.model or .json into {out}')
  if to == 'hf':
    log(
      'transformers asks it about single pictures: its LLaVA has no pooling over a '
      f"video; vlm_rlaif_jax.load('{out}').answer('clip.mp4', 'What happens?') has"
    )
  if (tower := tower_files.place(out)).is_dir():
    log(f'config.json names {tower}, where LLaVA finds the tower: change it with OUT')


# ---------------------------------------------------------------- checks


def _check_request(
  request: Request, source: pathlib.Path, kind: str, to: str, makes_artifact: bool
) -> None:
  """Raises ConvertError for options that are impossible or would be ignored."""
  if to.startswith('peft') and kind != 'stage':
    raise ConvertError(f'--to={to}: {source} is not a stage with an adapter of ours')
  if kind == 'stage' and to == 'ours' and not request.merge:
    raise ConvertError(f'--to=ours: {source} is ours; --merge makes a base of it')
  if request.bits == 4 and (makes_artifact or to != 'ours'):
    raise ConvertError('--bits=4: only a base of ours is written in NF4 (--to=ours)')
  used = ['to', 'overwrite']
  if makes_artifact:
    used += ['base', 'sft', 'critic', 'critic_sft', 'reward_prompt', 'placeholder']
  else:
    used += ['dtype', *readers.OPTIONS[kind]]
  if to == 'ours' and not makes_artifact:
    used += ['bits', 'partial']
  if to.startswith('peft'):
    used += ['base_name', 'critic_base_name']
  elif kind in ('stage', 'adapter'):
    used += ['merge']
  ours = 'the artifact of a stage' if makes_artifact else 'a base'
  target = f'a conversion of this kind ({kind} to {ours if to == "ours" else to})'
  readers.reject_unused(dataclasses.asdict(request), used, target, '--')


def _check_out(out: pathlib.Path, inputs: Iterable[pathlib.Path]) -> None:
  """Raises ConvertError if the output would replace an input or a foreign folder."""
  outputs = (out.resolve(), *folders.side_folders(out))
  for path in inputs:
    resolved = path.resolve()
    for output in outputs:
      if resolved.is_relative_to(output) or output.is_relative_to(resolved):
        raise ConvertError(
          f'{out}: {path} is read, and one contains the other; give OUT a place of its '
          'own'
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
    kind = readers.kind_of(folder)
  except ConvertError:
    return False
  if kind == 'stage':  # a run has its checkpoints and metrics beside the artifact
    return inside <= {*artifact_paths.NAMES, 'summary.json'}
  weights = ('*.safetensors', '*.bin')
  return kind == 'adapter' or any(any(folder.glob(pattern)) for pattern in weights)


def _check_companions(network: Checkpoint) -> None:
  """Reads the files that are copied with the weights, before those are written."""
  folder = network.folder
  if network_files.has_tokenizer(folder):
    rows = network.cfg.llama.vocab if 'llama' in network.parts else 0
    tokens.load_tokenizer(folder, rows)
  settings = folder / 'generation_config.json'
  if settings.is_file():
    read_json(settings)


# ---------------------------------------------------------------- writing


def _write_network(
  network: Checkpoint,
  out: pathlib.Path,
  to: str,
  request: Request,
  progress: writers.Progress,
) -> None:
  """Writes a base of ours, or a network in a layout of others."""
  _check_companions(network)
  dtype, replace = request.dtype or network.dtype, request.overwrite
  if to != 'ours':
    writers.write_foreign(out, network, to, dtype, progress, replace=replace)
    return
  if not request.dtype and dtype == 'float16':
    dtype = 'bfloat16'
  complete = tuple(part for part in weight_table.PARTS if part != 'text')
  parts = network.parts if request.partial else complete
  missing = [part for part in parts if part not in network.parts]
  if missing:
    hints = {'tower': '--vision', 'projector': '--projector', 'llama': 'a LLaMA'}
    raise ConvertError(
      f'{network.folder}: has no {" and no ".join(missing)}; give '
      f'{" and ".join(hints[part] for part in missing)}, or --partial to leave it out'
    )
  form = weight_forms.form_of(network, dtype, request.bits or network.bits)
  writers.write_base(out, network, form, parts, progress, replace=replace)


def _write_artifact(
  source: pathlib.Path, out: pathlib.Path, request: Request, log: Log
) -> None:
  """Writes the folder of a stage from PEFT files."""
  if not request.base:
    raise ConvertError(
      '--base: give the base (converted before) that the adapter was trained on'
    )
  artifact = import_adapter(
    source,
    pathlib.Path(request.base),
    request.sft,
    request.critic,
    request.critic_sft,
    request.scoring,
  )
  parts, info = artifact.parts, artifact.info
  for part, section in (('lora', 'lora'), ('value', 'critic_lora')):
    if part in parts:
      flat = trees.flatten(parts[part])
      adapter = peft_files.Adapter(flat, adapters.lora_of(artifact, section))
      log(f'{source}: {part}: {adapter.describe()}')
  log(f'{", ".join(sorted(parts))}, as in an artifact of stage {info["stage"]}')
  if 'scoring' in info:
    scoring = ', '.join(f'{name} {value!r}' for name, value in info['scoring'].items())
    log(
      f'recorded as what the reward model reads after an answer: {scoring}; '
      '--reward_prompt and --placeholder choose another'
    )
  with folders.atomic_folder(out, replace=request.overwrite) as part:
    artifacts.save(part / 'artifact', artifact)
    artifacts.write_summary(
      part, {'stage': artifact.info['stage'], 'converted_from': str(source)}
    )
