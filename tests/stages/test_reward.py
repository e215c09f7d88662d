import types

import jax
import numpy as np
import pytest

from configs import reward as config
from vlm_rlaif_jax.nn import heads, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.settings.reward import RewardInputs, RewardRun
from vlm_rlaif_jax.stages import reward
from vlm_rlaif_jax.weights import artifacts, bases


@pytest.mark.slow
def test_a_head_that_starts_as_the_judge_scores_as_the_judge():
  settings = from_config_dict(RewardRun, config.get_config('tiny'))
  assert settings.reward.head_start == 'judge'
  base = bases.load('', settings.model)
  head = reward.initial_head(settings, base, jax.random.key(0))
  model = Vlm(settings.model)
  hidden = jax.random.normal(jax.random.key(1), (2, settings.model.llama.width))
  logits = vlm.logits(model, {'params': base.params}, hidden)
  yes, no = (base.tokenizer.option(text) for text in ('Yes', 'No'))
  np.testing.assert_allclose(head(hidden), logits[:, yes] - logits[:, no], atol=1e-4)


@pytest.mark.parametrize(
  ('labeled_by', 'pairs', 'printed'),
  [
    ('former', '', 'label/pairs.json was labeled by another model (former) than '),
    ('now', '', ''),
    (None, '', ''),  # not known
    ('former', 'theirs.json', ''),  # of the user
  ],
)
def test_pairs_that_a_former_sft_labeled_are_said(
  tmp_path, monkeypatch, capsys, labeled_by, pairs, printed
):
  run = types.SimpleNamespace(
    artifact=lambda stage, path: tmp_path / stage, features=lambda *_: None
  )
  tuned = types.SimpleNamespace(fingerprint='now')
  monkeypatch.setattr(reward, 'RunContext', lambda *_: run)
  monkeypatch.setattr(bases, 'load', lambda *_: None)
  monkeypatch.setattr(bases, 'tuned', lambda *_: tuned)
  monkeypatch.setattr(reward, '_pairs', lambda *_: None)
  artifacts.write_summary(tmp_path / 'label', {'fingerprint': labeled_by})
  settings = RewardRun(inputs=RewardInputs(pairs=pairs))
  with pytest.raises(TypeError):  # there are no pairs to unpack
    reward.run(settings, tmp_path)
  out = capsys.readouterr().out
  assert printed in out and out.count('\n') == bool(printed)


def test_the_head_of_the_real_size_starts_at_random_as_in_the_reference():
  settings = from_config_dict(RewardRun, config.get_config('13b'))
  assert settings.reward.head_start == 'random'
  small = heads.init_head(jax.random.key(0), 16)
  assert np.abs(small.w).max() <= 0.25
