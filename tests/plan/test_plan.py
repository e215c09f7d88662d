"""What a plan says of shapes agrees with hand counts and with what is really there."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from configs import models
from tests.tiny import CFG, LORA
from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.plan import count, fit, hlo, measure, phases, show, targets
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.phase import weight_bytes
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalInputs, EvalRun
from vlm_rlaif_jax.settings.label import LabelConfig, LabelRun
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoRun
from vlm_rlaif_jax.settings.reward import RewardRun
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig, QuantConfig
from vlm_rlaif_jax.settings.sft import SftRun
from vlm_rlaif_jax.train import shardings
from vlm_rlaif_jax.train.profiling import flops

ROOT = pathlib.Path(__file__).parents[2]


def tiny_ppo(**changes):
  ppo = PpoConfig(
    rollout_batch=16, step_batch=8, micro_batch=8, query_tokens=8, response_tokens=6,
    logit_chunk=0, **changes,
  )  # fmt: skip
  return PpoRun(
    size='tiny', model=CFG, critic=CFG, critic_size='tiny', ppo=ppo,
    data=DataConfig(frames=2, buckets=(16,)),
  )  # fmt: skip


# The floor that was counted by hand for 256 queries of 128 + 896 tokens, 626 visual.
@pytest.mark.parametrize(
  ('name', 'petaflops'),
  [
    ('prefill', 2.60), ('decode', 3.25), ('policy', 5.85), ('value', 11.21),
    ('train policy', 23.65), ('train value', 45.26), ('encode', 4.69),
  ],
)  # fmt: skip
def test_operations_equal_the_hand_count(name, petaflops):
  small, large = models.named('7b'), models.named('13b')
  lora, prompt, answer = LoraConfig(), 753, 896
  length = prompt + answer
  counted = {
    'prefill': flops.forward(small.llama, lora, prompt, 1),
    'decode': flops.decode(small.llama, lora, prompt, answer),
    'policy': flops.forward(small.llama, lora, length, answer),
    'value': flops.forward(large.llama, lora, length),
    'train policy': 2 * flops.training(small.llama, lora, length, answer)[0],
    'train value': 2 * flops.training(large.llama, lora, length)[0],
    'encode': 50 * flops.tower(small.vision),
  }
  assert 256 * counted[name] / 1e15 == pytest.approx(petaflops, rel=0.01)


def test_what_is_executed_is_counted_through_loops():
  def program(x):
    once = lambda x, _: (x @ x, None)
    y, _ = jax.lax.scan(once, x, None, length=5)
    return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, y)

  jaxpr = jax.make_jaxpr(program)(jnp.ones((4, 4))).jaxpr
  one = 2 * 4**3
  assert count.executed(jaxpr, 7, 'cpu') == (5 + 7) * one
  assert count.executed(jaxpr, 7, 'cpu', once=True) == 2 * one


def test_of_branches_one_is_executed():
  by_platform = lambda x: jax.lax.platform_dependent(
    x, cuda=lambda x: x @ x @ x, default=lambda x: x @ x
  )
  by_data = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)
  one, x = 2 * 4**3, jnp.ones((4, 4))
  for platform, times in (('cuda', 2), ('tpu', 1), ('cpu', 1)):
    jaxpr = jax.make_jaxpr(by_platform)(x).jaxpr
    assert count.executed(jaxpr, 1, platform) == times * one
  assert count.executed(jax.make_jaxpr(by_data)(x).jaxpr, 1, 'cpu') == 2 * one


def test_what_each_device_executes_is_counted_for_all():
  mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=1, tensor=4))
  split = jax.sharding.PartitionSpec(None, 'tensor')
  whole = jax.sharding.PartitionSpec()
  run = lambda x, w: jax.shard_map(
    lambda x, w: jax.lax.psum(x @ w.T, 'tensor'),
    in_specs=(split, split), out_specs=whole, axis_names={'tensor'}, check_vma=False,
  )(x, w)  # fmt: skip
  with jax.set_mesh(mesh):
    jaxpr = jax.make_jaxpr(jax.jit(run))(jnp.ones((8, 16)), jnp.ones((32, 16))).jaxpr
  assert count.executed(jaxpr, 1, 'cpu') == 2 * 8 * 16 * 32


def test_unread_arguments_are_found():
  jaxpr = jax.make_jaxpr(lambda a, b, c: (a + 1, c))(1.0, 2.0, 3.0).jaxpr
  assert count.used(jaxpr) == [True, False, True]


HLO = """HloModule jit_f

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  %all-reduce.1 = (f32[8,4]{1,0}, bf16[2]{0}) all-reduce(%x, %y), to_apply=%add
}

%cond (arg.1: (s32[], f32[8,4])) -> pred[] {
  BOUND
  ROOT %less = pred[] compare(%a, %b), direction=LT
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %loop = (s32[], f32[8,4]) while(%t), condition=%cond, body=%body, KNOWN
  %start = (f32[4]{0}, f32[32]{0}) all-gather-start(%q), dimensions={0}
  ROOT %done = f32[32]{0} all-gather-done(%start)
}
"""


@pytest.mark.parametrize(
  ('known', 'bound', 'times'),
  [
    ('backend_config={"known_trip_count":{"n":"3"}}', '', 3),  # CPU and GPU
    ('', '%b = s32[]{:T(128)} constant(5)', 5),  # TPU
    ('', '%b = s32[] get-tuple-element(%arg.1), index=0', 11),
  ],
)
def test_collectives_are_counted_as_often_as_they_run(known, bound, times):
  text = HLO.replace('KNOWN', known).replace('BOUND', bound)
  found = hlo.collectives(text, loop_iterations=11)
  assert found['all-reduce'] == {'count': times, 'bytes': times * (8 * 4 * 4 + 2 * 2)}
  assert found['all-gather'] == {'count': 1, 'bytes': 32 * 4}


def test_a_collective_cut_over_fusions_is_counted_once():
  part = (
    '  %g.NUMBER = bf16[2,16]{1,0} all-gather(%p), channel_id=7, dimensions={0}, '
    'frontend_attributes={chain_id="0"}\n'
  )
  gather = ''.join(
    f'%part.{n} (p: bf16[16]) -> bf16[2,16] {{\n{part.replace("NUMBER", str(n))}}}\n\n'
    for n in range(3)
  )
  called = '\n'.join(
    f'  %f.{n} = bf16[2,16]{{1,0}} fusion(%q), kind=kCustom, calls=%part.{n}'
    for n in range(3)
  )
  text = f'{gather}ENTRY %main (q: bf16[16]) -> bf16[2,16] {{\n{called}\n}}\n'
  assert hlo.collectives(text, 1) == {'all-gather': {'count': 1, 'bytes': 64}}
  apart = text.replace(', frontend_attributes={chain_id="0"}', '')  # of a shard_map
  assert hlo.collectives(apart, 1)['all-gather']['count'] == 3


@pytest.mark.parametrize(
  'groups',
  ['replica_groups={{0,1,2,3},{4,5,6,7}}', 'replica_groups=[2,4]<=[8]',
   'replica_groups={}'],
)  # fmt: skip
def test_all_that_is_summed_and_scattered_travels(groups):
  """Of 64 x 32 numbers over 4 devices each keeps 16 x 32, and has sent the others."""
  partitions = 4 if groups.endswith('{}') else 8
  text = (
    f'HloModule m, num_partitions={partitions}\n\n'
    'ENTRY %main (p: f32[64,32]) -> f32[16,32] {\n'
    '  %p = f32[64,32]{1,0} parameter(0)\n'
    f'  ROOT %r = f32[16,32]{{1,0}} reduce-scatter(%p), channel_id=1, {groups}, '
    'dimensions={0}, to_apply=%add\n}\n'
  )
  counts = hlo.collectives(text, 1)
  assert counts == {'reduce-scatter': {'count': 1, 'bytes': 64 * 32 * 4}}


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('b300x8', '--target b300x8: choose one like a100x8, a100-40x8'),
    ('v5e:4x5', 'no such slice of v5e; the nearest is v5e:4x4'),
    ('a100x12', 'hosts have 8 GPUs; the nearest is a100x16'),
    ('v5ex8', 'choose one like'),
    ('a100x0', 'no devices; choose one like a100x8'),
  ],
)
def test_unknown_targets(name, message):
  with pytest.raises(targets.TargetError, match=message) as error:
    targets.parse(name)
  assert '\n' not in str(error.value)


def test_cards_of_40_gb_are_a_chip_of_their_own():
  small, large = targets.parse('a100-40x8'), targets.parse('a100x8')
  assert small.count == 8 and small.memory < large.memory / 1.9
  for name in ('a100', 'a100-40', 'h100', 'h200'):
    kind = targets.chips.table()[name]['chip']
    assert targets.chips.name_of(kind) == name


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('NVIDIA H100 80GB HBM3', 'h100'),
    ('NVIDIA H100 PCIe', ''),  # three quarters of its rate
    ('NVIDIA H100 NVL', ''),
    ('NVIDIA H200', 'h200'),
    ('NVIDIA H200 NVL', ''),
    ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', ''),
    ('NVIDIA A100 80GB PCIe', 'a100'),
    ('TPU v5 lite', 'v5e'),
  ],
)
def test_cards_of_other_rates_are_not_taken_for_those_of_their_name(kind, name):
  assert targets.chips.name_of(kind) == name
  device = types.SimpleNamespace(device_kind=kind, platform='gpu')
  target = targets.here([device])
  assert bool(target.flops) == bool(name)
  if not name:
    assert target.platform == 'cuda'


def test_a_missing_compiler_names_the_extra(monkeypatch):
  monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(targets.TargetError, match=r"pip install 'vlm-rlaif-jax\[tpu\]'"):
    targets.devices(targets.parse('v5e:4x4'))


def test_weights_are_read_once_and_rows_of_the_embeddings_not_counted():
  mesh = sharding.make_mesh(MeshConfig())
  llama = shardings.abstract_base(CFG, mesh, 'llama')
  table = CFG.llama.vocab * CFG.llama.width * 4
  assert weight_bytes(llama, mesh) == trees.nbytes(llama) - table


def test_the_floor_is_the_slower_of_arithmetic_and_memory():
  chip = targets.parse('a100x8')
  assert Work('x', 8 * 312e12, 2.039e12).seconds(chip) == pytest.approx(1.0)
  assert Work('x', 8 * 312e12, 4 * 2.039e12).seconds(chip) == pytest.approx(4.0)


@pytest.mark.slow
def test_every_ppo_phase_compiles_and_argument_bytes_are_the_hand_count():
  target = targets.parse('cpux8')
  mesh = sharding.make_mesh(MeshConfig(), targets.devices(target))
  run = tiny_ppo()
  wanted = [
    phase
    for phase in phases.of(run, mesh, (LORA, LORA))
    if phase.name in ('rollout', 'update')
  ]
  measured = [measure.measure(phase, target) for phase in wanted]
  rollout, update = measured
  for m in measured:
    assert m.arguments == pytest.approx(m.counted_arguments, rel=0.02)
    assert m.total >= m.arguments + m.temporary
  # The critic lies beside the rollout, only the reward adapter beside the update.
  assert rollout.other_resident > update.other_resident > 0
  # Gradients, and a few numbers for the metrics, are all that the update sends, once a
  # micro-batch; the rollout gathers no weight.
  assert set(update.collectives) == {'all-reduce'}
  rounds = run.ppo.epochs * run.ppo.rollout_batch // run.ppo.micro_batch
  gradient = trees.nbytes(wanted[1].arguments[0].trainable)
  beyond = update.collectives['all-reduce']['bytes'] / rounds - gradient
  assert 0 <= beyond <= 16 * 4
  assert 'all-gather' not in rollout.collectives
  assert 'every phase fits' in show.closing(measured, 'ppo')
  json.dumps(show.data(target, mesh, 'ppo', measured))


@pytest.mark.slow
@pytest.mark.skipif(
  not pathlib.Path('/proc/self/clear_refs').exists(), reason='Linux counts for us'
)
def test_a_step_of_the_tiny_size_takes_what_its_plan_says():
  """In a process of its own, on one core, whose memory nobody has used before."""
  program = pathlib.Path(__file__).with_name('step_program.py')
  # One device, since XLA for CPUs has a thread at least for each.
  env = {**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ''}
  env['JAX_ENABLE_COMPILATION_CACHE'] = 'false'  # writing to it takes memory, too
  done = subprocess.run(
    [sys.executable, str(program)], cwd=ROOT, capture_output=True, text=True,
    env=env, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr[-2000:]
  planned, found = json.loads(done.stdout)
  assert planned['arguments'] == pytest.approx(found['arguments'], rel=1e-4)
  assert planned['temporary'] == pytest.approx(found['temporary'], rel=0.03)


@pytest.mark.parametrize('kind', [SftRun, RewardRun])
def test_supervised_stages_have_a_plan(kind):
  run = kind(
    size='tiny', model=CFG, lora=LORA, data=DataConfig(frames=2, buckets=(16,)),
  )  # fmt: skip
  mesh = sharding.make_mesh(MeshConfig())
  phase = phases.of(run, mesh, (LORA, LORA))[-1]
  traced = phase.program.trace(*phase.arguments)
  assert count.executed(traced.jaxpr.jaxpr, 1, 'cpu') > 0
  assert phase.work[0].flops > 0


@pytest.mark.slow
def test_stages_that_ask_have_a_plan():
  target = targets.parse('cpux8')
  mesh = sharding.make_mesh(MeshConfig(), targets.devices(target))
  shared = {
    'size': 'tiny',
    'model': CFG,
    'data': DataConfig(frames=5, buckets=(16, 32)),
  }
  asks = LabelConfig(batch=8, clip_frames=2, response_tokens=6, caption_tokens=4)
  tells = EvalConfig(batch=8, answer_tokens=4, describe_tokens=6)
  labels = phases.of(LabelRun(**shared, label=asks), mesh, (LORA, LORA))
  told = EvalRun(**shared, eval=tells, inputs=EvalInputs(ppo='runs/ppo'))
  evals = phases.of(told, mesh, (LORA, LORA))
  alone = dataclasses.replace(told, eval=dataclasses.replace(tells, models=('sft',)))
  adapter = trees.nbytes(shardings.abstract_adapter(CFG, LORA, mesh))
  beside = fit.resident(told, mesh, (LORA, LORA)) - fit.resident(
    alone, mesh, (LORA, LORA)
  )
  assert beside == pytest.approx(adapter)
  generated = {
    p.name: p for p in (*labels, *evals) if p.loop_iterations > 1 or p.name == 'judge'
  }
  assert {name: (p.loop_iterations, p.times) for name, p in generated.items()} == {
    'answer': (6, 1), 'caption': (4, 3), 'judge': (1, 2),
    'qa': (4, 1), 'describe': (6, 1),
  }  # fmt: skip
  held = QuantConfig(residency='nf4')
  packed = phases.of(LabelRun(**shared, label=asks, quant=held), mesh, (LORA, LORA))
  judge = next(phase for phase in packed if phase.name == 'judge')
  for phase in (*generated.values(), judge):
    traced = phase.program.trace(*phase.arguments).jaxpr.jaxpr
    needed = sum(work.flops for work in phase.work)
    # The whole square of attention is executed, which is much in so small a network.
    assert 1 <= count.executed(traced, phase.loop_iterations, 'cpu') / needed < 1.4
  found = measure.measure(generated['judge'], target)
  assert found.arguments == pytest.approx(found.counted_arguments, rel=0.02)
  assert show.closing([found], 'label').startswith('a batch of questions')


@pytest.mark.slow
@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--target=b300x8', '--target b300x8: choose one like a100x8'),
    ('--hlo=README.md', '--hlo=README.md: no folder to write (File exists)'),
    ('--texts=. --json=x.json', '--texts compiles nothing: leave out --json'),
  ],
)
def test_one_line_errors_of_the_command(flag, message):
  command = [sys.executable, '-m', 'launch.plan', '--config', 'configs/ppo.py:7b']
  done = subprocess.run(
    [*command, *flag.split()],
    cwd=ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr.startswith(f'error: {message}')
  assert not (ROOT / 'x.json').exists()


def test_a_plan_counts_the_batches_that_wait():
  """Two steps may be on the devices; behind them one batch is ready, one is made."""
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  data = DataConfig(frames=2, buckets=(16,))
  sft = SftRun(size='tiny', model=CFG, lora=LORA, data=data)
  (phase,) = [p for p in phases.of(sft, mesh, ()) if p.name == 'sft']
  batch = sharding.bytes_per_device(phase.arguments[2])
  unique = {id(leaf): leaf for leaf in jax.tree.leaves(phase.resident)}
  resident = sharding.bytes_per_device(list(unique.values()))
  without = sharding.bytes_per_device(phase.arguments)
  assert resident - without == 3 * batch > 0
