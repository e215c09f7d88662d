"""Which models an evaluation may compare."""

import json

import pytest

from tests.rl.learner import run_of
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalRun
from vlm_rlaif_jax.stages import eval as stage
from vlm_rlaif_jax.weights import artifacts


def test_ppo_is_compared_with_the_policy_that_it_started_from(tmp_path):
  settings = EvalRun(size='7b')
  run = run_of(settings, tmp_path)
  for name, info in (('init', {'fingerprint': 'new'}), ('ppo', {'init': 'new'})):
    folder = tmp_path / '7b' / name / 'artifact'
    folder.mkdir(parents=True)
    (folder / 'artifact.json').write_text(json.dumps(info))
  stage.check_control(settings, run)
  (folder / 'artifact.json').write_text(json.dumps({'init': 'old'}))
  with pytest.raises(artifacts.ArtifactError, match='started from old: their differ'):
    stage.check_control(settings, run)
  without = EvalRun(size='7b', eval=EvalConfig(models=('sft', 'rlaif')))
  stage.check_control(without, run)
