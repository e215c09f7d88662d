"""A stage of two files outside the package is trained, planned, resumed and reported.

The two files are what `docs/adding-a-stage.md` shows.
"""

import json
import sys
import textwrap

import jax
import pytest

from launch import jobs
from vlm_rlaif_jax import stages as running
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan import fit, measure, phases, targets
from vlm_rlaif_jax.reports import terminal
from vlm_rlaif_jax.settings import build, stages
from vlm_rlaif_jax.settings.models import LoraConfig

SETTINGS = '''
"""Settings of a stage that fits a scale to the width of the decoder's embeddings."""

import dataclasses

from configs import models
from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.build import to_config_dict
from vlm_rlaif_jax.settings.sections import OptimConfig
from vlm_rlaif_jax.settings.stage import Run, StageSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleConfig:
  """What the scale is fitted to."""

  steps: int = 8  # optimizer steps
  target: float = 0.5  # value of every entry


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleRun(Run):
  optim: OptimConfig = OptimConfig(learning_rate=0.1, batch_size=8)
  scale: ScaleConfig = ScaleConfig()


STAGE = stages.register(
  StageSpec(
    settings=ScaleRun,
    run='scale_stage:run',
    summary_line=lambda summary: f'distance {summary["distance"]:.3f}',
    parts=(),
    phases='scale_stage:phases',
  )
)


def get_config(arg=''):
  return to_config_dict(ScaleRun(**models.world_run('tiny', save_every=3)))
'''

STAGE = """
import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan.count import Work
from vlm_rlaif_jax.plan.phase import Phase
from vlm_rlaif_jax.train import journal, loop, optim, shardings, supervised
from vlm_rlaif_jax.train.checkpointer import Checkpointer
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import artifacts

FAIL_AT = 0  # the test stops a run here


def program(settings, mesh, state):
  def loss(trainable, base, batch, key):
    return jnp.mean((trainable['scale'] - batch['target'].mean(0)) ** 2), {}

  optimizer = optim.make_optimizer(settings.optim)
  rate = optim.learning_rate(settings.optim, settings.scale.steps)
  return supervised.program(loss, optimizer, rate, 1, mesh, state, {})


def run(settings, workdir):
  run = RunContext(settings, workdir, reads_data=False)
  width, total = settings.model.llama.width, settings.scale.steps
  trainable = {'scale': jnp.zeros(width)}
  layout = {'scale': sharding.replicated(run.mesh)}
  optimizer = optim.make_optimizer(settings.optim)
  state = shardings.start(trainable, layout, optimizer, settings.seed, run.mesh)
  step = program(settings, run.mesh, state)

  def batches(first):
    for number in range(first, total):
      if FAIL_AT and number == FAIL_AT:
        raise RuntimeError('killed')
      target = np.full((8, width), settings.scale.target, np.float32)
      yield sharding.put_batch({'target': target}, run.mesh)

  checkpointer = Checkpointer(
    run.folder, settings.checkpoint, journal.identity(settings, 'no weights')
  )
  state = loop.fit(
    lambda state, batch: step(state, {}, batch),
    state,
    batches,
    total,
    title='scale',
    folder=run.folder,
    checkpointer=checkpointer,
    log=settings.log,
  )
  checkpointer.close()
  scale = np.asarray(state.trainable['scale'])
  artifact = artifacts.Artifact({'scale': {'w': scale}}, {'stage': 'scale'})
  artifacts.save(run.folder / 'artifact', artifact)
  summary = {
    'stage': 'scale',
    'lineage': settings.lineage,
    'distance': float(np.abs(scale - settings.scale.target).mean()),
    'artifact': str(run.folder / 'artifact'),
  }
  artifacts.write_summary(run.folder, summary)
  return summary


def phases(settings, mesh, loras):
  width = settings.model.llama.width
  optimizer = optim.make_optimizer(settings.optim)
  shape = jax.ShapeDtypeStruct((width,), jnp.float32)
  scale = sharding.abstract({'scale': shape}, sharding.replicated(mesh))
  state = shardings.abstract_state(scale, optimizer, mesh)
  rows = shardings.rows(mesh, {'target': jax.ShapeDtypeStruct((8, width), jnp.float32)})
  arguments = (state, {}, rows)
  work = (Work('update', 8.0 * width, 4.0 * width),)
  return [Phase('scale', program(settings, mesh, state), arguments, arguments, work)]
"""


@pytest.fixture
def scale(tmp_path, monkeypatch):
  """Returns the module of the stage, and its settings as a command line gives them."""
  (tmp_path / 'scale.py').write_text(textwrap.dedent(SETTINGS))
  (tmp_path / 'scale_stage.py').write_text(textwrap.dedent(STAGE))
  monkeypatch.syspath_prepend(str(tmp_path))
  monkeypatch.setattr(stages, '_registered', {})
  config = __import__('scale').get_config()
  config.log.progress = False
  spec = stages.every()[config.stage]
  settings = jobs.completed(build.from_config_dict(spec.settings, config))
  yield __import__('scale_stage'), settings
  for name in ('scale', 'scale_stage'):
    sys.modules.pop(name, None)


def test_it_is_trained_and_reported(scale, tmp_path, capsys):
  _, settings = scale
  runs, notes = jobs.resolve_jobs(settings, tmp_path)
  assert (runs, notes) == ([settings], [])
  fit.check(settings, jax.devices()[:1], 0.0, (LoraConfig(), LoraConfig()))
  terminal.announce(settings, runs)
  with terminal.stage(settings, '1/1') as report_done:
    report_done(running.run(settings, tmp_path))
  printed = capsys.readouterr().out
  assert 'scale, size tiny' in printed and '[1/1] scale: distance 0.1' in printed
  rows = (tmp_path / 'tiny/scale/metrics.jsonl').read_text().splitlines()
  assert json.loads(rows[-1])['step'] == settings.scale.steps


@pytest.mark.slow
def test_it_is_resumed_to_the_same_bits(scale, tmp_path, monkeypatch):
  module, settings = scale
  whole = running.run(settings, tmp_path / 'whole')
  monkeypatch.setattr(module, 'FAIL_AT', 5)
  with pytest.raises(RuntimeError, match='killed'):
    running.run(settings, tmp_path / 'killed')
  monkeypatch.setattr(module, 'FAIL_AT', 0)
  resumed = running.run(settings, tmp_path / 'killed')
  assert resumed['distance'] == whole['distance']
  weights = 'tiny/scale/artifact/scale.safetensors'
  saved = [(tmp_path / name / weights).read_bytes() for name in ('whole', 'killed')]
  assert saved[0] == saved[1]


def test_it_is_planned(scale):
  _, settings = scale
  target = targets.parse('cpux1')
  mesh = sharding.make_mesh(settings.mesh, targets.devices(target))
  (phase,) = phases.of(settings, mesh, (LoraConfig(), LoraConfig()))
  plan = measure.measure(phase, target)
  assert plan.fits and plan.arguments == pytest.approx(plan.counted_arguments, rel=0.05)
