"""What cannot be on the devices ends in one line with the numbers and what could."""

import importlib
import re

import jax
import pytest

from vlm_rlaif_jax.core import chips, sharding
from vlm_rlaif_jax.plan import fit
from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.models import LoraConfig

LORAS = (LoraConfig(), LoraConfig())
EVERY = [
  (stage, size)
  for stage in stages.every()
  for size in ('tiny', '7b')
  if stage != 'pretrain'
]


def run(stage: str, arg: str, **flags):
  """The settings that a command line would give."""
  config = importlib.import_module(f'configs.{stage}').get_config(arg)
  config.update_from_flattened_dict(flags)
  return from_config_dict(stages.every()[stage].settings, config)


def refusal(settings, memory=0.0) -> str:
  with pytest.raises((fit.FitError, sharding.MeshError)) as error:
    fit.check(settings, jax.devices(), memory, LORAS)
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.slow
def test_every_stage_is_accepted_where_there_is_room():
  arrays = len(jax.live_arrays())
  for stage, size in [*EVERY, ('pretrain', 'tiny')]:
    settings = run(stage, size)
    fit.check(settings, jax.devices(), 80e9, LORAS)
    fit.check(settings, jax.devices(), 0, LORAS)  # a device that does not say
  assert len(jax.live_arrays()) == arrays


def test_what_stays_for_a_run_is_the_hand_count():
  mesh = sharding.make_mesh(run('ppo', '7b').mesh)
  held = fit.resident(run('ppo', '7b,bits=16'), mesh, LORAS)
  # bf16 bases 13.48 + 26.03 GB, four adapters, two with moments, in float32
  counted_arguments = 13.477e9 + 26.032e9 + (159.9e6 + 250.3e6) * 16
  assert held == pytest.approx(counted_arguments, rel=0.001)


def test_grpo_keeps_no_value_function():
  mesh = sharding.make_mesh(run('ppo', '7b').mesh)
  of_group = {'ppo.algorithm': 'grpo', 'ppo.group': 2}
  ppo, grpo = (
    fit.resident(run('ppo', '7b,preset=masked', **flags), mesh, LORAS)
    for flags in ({}, of_group)
  )
  # The critic's adapter, and its two moments, in float32; its head is 5,121 numbers.
  assert ppo - grpo == pytest.approx(250.3e6 * 12, rel=0.001)


@pytest.mark.parametrize(
  ('stage', 'arg', 'memory', 'need', 'advice'),
  [
    ('ppo', '7b,bits=16', 40e9, 46.1, '17.6 GB with --config.quant.residency=nf4'),
    ('ppo', '7b', 16.9e9, 17.6, '10.0 GB with --config.mesh.tensor=2'),
    ('ppo', '7b,layout=a100x8-fsdp,bits=16', 9e9, 9.4, '5.8 GB with --config.quant'),
    ('reward', '13b', 16.9e9, 29.0, '10.2 GB with --config.quant.residency=nf4'),
    ('sft', '7b', 10e9, 14.1, '4.5 GB with --config.quant.residency=nf4'),
    ('label', '7b', 10e9, 13.5, '3.9 GB with --config.quant.residency=nf4'),
    ('eval', '7b', 2e9, 14.1, '1.3 GB with --config.mesh.tensor=4'),
    ('ppo', '7b', 1e9, 17.6, 'no mesh of these devices, nor NF4, is enough'),
  ],
)
def test_a_model_that_cannot_fit(stage, arg, memory, need, advice):
  """A small limit in place of a small device; what is advised is then accepted."""
  said = refusal(run(stage, arg), memory)
  assert f'need {need} GB a device' in said
  assert f'a device has {memory / 1e9:.1f} GB; {advice}' in said
  flags = re.findall(r'--config\.([\w.]+)=(\w+)', said)
  if flags:
    values = {k: int(v) if v.isdigit() else v for k, v in flags}
    fit.check(run(stage, arg, **values), jax.devices(), memory, LORAS)


@pytest.mark.parametrize(
  ('stage', 'flags', 'message'),
  [
    ('ppo', {'mesh.data': 3}, 'config.mesh: data=3 x fsdp=1 x tensor=1 does not make'),
    (
      'ppo', {'ppo.micro_batch': 4},
      'config.ppo.micro_batch: 4 does not divide over the 8 devices of data x fsdp; '
      'the nearest that does is 8',
    ),
    (
      'sft', {'optim.batch_size': 12, 'optim.accumulate': 1},
      'config.optim.batch_size / accumulate (accumulate=1): 12 does not divide',
    ),
    ('label', {'label.batch': 12}, 'config.label.batch: 12 does not divide over the 8'),
    ('eval', {'eval.batch': 20}, 'config.eval.batch: 20 does not divide over the 8'),
    (
      'ppo', {'mesh.tensor': 8},
      'config.mesh.tensor: the 4 heads of config.model do not divide over 8 devices; '
      'the nearest that does is 4',
    ),
  ],
)  # fmt: skip
def test_what_does_not_divide(stage, flags, message):
  assert message in refusal(run(stage, 'tiny', **flags))


def test_a_width_that_does_not_divide_over_a_mesh():
  mesh = sharding.make_mesh(run('ppo', 'tiny', **{'mesh.tensor': 3}).mesh, range(3))
  with pytest.raises(sharding.MeshError, match='do not divide over 3 devices; the'):
    fit.resident(run('label', 'tiny'), mesh, LORAS)


def test_the_memory_of_a_device_is_what_it_says_or_what_its_name_says():
  assert chips.memory() == 0  # a CPU says nothing
  assert chips.facts_of('NVIDIA A100-SXM4-80GB')['memory'] == 78292063354
  assert chips.facts_of('TPU v5 lite')['chip'] == 'TPU v5e'
  assert chips.facts_of('TPU v5')['chip'] == 'TPU v5p'
