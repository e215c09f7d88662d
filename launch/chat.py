"""Questions about a video, answered in the terminal.

  python -m launch.chat runs/tiny/ppo clip.mp4
  python -m launch.chat checkpoints/vlm_rlaif_video_llava_7b clip.mp4 --dtype=float16
  python -m launch.chat checkpoints/llava-7b clip.mp4 --bits=4
  python -m launch.chat my-adapter clip.mp4 --base=checkpoints/llava-7b
  echo 'What happens?' | python -m launch.chat runs/tiny/ppo clip.mp4

CHECKPOINT is any that `python -m launch.convert` knows; it is read as it is. Each line
is a question of its own; an empty line, or the end of the input, is goodbye.
"""

import pathlib
import sys

from absl import flags

from launch import process
from vlm_rlaif_jax.settings.build import ConfigError

_DTYPE = flags.DEFINE_enum(
  'dtype', 'bfloat16', ['float32', 'bfloat16', 'float16'], 'of weights and activations'
)
_BITS = flags.DEFINE_enum('bits', '16', ['4', '16'], "4: the decoder's linears in NF4")
_BASE = flags.DEFINE_string('base', '', 'the network under an adapter or a stage')
_SFT = flags.DEFINE_string('sft', '', 'the SFT stage under a later one')
_VISION = flags.DEFINE_string('vision', '', 'a CLIP folder, if the tower is not inside')
_FRAMES = flags.DEFINE_integer('frames', 0, 'sampled from the video; 0: as trained', 0)
_TOKENS = flags.DEFINE_integer('max_tokens', 256, 'the longest answer', 1)
_TEMPERATURE = flags.DEFINE_float('temperature', 0.0, '0: always the likeliest word')


@process.one_line_errors
def main(argv) -> None:
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
  model.look(argv[2])
  asked = sys.stdin.isatty()
  if asked:
    print(f'{pathlib.Path(argv[2]).name}: {model.frames} frames. Ask; empty: goodbye.')
  for seed, question in enumerate(_questions(asked)):
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


def _questions(asked: bool):
  while True:
    try:
      question = input('> ' if asked else '').strip()
    except EOFError:
      return
    if not question:
      return
    yield question


if __name__ == '__main__':
  process.prepare()
  process.run(main)
