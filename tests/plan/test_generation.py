"""Phases of evaluation for the published test sets."""

import dataclasses
import math

import jax
import pytest

from tests.tiny import CFG, LORA
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.evals.benchmarks import registry
from vlm_rlaif_jax.plan import generation
from vlm_rlaif_jax.plan.phase import weight_bytes
from vlm_rlaif_jax.settings.eval import BENCHMARKS, EvalConfig, EvalRun
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])


def phases_of(mesh, root='data', **more):
  settings = EvalRun(
    size='tiny', model=CFG, data=DataConfig(root=root, frames=5, buckets=(16, 32)),
    eval=EvalConfig(batch=8, answer_tokens=4, describe_tokens=6, open_ended_tokens=5,
                    **more),
  )  # fmt: skip
  return {
    phase.name: phase for phase in generation.eval_phases(settings, mesh, (LORA, LORA))
  }


def test_programs_are_counted_as_often_as_the_published_test_sets_need(mesh):
  phases = phases_of(mesh, benchmarks=('msvd_qa', 'consistency', 'video_mme', 'ucf101'))
  times = {name: phase.times for name, phase in phases.items()}
  assert times['open_ended'] == math.ceil((13157 + 2 * 499) / 8)
  assert times['answer'] == math.ceil(2700 / 8)
  assert times['describe'] == math.ceil(3783 / 8)
  assert times['options'] == math.ceil(2700 / 8)
  assert times['encode'] == math.ceil((504 + 0 + 900 + 3783) / 16)
  assert phases['open_ended'].loop_iterations == 5
  assert phases['answer'].loop_iterations == 4
  assert phases['open_ended'].note == (
    'open_ended: prompts of one model: msvd_qa 13,157, consistency 998'
  )


def test_a_data_set_of_ones_own_is_planned_for_all_benchmarks(mesh):
  phases = phases_of(mesh)
  assert {'open_ended', 'describe', 'answer', 'options'} <= phases.keys()
  notes = ' '.join(phase.note for phase in phases.values())
  assert all(name in notes for name in BENCHMARKS)
  assert 'mvbench 4,000,' in notes and 'tempcompass 1,580,' in f'{notes},'


def test_the_world_is_planned_for_a_batch_of_both(mesh):
  phases = phases_of(mesh, root='')
  assert [name for name in phases if name in ('qa', 'describe')] == ['qa', 'describe']
  assert 'options' not in phases


def test_a_cache_has_the_dtype_of_the_network(mesh):
  """Of 4 bytes a number in float32: the floor of a step counted 2."""

  def moved(dtype):
    cfg = dataclasses.replace(CFG, dtype=dtype)
    settings = EvalRun(
      size='tiny',
      model=cfg,
      data=DataConfig(frames=5, buckets=(16, 32)),
      eval=EvalConfig(batch=8, answer_tokens=4, describe_tokens=6),
    )
    *_, phase = generation.eval_phases(settings, mesh, (LORA, LORA))
    (work,) = (work for work in phase.work if work.name == 'decode')
    sampling = settings.eval.describe_tokens
    visual = settings.data.frames + cfg.vision.patches
    slots = settings.eval.batch * (16 + visual - 1 + sampling / 2)
    heads = 2 * cfg.llama.layers * cfg.llama.kv_heads * cfg.llama.head_dim
    weights = weight_bytes(phase.arguments[0]['params'], mesh)
    return work.bytes_moved - sampling * weights, sampling * slots * heads

  for dtype, size in (('float32', 4), ('bfloat16', 2)):
    cached, numbers = moved(dtype)
    assert cached == pytest.approx(size * numbers)


def test_every_benchmark_has_the_size_of_its_test_set():
  assert list(registry.BENCHMARKS) and set(registry.BENCHMARKS) == set(BENCHMARKS)
  for one in registry.BENCHMARKS.values():
    assert one.test_set.items > 0 and hasattr(EvalConfig(), one.tokens)
    assert one.headline
    # A number has a place that states it, or says that it has none.
    assert one.test_set.source
    assert set(one.test_set.unverified) <= {'items', 'videos', 'texts'}
