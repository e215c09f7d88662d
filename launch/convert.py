"""Converts checkpoints: Hugging Face, LLaVA and PEFT files <-> ours.

  python -m launch.convert CHECKPOINT OUT

CHECKPOINT and OUT are folders. The kind of CHECKPOINT is read off its files and printed
before anything is written. Ours are of two kinds: a base is a whole network, which the
stages start from; the folder of a stage (runs/7b/ppo) has what that stage trained on a
base: an adapter, perhaps a head.

In: a network (safetensors or .bin, in one file or shards) becomes a base.
  python -m launch.convert vlm_sft_video_llava_7b checkpoints/llava-7b
  python -m launch.convert vlm_sft_video_llava_7b checkpoints/llava-7b-nf4 --bits=4
  python -m launch.convert llava-without-tower checkpoints/llava-7b \\
      --vision=clip-vit-large-patch14-336
  python -m launch.convert vicuna-7b-v1.5 checkpoints/vicuna-7b \\
      --vision=clip-vit-large-patch14-336 --projector=mm_projector.bin

In: a PEFT adapter becomes the folder of a stage, on a base converted before. With
--merge and --to=ours it becomes a base of its own.
  python -m launch.convert vlm_rm_13b_lora/checkpoint-2406 runs/13b/reward \\
      --base=checkpoints/llava-13b
  (a base that came tuned is named to the stages with --config.inputs.sft=merged)
A reward model reads a prompt after the answer, which its files do not have:
--reward_prompt and --placeholder record which, and PPO needs the same
(--config.scoring).

Out: a stage becomes PEFT files, or is merged into a network that others load.
  python -m launch.convert runs/7b/ppo out/llava --to=llava
  python -m launch.convert runs/7b/ppo out/hf --to=hf
  python -m launch.convert checkpoints/llava-7b out/hf --to=hf

PEFT files name the network under them. Stages after SFT are trained on the base with
SFT merged into it, so that network is written first, in the layout that the adapter is
for: --to=llava for --to=peft, --to=hf for --to=peft-hf. The value adapter of PPO has a
network of its own where the critic has (--critic_base_name).
  python -m launch.convert runs/7b/sft out/sft --to=hf
  python -m launch.convert runs/7b/ppo out/peft --to=peft-hf --base_name=out/sft

Names, shapes and dtypes are checked before anything is written: tensors that are
missing, unexpected or misshapen are listed. So are the fields of configs: one that is
not known here, and is not off, is refused by its name (docs/checkpoints.md). Values
are read once, as they are written; one that is not finite stops the conversion. OUT
appears complete or not at all; --overwrite replaces an earlier output only. A flag that
would be ignored is refused.
Memory stays near the largest single tensor, whatever the size of the model. No code in
a file is run.

In 4 bits: a base with --bits=4 has its decoder's linears in NF4, as
--config.quant.residency=nf4 makes them: 4.5 GB instead of 14.1 at 7B. Files that
bitsandbytes quantized keep their codes. It is another base than the 16-bit one: what a
stage trained on either is refused on the other.
"""

import contextlib
import pathlib
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from absl import flags

from launch import process
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.weights import conversion

_TO = flags.DEFINE_enum(
  'to',
  None,
  ['ours', 'peft', 'peft-hf', 'llava', 'hf'],
  'Kind of OUT. ours: a base, or the artifact of a stage (default for foreign files); '
  "peft: an adapter on LLaMA or LLaVA's original classes (default for a stage); "
  'peft-hf: on LlavaForConditionalGeneration; llava: merged, in the original layout of '
  'LLaVA; hf: merged, for LlavaForConditionalGeneration.',
)
_DTYPE = flags.DEFINE_enum(
  'dtype',
  None,
  ['float32', 'bfloat16', 'float16'],
  'Dtype of the weights written; default: as they are, but in ours bfloat16 for '
  'float16.',
)
_BITS = flags.DEFINE_enum(
  'bits',
  None,
  ['4', '16'],
  "With --to=ours: bits of the decoder's linears; 4 is NF4, double quantized, made of "
  "the checkpoint's own numbers; default: as they are.",
)
_MERGE = flags.DEFINE_bool(
  'merge', False, 'With --to=ours: merge an adapter or a stage into a new base.'
)
_BASE = flags.DEFINE_string('base', '', 'Network under an adapter or a stage.')
_SFT = flags.DEFINE_string(
  'sft',
  '',
  'SFT stage that tuned the base; default: as recorded, or stage sft in the same '
  'workdir.',
)
_CRITIC = flags.DEFINE_string(
  'critic', '', 'Base of the value adapter of a PPO checkpoint.'
)
_CRITIC_SFT = flags.DEFINE_string('critic_sft', '', 'SFT stage that tuned critic.')
_VISION = flags.DEFINE_string(
  'vision',
  '',
  'CLIP folder that gives missing towers; default: mm_vision_tower of config.json, '
  'where it is a folder.',
)
_PROJECTOR = flags.DEFINE_string(
  'projector', '', 'File of a projector: mm_projector.bin or non_lora_trainables.bin.'
)
_BASE_NAME = flags.DEFINE_string(
  'base_name',
  '',
  'With --to=peft, peft-hf: network that the adapter names as its base; required where '
  'an SFT stage was merged into ours.',
)
_CRITIC_BASE_NAME = flags.DEFINE_string(
  'critic_base_name', '', 'The same for the value adapter of a PPO stage.'
)
_REWARD_PROMPT = flags.DEFINE_string(
  'reward_prompt',
  '',
  'Prompt that a reward model reads after an answer: a file, or a name as in '
  "--config.scoring.prompt; default: the reference's.",
)
_PLACEHOLDER = flags.DEFINE_enum(
  'placeholder',
  None,
  ['empty', 'literal', 'captions'],
  'Replacement of {factual_prompt} in it, as in --config.scoring.placeholder.',
)
_PARTIAL = flags.DEFINE_bool(
  'partial', False, 'Write the parts that exist: a tower alone, a decoder alone.'
)
_OVERWRITE = flags.DEFINE_bool(
  'overwrite', False, 'Replace OUT if it is an earlier output.'
)
_PROGRESS = flags.DEFINE_bool('progress', True, 'Show a progress bar on a terminal.')


@process.one_line_errors
def main(argv: list[str]) -> None:
  if len(argv) != 3:
    raise ConfigError(
      'give two paths: python -m launch.convert CHECKPOINT OUT; see --help'
    )
  for number in (signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup asks for
      signal.signal(number, signal.default_int_handler)
  try:
    convert(pathlib.Path(argv[1]), pathlib.Path(argv[2]))
  except KeyboardInterrupt:
    process.fail(f'stopped; {argv[2]} was not written')


def convert(source: pathlib.Path, out: pathlib.Path) -> None:
  """Converts a checkpoint as the flags ask."""
  conversion.convert(
    source,
    out,
    conversion.Request(
      to=_TO.value or '',
      dtype=_DTYPE.value or '',
      bits=int(_BITS.value or 0),
      merge=_MERGE.value,
      partial=_PARTIAL.value,
      base=_BASE.value,
      sft=_SFT.value,
      critic=_CRITIC.value,
      critic_sft=_CRITIC_SFT.value,
      vision=_VISION.value,
      projector=_PROJECTOR.value,
      base_name=_BASE_NAME.value,
      critic_base_name=_CRITIC_BASE_NAME.value,
      reward_prompt=_REWARD_PROMPT.value,
      placeholder=_PLACEHOLDER.value or '',
      overwrite=_OVERWRITE.value,
    ),
    _bar,
    lambda text: print(text, flush=True),
  )


def _bar(items: Iterable[Any]) -> Iterator[Any]:
  import tqdm

  hidden = not (_PROGRESS.value and sys.stderr.isatty())
  with contextlib.closing(
    tqdm.tqdm(items, desc='tensors', unit='tensor', disable=hidden)
  ) as bar:
    yield from bar


if __name__ == '__main__':
  process.run(main)
