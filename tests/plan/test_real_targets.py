"""PPO at its real size compiles for the machines it is for, which are not here.

Needs the compilers: the CUDA plugin (extra [gpu]) or libtpu (extra [tpu]). What the
compiled programs are is checked as far as their text says it; nothing is timed.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import pytest

from tests.compilers import GPU, TPU
from vlm_rlaif_jax.plan import instructions, kernels

ROOT = pathlib.Path(__file__).parents[2]
LAYERS, ROWS, SLOTS, HEADS, WIDTH = 32, 32, 1664, 32, 128  # of a card, at 7B
TOKENS, FILLED = 896, (753 + 896 / 2) / SLOTS
SMALLEST_WEIGHT = 2 * 4096 * 4096  # bytes

pytestmark = pytest.mark.pipeline
A100 = pytest.param('a100x8', 'a100x8', marks=GPU)
V5E = pytest.param('v5e:4x4', 'v5e-16', marks=TPU)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What `launch.plan` printed, and kept."""

  printed: str
  phases: dict[str, dict]
  texts: dict[str, str]


@functools.cache
def planned(target: str, layout: str) -> Plan:
  """Compiles all phases once for all tests."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    config = f'configs/ppo.py:7b,layout={layout}'
    done = subprocess.run(
      [sys.executable, '-m', 'launch.plan', '--config', config, '--target', target,
       '--kernels', '--json', str(folder / 'plan.json'), '--hlo', str(folder / 'hlo')],
      cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'XLA_FLAGS': ''},
      check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    phases = json.loads((folder / 'plan.json').read_text())['phases']
    texts = {path.stem: path.read_text() for path in (folder / 'hlo').glob('*.txt')}
  return Plan(done.stdout, {phase['name']: phase for phase in phases}, texts)


@functools.cache
def decode_step() -> kernels.Loop:
  """Returns one token of every row on an A100."""
  text = planned(*A100.values).texts['rollout']
  (step,) = kernels.Program(text, FILLED).decode_steps(TOKENS)
  return step


@pytest.mark.parametrize(('target', 'layout'), [A100, V5E])
def test_every_phase_of_ppo_compiles_and_fits(target, layout):
  plan = planned(target, layout)
  assert 'every phase fits' in plan.printed
  names = {name.split(' ')[0] for name in plan.phases}
  assert names == {'encode', 'project', 'rollout', 'score', 'estimate', 'update'}


@GPU
@pytest.mark.parametrize('phase', ['rollout', 'score', 'update'])
def test_attention_is_cudnns_and_stores_no_scores(phase):
  text = planned(*A100.values).texts[phase]
  assert '__cudnn$fmha' in text
  lengths = {*range(753, 769), *range(1649, 1793)}  # of prompts, and of whole rows
  shapes = {tuple(shape) for _, shape, _ in instructions.arrays(text)}
  squares = [shape for shape in shapes if sum(n in lengths for n in shape) > 1]
  assert not squares


@GPU
def test_a_decode_step_is_twelve_kernels_a_layer_at_most():
  outside = 30  # embedding, last norm, head, and what draws a token
  assert len(decode_step().kernels) <= 12 * LAYERS + outside


@GPU
def test_a_decode_step_copies_no_weight():
  """What moves as much as a weight is a product, or attention over the cache."""
  large = [k for k in decode_step().kernels if k.bytes_moved >= SMALLEST_WEIGHT]
  assert len(large) == 5 * LAYERS + 1  # four products and attention; the head
  assert {kernel.kind for kernel in large} == {
    '__cublas$lt$matmul', '__gpu$xla.gpu.triton'
  }  # fmt: skip


@GPU
def test_a_decode_step_moves_weights_and_the_filled_cache():
  decode = planned(*A100.values).phases['rollout']['decode']
  assert decode['steps'] == TOKENS
  assert 0.99 < decode['bytes'] / decode['needed'] < 1.03


@GPU
def test_an_update_computes_nothing_twice_and_fits_beside_the_rollout():
  """Where the card has room for the activations that a backward pass reads."""
  plan, cards = planned(*A100.values), 8
  update = plan.phases['update']
  loops = kernels.Program(plan.texts['update']).loops(TOKENS)
  needed = update['flops'] / cards
  assert 0.95 < sum(loop.times * loop.flops for loop in loops) / needed < 1.02
  assert update['total'] < plan.phases['rollout']['total']


@TPU
def test_a_decode_step_of_a_tpu_reads_the_cache_up_to_the_end_of_its_loop():
  plan, rounds = planned(*V5E.values), 4
  loops = kernels.Program(plan.texts['rollout']).decode_steps(TOKENS)
  assert [loop.times for loop in loops] == [rounds * n for n in (271, 256, 256, 113)]
  heads = HEADS // 8  # of a chip
  for loop, slots in zip(loops, (1024, 1280, 1536, 1649), strict=True):
    part = 2 * ROWS * heads * slots * WIDTH  # bytes of keys or values of a layer
    large = [kernel for kernel in loop.kernels if kernel.bytes_moved > part / 2]
    reads = [kernel for kernel in large if 'dot_general' in kernel.scope]
    assert len(reads) >= 2 * LAYERS
    assert all(1 <= kernel.bytes_moved / part < 1.02 for kernel in reads)
  decode = plan.phases['rollout']['decode']
  assert decode['bytes'] / decode['needed'] < 1.15


@GPU
def test_the_cache_is_row_major():
  text = planned(*A100.values).texts['rollout']
  layouts = {
    layout
    for _, shape, layout in instructions.arrays(text)
    if shape == [ROWS, SLOTS, HEADS, WIDTH] and layout  # signatures have none
  }
  assert layouts == {'{3,2,1,0}'}


@GPU
def test_a_decode_step_is_one_graph():
  _, printed = planned(*A100.values).printed.split('\nrollout ', 1)
  found = re.search(r'starts (\d+) CUDA graphs of (\d+) kernels, and (\d+)', printed)
  assert found
  graphs, captured, alone = (int(number) for number in found.groups())
  assert (graphs, alone) == (1, 0)
  assert captured >= len(decode_step().kernels)
