"""Settings of judges: what is refused, and that no secret is among them."""

import re

import pytest

from vlm_rlaif_jax.settings.judge import JudgeConfig, as_released

ENDPOINT = {'kind': 'endpoint', 'model': 'm', 'base_url': 'http://localhost:8000/v1'}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'base_url': ''}, 'base_url: kind endpoint needs an address like http://'),
    ({'base_url': 'localhost:8000'}, 'base_url: kind endpoint needs an address'),
    ({'base_url': 'ftp://host/v1'}, 'base_url: kind endpoint needs an address'),
    ({'base_url': 'http://h/v1/chat/completions'}, 'leave out /chat/completions'),
    ({'model': ''}, 'model: kind endpoint needs the name of a model'),
    ({'concurrency': 0}, 'concurrency: must be >= 1, got 0'),
    ({'timeout_s': 0.0}, 'timeout_s: must be > 0, got 0.0'),
    ({'budget_calls': -1}, 'budget_calls: must be >= 0, got -1'),
    (
      {'kind': 'model', 'model': 'other'},
      'model: kind model is one of base',
    ),
  ],
)
def test_wrong_settings_are_refused(changes, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    JudgeConfig(**{**ENDPOINT, **changes})


@pytest.mark.parametrize(
  'changes',
  [
    {'base_url': 'http://user:sk-secret@host/v1'},
    {'base_url': 'http://host/v1?key=sk-secret'},
    {'key_variable': 'sk-secret'},
    {'key_variable': 'sk_secret'},
  ],
)
def test_a_secret_is_refused_and_not_repeated(changes):
  with pytest.raises(ValueError, match=r'key_variable|base_url') as error:
    JudgeConfig(**{**ENDPOINT, **changes})
  assert 'secret' not in str(error.value)


def test_the_choices_of_the_release():
  judge = as_released(JudgeConfig(**ENDPOINT))
  assert (judge.temperature, judge.rounding, judge.model) == (-1.0, 'truncate', 'm')


def test_a_judge_of_the_run_is_that_of_sft_unless_it_is_named():
  assert JudgeConfig(kind='model').own_model == 'sft'
  assert JudgeConfig(kind='model', model='rlaif').own_model == 'rlaif'
