"""Measures speed: ours, a peer's, and what the arithmetic costs, in one run.

  python -m launch.bench tiny                    # against transformers + peft, on CPU
  python -m launch.bench tiny --json=tiny.json
  python -m launch.bench quant                   # the base in 16 and in 4 bits
  python -m launch.bench decode                  # one card's decoding, by parts
  python -m launch.bench phases --config configs/ppo.py:7b    # against their plan
  python -m launch.bench gpu --json=gpu.json     # against PyTorch, on one GPU
  python -m launch.bench data                    # what exact frames cost

One file a suite: `launch.bench.tiny`, `launch.bench.quant`, `launch.bench.decode`,
`launch.bench.phases`, `launch.bench.gpu`, `launch.bench.data`; the peers are in
`launch.bench.peers`.
"""

import json

from absl import flags

from launch import process
from launch.bench import data, decode, gpu, phases, quant, tiny
from vlm_rlaif_jax.settings.build import UserError

_JSON = flags.DEFINE_string('json', '', 'Also write the figures to this file.')
_ROUNDS = flags.DEFINE_integer(
  'rounds', 6, 'Measure everything this many times; the fastest counts; default: 6.', 1
)
_SIZE = flags.DEFINE_enum(
  'size', '7b', ('tiny', '7b'), 'gpu: size of the decoder; default: 7b.'
)
_MINUTES = flags.DEFINE_float(
  'minutes', 30, 'gpu: minutes that all items together may take; default: 30.', 0.1
)


def _gpu(rounds: int) -> dict:
  """Runs the suite `gpu`, whose items count their own rounds."""
  del rounds
  only = flags.FLAGS.only
  if unknown := set(only) - set(gpu.ITEMS):
    names = ', '.join(gpu.ITEMS)
    raise UserError(f'--only: {unknown.pop()!r} is none of {names}')
  return gpu.gpu(_SIZE.value, only, _MINUTES.value, _JSON.value)


SUITES = {
  'tiny': tiny.tiny,
  'quant': quant.quant,
  'decode': decode.decode,
  'phases': phases.phases,
  'gpu': _gpu,
  'data': data.data,
}


@process.one_line_errors
def main(argv: list[str]) -> None:
  if len(argv) != 2 or argv[1] not in SUITES:
    raise UserError(f'name one suite: python -m launch.bench {" | ".join(SUITES)}')
  process.writable(_JSON.value, '--json')
  figures = SUITES[argv[1]](_ROUNDS.value)
  if _JSON.value:
    with open(_JSON.value, 'w') as file:
      json.dump(figures, file, indent=2)


if __name__ == '__main__':
  process.prepare()
  process.run(main)
