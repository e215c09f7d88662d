"""The plan of encoding texts agrees with what the program computes."""

import types

import numpy as np
import pytest

from configs import models
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan import count, generation, targets
from vlm_rlaif_jax.plan.encoding import text_phase, videos_at_once
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig
from vlm_rlaif_jax.settings.text_scores import TextScoresConfig


def run(**changes):
  data = DataConfig(root='data', frames=5, buckets=(16, 32))
  return EvalRun(size='tiny', model=models.tiny(), data=data, **changes)


def mesh():
  return sharding.make_mesh(MeshConfig(), targets.devices(targets.parse('cpux8')))


def test_texts_are_counted_as_they_are_computed():
  settings = run(text_scores=TextScoresConfig(text_batch=20))
  phase = text_phase(settings, mesh(), 160)
  assert phase.times == 10  # batches of 16, over eight devices
  traced = phase.program.trace(*phase.arguments).jaxpr.jaxpr
  needed = sum(work.flops for work in phase.work)
  executed = count.executed(traced, 1, 'cpu')
  joint = 2 * 16 * settings.model.text.width * settings.model.joint  # of one token each
  assert executed == pytest.approx(needed + joint, rel=1e-3)


def test_only_benchmarks_that_compare_texts_encode_any():
  def names(*benchmarks):
    settings = run(eval=EvalConfig(benchmarks=benchmarks, models=('base',)))
    return [phase.name for phase in generation.eval_phases(settings, mesh(), ())]

  assert 'texts' not in names('msvd_qa')
  assert 'texts' in names('msvd_qa', 'ucf101')


def test_all_videos_are_encoded_once_on_however_many_devices():
  """A batch has 16 videos, but one a device where there are more, or 12 on 12."""
  done = {}
  for target in ('cpux1', 'cpux5', 'cpux8'):
    devices = targets.devices(targets.parse(target))
    own = sharding.make_mesh(MeshConfig(), devices)
    settings = run(eval=EvalConfig(benchmarks=('msvd_qa', 'ucf101'), batch=40))
    phase, *_ = generation.eval_phases(settings, own, (None, None))
    videos = videos_at_once(own)
    assert phase.times == -(-(504 + 3783) // videos)
    done[target] = phase.times * sum(work.flops for work in phase.work)
  assert max(done.values()) < 1.01 * min(done.values())
  many = types.SimpleNamespace(devices=np.zeros((4, 4, 4)))
  assert videos_at_once(many) == 64 and videos_at_once(mesh()) == 16
