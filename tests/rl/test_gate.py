"""PPO starts on a good judge and reward model only."""

import dataclasses
import json
import pathlib
import types

import pytest

from tests.rl.learner import run_of
from vlm_rlaif_jax.rl import gate
from vlm_rlaif_jax.settings.ppo import GateConfig, PpoInputs, PpoRun
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.weights import artifacts


def test_the_gate_reads_the_labels_of_the_critics_size(tmp_path):
  settings = PpoRun(size='7b', critic_size='13b')
  for size, agreement in (('7b', 0.9), ('13b', 0.2)):
    artifacts.write_summary(tmp_path / size / 'label', {'order_agreement': agreement})
  with pytest.raises(artifacts.ArtifactError, match=r'answers swapped, on 20.0%'):
    gate.check_gate(settings, run_of(settings, tmp_path))


@pytest.mark.parametrize(
  ('label', 'reward', 'limits', 'refusal', 'printed'),
  [
    ({'order_agreement': 0.6}, {'accuracy': 0.6}, {}, '', ''),
    ({'order_agreement': 0.6}, {'accuracy': 0.59}, {}, 'right on 59.0%', ''),
    ({'order_agreement': 0.6}, {'accuracy': float('nan')}, {}, 'right on nan%', ''),
    ({'order_agreement': float('nan')}, {'accuracy': 1.0}, {}, 'swapped, on nan%', ''),
    ({'order_agreement': 0.6}, {}, {}, 'reward_accuracy asks for 60.0%, which is', ''),
    ({'order_agreement': 0.6}, None, {}, 'not measured: ', ''),
    ({}, {'accuracy': 0.9}, {}, '', 'order_agreement asks for 55.0%, which is not'),
    (None, {'accuracy': 0.9}, {'judge_agreement': 0.6}, '', 'judge_agreement asks'),
    ({'agreement': 0.5}, {'accuracy': 0.9}, {'judge_agreement': 0.6}, 'on 50.0%', ''),
    (None, None, {'override': True}, '', ''),
    (None, None, {'reward_accuracy': 0.0, 'order_agreement': 0.0}, '', ''),
  ],
)
def test_the_gate(tmp_path, capsys, label, reward, limits, refusal, printed):
  for name, summary in (('label', label), ('reward', reward)):
    if summary is not None:
      (tmp_path / name).mkdir()
      (tmp_path / name / 'summary.json').write_text(json.dumps(summary))
  places = {'label': str(tmp_path / 'label'), 'reward': str(tmp_path / 'reward')}
  settings = PpoRun(gate=GateConfig(**limits), inputs=PpoInputs(**places))
  run = types.SimpleNamespace(
    artifact=lambda stage, path, size=None: pathlib.Path(path)
  )
  if refusal:
    with pytest.raises(artifacts.ArtifactError, match=refusal) as error:
      gate.check_gate(settings, run)
    assert '--config.gate.override=True' in str(error.value)
  else:
    gate.check_gate(settings, run)
  said = capsys.readouterr().out
  assert printed in said and bool(said) == bool(printed)


def test_an_edited_reward_prompt_is_refused(tmp_path):
  """The reward model keeps the text that it was trained with, not its name alone."""
  file = tmp_path / 'mine.txt'
  file.write_text('USER: Rate the last answer.')
  scoring = RewardPrompt(prompt=str(file))
  info = {'scoring': dataclasses.asdict(scoring), 'scoring_text': file.read_text()}
  reward = artifacts.Artifact({}, info)
  gate.check_scoring(reward, scoring)
  file.write_text('USER: Rate the first answer.')
  with pytest.raises(artifacts.ArtifactError, match=r"last answer\.' -> .* first ans"):
    gate.check_scoring(reward, scoring)
  del info['scoring_text']  # of a released reward model
  gate.check_scoring(reward, scoring)
