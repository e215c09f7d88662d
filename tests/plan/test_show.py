"""What a plan prints of programs that were compiled before."""

import types

import pytest

from vlm_rlaif_jax.plan import measure, show, targets
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.phase import Phase
from vlm_rlaif_jax.settings.build import UserError

TEXT = """HloModule jit_rollout

%token (t: (bf16[8,64], bf16[512,64])) -> (bf16[8,64], bf16[512,64]) {
  %t = (bf16[8,64]{1,0}, bf16[512,64]{1,0}) parameter(0)
  %h = bf16[8,64]{1,0} get-tuple-element(%t), index=0
  %head = bf16[512,64]{1,0} get-tuple-element(%t), index=1
  %logits = bf16[8,512]{1,0} dot(%h, %head), lhs_contracting_dims={1}
  ROOT %next = (bf16[8,64]{1,0}, bf16[512,64]{1,0}) tuple(%h, %head)
}

ENTRY %main (x: bf16[8,64], w: bf16[512,64]) -> bf16[8,64] {
  %x = bf16[8,64]{1,0} parameter(0)
  %w = bf16[512,64]{1,0} parameter(1)
  %start = (bf16[8,64]{1,0}, bf16[512,64]{1,0}) tuple(%x, %w)
  %loop = (bf16[8,64]{1,0}, bf16[512,64]{1,0}) while(%start), body=%token, metadata={op_name="jit(rollout)/rollout/decode/while"}
  ROOT %y = bf16[8,64]{1,0} get-tuple-element(%loop), index=0
}
"""  # noqa: E501
STEP = 2 * (8 * 64 + 512 * 64 + 8 * 512)  # bytes


def phase(name: str) -> Phase:
  program = types.SimpleNamespace(name=name.split(' ')[0])
  work = (Work('decode', 1.0, 7 * STEP / 2),)  # half of what the program moves
  return Phase(name, program, (), (), work, loop_iterations=7)  # type: ignore[arg-type]


@pytest.mark.parametrize(('target', 'launch'), [('a100x8', 2.5e-6), ('v5e:4x4', 0)])
def test_texts_are_counted_without_compiling(tmp_path, target, launch):
  (tmp_path / show.file_name('rollout (other)')).write_text(TEXT)
  both = [phase('rollout'), phase('rollout (other)')]
  chips = targets.parse(target)
  name, step, loop, total = show.texts(tmp_path, both, chips)
  assert name == 'rollout (other)'
  assert step.startswith('  a decode step, of 7: 1 kernels, 0.00 GB moved, 2.00 times')
  seconds = max(STEP / chips.bandwidth, launch)
  assert f'{1e3 * seconds:10.3f} ms' in loop
  assert total.startswith('  in all 7 kernels, ')


def test_a_folder_without_texts_is_one_line(tmp_path):
  with pytest.raises(UserError, match=r'has none of rollout\.txt; --hlo writes them'):
    show.texts(tmp_path, [phase('rollout')], targets.parse('a100x8'))


def test_a_plan_of_some_phases_is_not_called_one_of_all():
  """With --phases the sum of those was printed as that of an iteration."""
  one = measure.Measured(name='score', times=1, flops=2e15, roofline_s=3.0)
  part = show.closing([one], 'ppo', ['rollout', 'update'])
  assert part.startswith('a PPO iteration, without rollout, update: 2.0 PFLOP')
  assert part.endswith('; these fit')
  assert show.closing([one], 'ppo').endswith('; every phase fits')
