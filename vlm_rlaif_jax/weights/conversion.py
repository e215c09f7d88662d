"""A checkpoint -> another kind of checkpoint."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable

from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.data import prompts, tokens
from vlm_rlaif_jax.weights import (
  artifacts,
  bases,
  file_writer,
  names,
  peft_files,
  readers,
  tensor_files,
  writers,
)
from vlm_rlaif_jax.weights.checkpoint import (
  OPENED_WITH,
  kind_of,
  lora_config,
  open_any,
  reject_unused,
)
from vlm_rlaif_jax.weights.peft_stages import (
  export_adapter,
  import_adapter,
  resolve_base_name,
)
from vlm_rlaif_jax.weights.readers import Checkpoint
from vlm_rlaif_jax.weights.request import Request
from vlm_rlaif_jax.weights.tensor_files import ConvertError


def convert(
  source: pathlib.Path,
  out: pathlib.Path,
  request: Request,
  progress: writers.Progress = lambda items: items,
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
  artifact = kind == 'adapter' and to == 'ours' and not request.merge
  if request.bits == 4 and (artifact or to != 'ours'):
    raise ConvertError('--bits=4: only a base of ours is written in NF4 (--to=ours)')
  if out.exists() and not request.overwrite:
    raise ConvertError(f'{out}: exists already; give another, or --overwrite')
  _check_flags(request, kind, to, artifact)
  _check_out(out, [source, *_paths(request)])
  if artifact:
    _write_artifact(source, out, request, say)
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
      named = resolve_base_name(opened, layout, request, say)
      with file_writer.whole_folder(out, replace=request.overwrite) as part:
        export_adapter(opened, part, *named, request.dtype, layout)
    else:
      _write_network(opened.merged, out, to, request, progress)
      if not readers.has_tokenizer(out):
        say(f'{source}: has no tokenizer; put tokenizer.model or .json into {out}')
  say(f'-> {out}')


def _check_flags(request: Request, kind: str, to: str, artifact: bool) -> None:
  """Refuses what this conversion would ignore."""
  applies = ['to', 'overwrite']
  if artifact:
    applies += ['base', 'sft', 'critic', 'critic_sft', 'reward_prompt', 'placeholder']
  else:
    applies += ['dtype', *OPENED_WITH[kind]]
  if to == 'ours' and not artifact:
    applies += ['bits', 'partial']
  if to.startswith('peft'):
    applies += ['base_name', 'critic_base_name']
  elif kind in ('stage', 'adapter'):
    applies += ['merge']
  target = {'ours': 'the artifact of a stage' if artifact else 'a base'}.get(to, to)
  what = f'a conversion of this kind ({kind} to {target})'
  reject_unused(dataclasses.asdict(request), applies, what, '--')


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
  places = (out.resolve(), *file_writer.beside(out))
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
  if kind == 'stage':  # a run has its checkpoints and metrics beside the artifact
    return inside <= {'artifact', 'summary.json'}
  weights = ('*.safetensors', '*.bin')
  return kind == 'adapter' or any(any(folder.glob(pattern)) for pattern in weights)


def _write_network(network: Checkpoint, out, to: str, request: Request, progress):
  _check_companions(network.folder)
  dtype = request.dtype or network.dtype
  if to != 'ours':
    writers.write_foreign(out, network, to, dtype, progress, replace=request.overwrite)
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
  form = writers.form_of(network, dtype, request.bits or network.bits)
  writers.write_ours(out, network, form, parts, progress, replace=request.overwrite)


def _check_companions(folder: pathlib.Path) -> None:
  """What travels with the weights is refused, if damaged, before they are written."""
  if readers.has_tokenizer(folder):
    tokens.load_tokenizer(folder)
  settings = folder / 'generation_config.json'
  if settings.is_file():
    tensor_files.read_json(settings)


def _write_artifact(source, out, request: Request, say) -> None:
  if not request.base:
    raise ConvertError(
      '--base: give the base (converted before) that the adapter is on'
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
  for part, lora in (('lora', 'lora'), ('value', 'critic_lora')):
    if part in parts:
      adapter = peft_files.Adapter(trees.flatten(parts[part]), lora_config(info[lora]))
      say(f'{source}: {part}: {adapter.describe()}')
  say(f'{", ".join(sorted(parts))}, as stage {info["stage"]} leaves them')
  if 'scoring' in info:
    scoring = ', '.join(f'{name} {value!r}' for name, value in info['scoring'].items())
    say(
      f'recorded as what the reward model reads after an answer: {scoring}; '
      '--reward_prompt and --placeholder choose another'
    )
  with file_writer.whole_folder(out, replace=request.overwrite) as part:
    artifacts.save(part / 'artifact', artifact)
    artifacts.write_summary(
      part, {'stage': artifact.info['stage'], 'converted_from': str(source)}
    )
