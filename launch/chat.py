"""Questions about a video, answered in the terminal.

  python -m launch.chat runs/tiny/ppo clip.mp4
  python -m launch.chat checkpoints/vlm_rlaif_video_llava_7b clip.mp4 --dtype=float16
  python -m launch.chat checkpoints/llava-7b clip.mp4 --bits=4
  python -m launch.chat my-adapter clip.mp4 --base=checkpoints/llava-7b
  echo 'What happens?' | python -m launch.chat runs/tiny/ppo clip.mp4

CHECKPOINT is any that `python -m launch.convert` reads; it needs no conversion. Each
line is a question of its own; an empty line or the end of the input quits.
"""

import pathlib
import sys
from collections.abc import Iterator

from absl import flags

from launch import process
from vlm_rlaif_jax.settings.build import ConfigError

_DTYPE = flags.DEFINE_enum(
  'dtype',
  'bfloat16',
  ['float32', 'bfloat16', 'float16'],
  'Data type of weights and activations.',
)
_BITS = flags.DEFINE_enum(
  'bits', '16', ['4', '16'], "Bits per weight of the decoder's linears; 4 is NF4."
)
_BASE = flags.DEFINE_string(
  'base', '', 'Path of the network under an adapter or a stage, if it is not found.'
)
_SFT = flags.DEFINE_string('sft', '', 'Path of the SFT stage under a later one.')
_VISION = flags.DEFINE_string(
  'vision', '', 'Path of a CLIP folder, for a checkpoint without its tower.'
)
_FRAMES = flags.DEFINE_integer(
  'frames', 0, 'Number of frames sampled from the video; 0 is as in training.', 0
)
_TOKENS = flags.DEFINE_integer(
  'max_tokens', 256, 'Length of the longest answer, in tokens.', 1
)
_TEMPERATURE = flags.DEFINE_float(
  'temperature', 0.0, 'Sampling temperature; 0 is greedy.', 0.0
)


@process.one_line_errors
def main(argv: list[str]) -> None:
  if len(argv) != 3:
    raise ConfigError('give two paths: python -m launch.chat CHECKPOINT VIDEO')
  process.start()
  import vlm_rlaif_jax

  model = vlm_rlaif_jax.load(
    argv[1],
    bits=int(_BITS.value),
    dtype=_DTYPE.value,
    base=_BASE.value,
    sft=_SFT.value,
    vision=_VISION.value,
    frames=_FRAMES.value,
  )
  if model.head is not None:
    print(
      f'{argv[1]}: a reward model, trained to score answers (VideoModel.score); its '
      'own answers mean little',
      file=sys.stderr,
    )
  model.encode(argv[2])
  interactive = sys.stdin.isatty()
  if interactive:
    print(
      f'{pathlib.Path(argv[2]).name}: {model.frames} frames. Type a question; an empty '
      'line quits.'
    )
  for seed, question in enumerate(_questions(interactive)):
    pieces = model.stream(
      argv[2],
      question,
      max_tokens=_TOKENS.value,
      temperature=_TEMPERATURE.value,
      seed=seed,
    )
    for piece in pieces:
      print(piece, end='', flush=True)
    print(flush=True)


def _questions(interactive: bool) -> Iterator[str]:
  """Yields lines of the standard input, up to an empty one."""
  while True:
    try:
      question = input('> ' if interactive else '').strip()
    except EOFError:
      return
    except UnicodeDecodeError as error:
      byte = error.object[error.start]
      raise ConfigError(
        f'the input: byte 0x{byte:02x} is no {error.encoding}, in which questions are '
        'read; write them in it'
      ) from None
    if not question:
      return
    yield question


if __name__ == '__main__':
  process.prepare()
  process.run(main)
