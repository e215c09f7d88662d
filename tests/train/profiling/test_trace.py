"""What a profiled run leaves, and what is read from it without a browser."""

import json

import jax
import jax.numpy as jnp
import pytest
from absl import flags

from launch import profile as command
from tests.tiny import CFG, LORA
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.settings.sections import MeshConfig, ProfileConfig
from vlm_rlaif_jax.train.profiling import flops, trace
from vlm_rlaif_jax.train.profiling.profiler import Profiler


def test_time_inside_an_operation_is_not_its_own():
  events = [(0, 100, 'loop'), (10, 30, 'a'), (15, 5, 'b'), (60, 20, 'c'), (100, 7, 'd')]
  own = dict(trace.own_times(events))
  assert own == {'loop': 50, 'a': 25, 'b': 5, 'c': 20, 'd': 7}


@pytest.mark.parametrize(
  ('path', 'scope'),
  [
    ('jit(rollout)/rollout/decode/while/body/dot_general', 'rollout/decode'),
    ('jit(update)/transpose(jvp(update/policy))/dot_general', 'update/policy'),
    ('jit(score)/score/value/while/score/reward/add', 'score/reward'),
    ('jit(f)/add', ''),
  ],
)
def test_an_operation_stands_in_the_innermost_scope(path, scope):
  assert trace.scope_of(path) == scope


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
  """Four steps of a program with scopes, of which steps 2 and 3 are traced."""
  folder = tmp_path_factory.mktemp('run')
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])

  def function(x):
    with jax.named_scope('rollout/prefill'):
      x = x @ x
    with jax.named_scope('rollout/decode'):
      return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x), x)

  program = sharding.Program('rollout', function, mesh, (None,))
  settings = ProfileConfig(steps='2:4', memory=True, hlo=str(folder / 'hlo'))
  profiler = Profiler(settings, folder, [program])
  for step in range(1, 5):
    profiler.before(step)
    result = program(jnp.eye(256) * step)
    profiler.after(step, result)
    assert profiler.on == (step == 2)
  profiler.close()
  return folder


def test_a_trace_is_summed_up_by_program_scope_and_operation(recorded):
  summary = trace.read(recorded)
  assert summary.devices == 1 and summary.span > 0
  assert summary.programs['rollout'] > 0
  assert summary.scopes['rollout/prefill'] > 0
  assert summary.scopes['rollout/decode'] > 0
  total = sum(summary.programs.values())
  assert sum(summary.operations.values()) == pytest.approx(total)
  assert sum(summary.scopes.values()) == pytest.approx(total)


def test_programs_and_memory_lie_beside_the_trace(recorded):
  for folder in (recorded / 'hlo', recorded / 'profile' / 'hlo'):
    text = (folder / 'rollout.0.txt').read_text()
    assert 'rollout/decode' in text
  assert (recorded / 'profile' / 'memory.pprof').stat().st_size > 0
  assert list(recorded.glob('profile/plugins/profile/*/*.xplane.pb'))


def test_batches_are_steps_and_programs_of_one_name_lie_side_by_side(tmp_path):
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  programs = [
    sharding.Program('answer', lambda x, c=c: x @ x + c, mesh, (None,)) for c in (1, 2)
  ]
  profiler = Profiler(ProfileConfig(steps='2:4'), tmp_path, [])
  for number in range(6):
    program = programs[number % 2]
    with profiler.batch(program):
      assert profiler.on == (number in (1, 2))
      jax.block_until_ready(program(jnp.eye(64)))
  profiler.close()
  kept = sorted(path.name for path in tmp_path.glob('profile/hlo/*'))
  assert kept == ['answer.0.txt', 'answer.1.txt']
  assert trace.read(tmp_path).programs['answer'] > 0


def test_a_window_that_no_step_is_in_is_said(tmp_path, capsys):
  """Past the last step, or before the one that a run goes on from."""
  profiler = Profiler(ProfileConfig(steps='10:13'), tmp_path, [])
  for step in range(1, 5):
    profiler.before(step)
    profiler.after(step, None)
  profiler.close()
  assert 'profile.steps=10:13: none of these steps was taken' in capsys.readouterr().out
  Profiler(ProfileConfig(), tmp_path, []).close()
  assert not capsys.readouterr().out


def test_operations_are_looked_up_in_the_text_of_their_own_program():
  decode, prefill = {'a': 'rollout/decode', 'b': ''}, {'a': 'rollout/prefill', 'c': ''}
  assert trace._text_of({'a', 'c'}, [decode, prefill]) is prefill
  assert trace._text_of({'a'}, [{**prefill, 'd': ''}, decode]) is decode
  assert trace._text_of({'a'}, []) == {}


def test_a_trace_that_the_run_did_not_outlast_has_its_memory(tmp_path):
  mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
  program = sharding.Program('answer', lambda x: x @ x, mesh, (None,))
  profiler = Profiler(ProfileConfig(steps='1:100', memory=True), tmp_path, [])
  with profiler.batch(program):
    jax.block_until_ready(program(jnp.eye(64)))
  profiler.close()
  assert (tmp_path / 'profile/memory.pprof').stat().st_size > 0
  damaged = next(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb'))
  damaged.write_bytes(b'no trace')
  with pytest.raises(trace.TraceError, match='no readable trace'):
    trace.read(tmp_path)


def test_the_command_prints_the_summary(recorded, tmp_path, capsys):
  flags.FLAGS(['launch.profile', '--top=2'])
  command.main(['launch.profile', str(recorded)])
  said = capsys.readouterr().out
  assert '1 device(s) of this host' in said
  assert 'rollout/decode' in said and 'scope' in said and 'operation' in said
  with pytest.raises(SystemExit) as stopped:
    command.main(['launch.profile', str(tmp_path)])
  assert stopped.value.code == 2
  assert 'no trace; record one with --config.profile' in capsys.readouterr().err


def test_the_meter_counts_four_and_six_per_weight():
  """Of one token the needed operations of LoRA are about 4 N, with remat 6 N."""
  llama = CFG.llama
  weights = flops.linear_weights(llama)
  needed, again = flops.training(llama, LORA, 1)
  added = flops.adapter_weights(llama, LORA)
  attention = 2 * llama.layers * llama.heads * llama.head_dim
  assert needed == 4 * weights + 6 * added + 2 * attention
  assert needed + again == 6 * weights + 8 * added + 3 * attention
  meter = flops.Meter(peak=1e6)
  meter.add(10, 4e5, 2e5)
  meter.add(10, 4e5, 2e5)
  row = meter.rates(2.0)
  assert row == {'tokens_per_second': 10, 'mfu_4n': 0.4, 'mfu_6n': pytest.approx(0.6)}
  assert meter.rates(1.0)['tokens_per_second'] == 0  # since the last call
  unknown = flops.Meter(peak=0.0)
  unknown.add(10, 4e5, 2e5)
  assert json.dumps(unknown.rates(1.0)) == '{"tokens_per_second": 10.0}'
