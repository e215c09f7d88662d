"""Kernels and bytes of small programs, counted by hand."""

import re

import pytest

from vlm_rlaif_jax.plan import instructions, kernels, measure, targets
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.phase import Phase

# A loop over tokens around a scan over three layers: a product with a layer's weights,
# a write into the cache in place, and what a library multiplies once a token.
TEXT = """HloModule jit_rollout

%fused_product (p0: bf16[3,64,64], p1: bf16[8,64], p2: s32[]) -> bf16[8,64] {
  %p0 = bf16[3,64,64]{2,1,0} parameter(0)
  %p1 = bf16[8,64]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %w = bf16[1,64,64]{2,1,0} dynamic-slice(%p0, %p2, %p2, %p2), dynamic_slice_sizes={1,64,64}
  %v = bf16[64,64]{1,0} bitcast(%w)
  ROOT %dot = bf16[8,64]{1,0} dot(%p1, %v), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%fused_write (q0: bf16[8,128,64], q1: bf16[8,1,64], q2: s32[]) -> bf16[8,128,64] {
  %q0 = bf16[8,128,64]{2,1,0} parameter(0)
  %q1 = bf16[8,1,64]{2,1,0} parameter(1)
  %q2 = s32[] parameter(2)
  ROOT %put = bf16[8,128,64]{2,1,0} dynamic-update-slice(%q0, %q1, %q2, %q2, %q2)
}

%layer (l: (bf16[8,64], bf16[3,64,64], bf16[8,128,64], s32[])) -> (bf16[8,64]) {
  %l = (bf16[8,64]{1,0}, bf16[3,64,64]{2,1,0}, bf16[8,128,64]{2,1,0}, s32[]) parameter(0)
  %x = bf16[8,64]{1,0} get-tuple-element(%l), index=0
  %stack = bf16[3,64,64]{2,1,0} get-tuple-element(%l), index=1
  %cache = bf16[8,128,64]{2,1,0} get-tuple-element(%l), index=2
  %i = s32[] get-tuple-element(%l), index=3
  %y = bf16[8,64]{1,0} fusion(%stack, %x, %i), kind=kOutput, calls=%fused_product
  %new = bf16[8,1,64]{2,1,0} bitcast(%y)
  %kept = bf16[8,128,64]{2,1,0} fusion(%cache, %new, %i), kind=kLoop, calls=%fused_write
  ROOT %out = (bf16[8,64]{1,0}) tuple(%y)
}

%last_layer (m: (bf16[8,64])) -> pred[] {
  ROOT %less.1 = pred[] compare(%a, %b), direction=LT
}

%token (t: (bf16[8,64], bf16[64,512])) -> (bf16[8,64]) {
  %t = (bf16[8,64]{1,0}, bf16[64,512]{1,0}) parameter(0)
  %h = bf16[8,64]{1,0} get-tuple-element(%t), index=0
  %head = bf16[64,512]{1,0} get-tuple-element(%t), index=1
  %layers = (bf16[8,64]{1,0}) while(%t), condition=%last_layer, body=%layer, backend_config={"known_trip_count":{"n":"3"}}
  %logits = (bf16[8,512]{1,0}, s8[4096]{0}) custom-call(%h, %head), custom_call_target="__cublas$lt$matmul", backend_config={"lhs_contracting_dimensions":["1"]}
  ROOT %again = (bf16[8,64]{1,0}) tuple(%h)
}

%unfinished (n: (bf16[8,64])) -> pred[] {
  ROOT %less.2 = pred[] compare(%c, %d), direction=LT
}

ENTRY %main (p: bf16[8,64]) -> bf16[8,64] {
  %copy.1 = bf16[8,64]{1,0} copy(%p)
  ROOT %loop = (bf16[8,64]{1,0}) while(%copy.1), condition=%unfinished, body=%token, metadata={op_name="jit(rollout)/rollout/decode/while"}
}
"""  # noqa: E501
UNFINISHED = """%fused_{name} (n: s32[]) -> pred[] {{
  %number = s32[] parameter(0)
  %limit = s32[] constant({steps})
  ROOT %less.{name} = pred[] compare(%number, %limit), direction=LT
}}

%{name} (n: (bf16[8,64])) -> pred[] {{
  ROOT %goes_on = pred[] fusion(%n), kind=kLoop, calls=%fused_{name}
}}

"""
LAYER = 2 * (64 * 64 + 2 * 8 * 64) + 4  # a layer's weights, x and y; the index
WRITE = 2 * (2 * 8 * 64) + 4  # what is put, read and written; the index
HEAD = 2 * (8 * 64 + 64 * 512 + 8 * 512)  # without the library's workspace


def test_a_decode_step_is_its_layers_and_its_head():
  (step,) = kernels.Program(TEXT).decode_steps(loop_iterations=7)
  assert step.times == 7
  assert [kernel.kind for kernel in step.kernels].count('kOutput') == 3
  assert len(step.kernels) == 3 * 2 + 1
  assert step.bytes_moved == 3 * (LAYER + WRITE) + HEAD
  assert step.flops == 2 * 8 * (3 * 64 * 64 + 64 * 512)


def test_a_program_without_a_loop_over_tokens_has_no_step():
  text = TEXT.replace('rollout/decode', 'score')
  assert not kernels.Program(text).decode_steps(7)


def test_a_step_is_the_mean_over_loops_by_their_steps():
  """A second loop over tokens, without the loop over layers, of 3 steps to 5."""
  token = re.search(r'%token .*?\n}\n', TEXT, re.DOTALL)
  assert token
  text = TEXT.replace(
    '%unfinished (',
    re.sub(r'\n  %layers = .*', '', token[0]).replace('%token', '%head_only')
    + UNFINISHED.format(name='first', steps=5)
    + UNFINISHED.format(name='second', steps=3)
    + '%unfinished (',
  )
  loop = re.search(r'\n  ROOT %loop = .*', TEXT)
  assert loop
  first = loop[0].replace('ROOT %loop', '%start').replace('%unfinished', '%first')
  second = loop[0].replace('%unfinished', '%second').replace('%token', '%head_only')
  text = text.replace(loop[0], first + second.replace('%copy.1', '%start'))
  with_layers, without = kernels.Program(text).decode_steps(loop_iterations=99)
  assert (with_layers.times, without.times) == (5, 3)
  phase = Phase('rollout', None, (), (), (Work('decode', 1.0, 80.0),))  # type: ignore
  step = measure.decode_step(text, phase, targets.parse('v5e:4x4'))
  assert (step['steps'], step['needed']) == (8, 10)
  assert step['bytes'] == 5 / 8 * 3 * (LAYER + WRITE) + HEAD
  assert step['kernels'] == round(5 / 8 * 6 + 1)


def test_loops_are_counted_as_often_as_they_run():
  found = kernels.Program(TEXT).loops(loop_iterations=7)
  times = {loop.name: (loop.times, len(loop.kernels)) for loop in found}
  assert times == {'layer': (21, 2), 'token': (7, 1), 'main': (1, 1)}
  lines = kernels.lines(found, bandwidth=1e6, rate=1e30)
  moved = sum(loop.times * loop.bytes_moved for loop in found)
  flops = 7 * 2 * 8 * (3 * 64 * 64 + 64 * 512)
  assert lines[-1] == (
    f'in all 50 kernels, {moved / 1e12:.2f} TB, {flops / 1e15:.2f} PFLOP, '
    f'{moved / 1e6:.2f} s'
  )


def test_a_kernel_takes_its_bytes_its_operations_or_its_launch():
  kernel = kernels.Kernel('k', 'kLoop', bytes_moved=6e6, flops=1e6, scope='')
  assert kernel.seconds(bandwidth=1e6, rate=1e6) == 6
  assert kernel.seconds(bandwidth=1e9, rate=1e5) == 10
  assert kernel.seconds(bandwidth=1e30, rate=1e30) == kernels.LAUNCH


@pytest.mark.parametrize('filled', [1.0, 0.25])
@pytest.mark.parametrize('dtype', ['bf16', 's8'])
def test_attention_by_lengths_reads_a_share_of_the_cache(filled, dtype):
  """Of the scales of an 8-bit cache, too, but not of lengths and queries."""
  numbers, scales = 8 * 128 * 64 * (2 if dtype == 'bf16' else 1), 0
  operands = {name: f'{dtype}[8,128,64]' for name in ('keys', 'values')}
  if dtype == 's8':
    operands |= {name: 'f32[8,128]' for name in ('key_scales', 'value_scales')}
    scales = 8 * 128 * 4
  operands |= {'start': 's32[8]', 'stop': 's32[8]'}
  lines = [
    f'%{name} = {shape} get-tuple-element(%t), index={index}'
    for index, (name, shape) in enumerate(operands.items(), start=2)
  ]
  called = ', '.join(f'%{name}' for name in operands)
  text = TEXT.replace(
    '%logits =',
    f'%mixed = bf16[8,64]{{1,0}} custom-call(%h, {called}),'
    ' custom_call_target="__gpu$xla.gpu.triton", '
    'metadata={op_name="jit(rollout)/cache_attend"}\n  %logits =',
  ).replace('%head =', '\n  '.join([*lines, '%head =']))
  (step,) = kernels.Program(text, filled).decode_steps(7)
  (mixed,) = (kernel for kernel in step.kernels if 'triton' in kernel.kind)
  whole = 2 * (2 * 8 * 64) + 2 * (4 * 8)  # queries and what comes of them; lengths
  assert mixed.bytes_moved == 2 * filled * (numbers + scales) + whole


def test_what_stays_on_a_tpu_is_not_moved():
  in_memory = 'bf16[8,128]{1,0:T(8,128)(2,1)}'
  on_chip = 'f32[64]{0:T(128)S(1)}'
  assert instructions.size(f'({in_memory}, {on_chip})') == 2 * 8 * 128
  assert instructions.sizes(f'({in_memory}, {on_chip})') == [2 * 8 * 128, 0]
  assert instructions.shape(on_chip) == [64]


NESTED = """HloModule jit_answer

%layer (p0: bf16[32,64,16], p1: s32[]) -> bf16[64,16] {
  %p0 = bf16[32,64,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %one = bf16[1,64,16]{2,1,0} dynamic-slice(%p0, %p1)
}

%product (q0: bf16[8,16], q1: s32[], q2: bf16[32,64,16]) -> bf16[8,64] {
  %q0 = bf16[8,16]{1,0} parameter(0)
  %q1 = s32[] parameter(1)
  %q2 = bf16[32,64,16]{2,1,0} parameter(2)
  %weights = bf16[64,16]{1,0} fusion(%q2, %q1), kind=kLoop, calls=%layer
  ROOT %out = bf16[8,64]{1,0} convolution(%q0, %weights), dim_labels=bf_oi->bf
}

ENTRY %main (x: bf16[8,16], n: s32[], stack: bf16[32,64,16]) -> bf16[8,64] {
  %x = bf16[8,16]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %stack = bf16[32,64,16]{2,1,0} parameter(2)
  ROOT %y = bf16[8,64]{1,0} fusion(%x, %n, %stack), kind=kOutput, calls=%product
}
"""


def test_a_layer_that_a_tpu_slices_inside_its_product_is_read_alone():
  (kernel,) = kernels.Program(NESTED).kernels('main')
  assert kernel.bytes_moved == 2 * (8 * 16 + 64 * 16 + 8 * 64) + 4
  assert kernel.flops == 2 * 8 * 64 * 16


def test_another_tiling_of_the_same_bytes_is_not_read():
  text = NESTED.replace(
    '  ROOT %one = bf16[1,64,16]{2,1,0} dynamic-slice(%p0, %p1)',
    """  %tiled = bf16[32,64,16]{2,1,0:T(8,128)} fusion(%p0), kind=kLoop, \
output_to_operand_aliasing={{}: (0, {})}, calls=%retile
  ROOT %one = bf16[1,64,16]{2,1,0} dynamic-slice(%tiled, %p1)""",
  )
  tiling = """
%retile (r: bf16[32,64,16]) -> bf16[32,64,16] {
  %r = bf16[32,64,16]{2,1,0} parameter(0)
  ROOT %again = bf16[32,64,16]{2,1,0:T(8,128)} copy(%r)
}
"""
  (kernel,) = kernels.Program(tiling + text).kernels('main')
  assert kernel.bytes_moved == 2 * (8 * 16 + 64 * 16 + 8 * 64) + 4


def test_what_is_sliced_onto_the_chip_is_read_from_memory():
  """As XLA for TPUs moves the weights of a layer before their product."""
  text = NESTED.replace(
    'ROOT %one = bf16[1,64,16]{2,1,0}', 'ROOT %one = bf16[1,64,16]{2,1,0:T(8,128)S(1)}'
  ).replace(
    'ROOT %y = bf16[8,64]{1,0} fusion(%x, %n, %stack), kind=kOutput, calls=%product',
    """%w = bf16[64,16]{1,0:T(8,128)S(1)} fusion(%stack, %n), kind=kLoop, calls=%layer
  %s = ((bf16[8,16]{1,0}), bf16[4,16]{1,0:T(8)S(1)}, s32[]{:S(2)}) slice-start(%x)
  ROOT %c = (bf16[8,16]{1,0:T(8)S(1)}, bf16[8,16]{1,0}, u32[]{:S(2)}) copy-start(%x)""",
  )
  sliced, part, copy = kernels.Program(text).kernels('main')
  assert sliced.bytes_moved == 2 * 64 * 16 + 4
  assert part.bytes_moved == 2 * 4 * 16
  assert copy.bytes_moved == pytest.approx(2 * 8 * 16, abs=4)


@pytest.mark.parametrize(
  ('kernel', 'labels', 'window', 'length'),
  [
    ('64,16', 'bf_oi->bf', '', 16),
    ('64,16,1', '0bf_oi0->0bf', 'window={size=1}, ', 16),
    ('50,64,16', '0bf_0oi->0bf', 'window={size=50 stride=49 lhs_dilate=50}, ', 16),
    ('4,64,16', 'bf0_0oi->b0f', 'window={size=4 pad=3_3 rhs_reversal=1}, ', 16),
    ('64,16,14', 'bf0_oi0->bf0', 'window={size=14 stride=14}, ', 16 * 14),
  ],
)
def test_operations_of_what_a_tpu_computes_as_a_convolution(
  kernel, labels, window, length
):
  text = f"""ENTRY %main (x: bf16[8,16], w: bf16[{kernel}]) -> bf16[8,64] {{
  %x = bf16[8,16]{{1,0}} parameter(0)
  %w = bf16[{kernel}]{{1,0}} parameter(1)
  ROOT %y = bf16[8,64]{{1,0}} convolution(%x, %w), {window}dim_labels={labels}
}}
"""
  (one,) = kernels.Program(text).kernels('main')
  assert one.flops == 2 * 8 * 64 * length
