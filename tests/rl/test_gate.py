"""PPO starts on a good judge and reward model only."""

import dataclasses
import json
import pathlib
import types

import pytest

from tests.rl.learner import run_of
from vlm_rlaif_jax.core import hosts
from vlm_rlaif_jax.rl import gate
from vlm_rlaif_jax.settings.ppo import GateConfig, PpoConfig, PpoInputs, PpoRun
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.train import labeler
from vlm_rlaif_jax.weights import artifacts


def test_the_gate_reads_the_labels_of_the_critics_size(tmp_path):
  settings = PpoRun(size='7b', critic_size='13b')
  for size, agreement in (('7b', 0.9), ('13b', 0.2)):
    artifacts.write_summary(tmp_path / size / 'label', {'order_agreement': agreement})
  with pytest.raises(artifacts.ArtifactError, match=r'answers swapped, on 20.0%'):
    gate.check_gate(settings, run_of(settings, tmp_path))


def run_with(tmp_path, label, has_pairs=True, **limits):
  """Returns settings and run of a PPO whose judge and reward model were measured."""
  for name in ('label', 'reward'):
    (tmp_path / name).mkdir()
  if label is not None:
    (tmp_path / 'label' / 'summary.json').write_text(json.dumps(label))
  if has_pairs:
    (tmp_path / 'reward' / 'held_out.json').write_text('[]')
  places = {name: str(tmp_path / name) for name in ('label', 'reward')}
  settings = PpoRun(gate=GateConfig(**limits), inputs=PpoInputs(**places))
  run = types.SimpleNamespace(
    artifact=lambda stage, path, size=None: pathlib.Path(path)
  )
  return settings, run


@pytest.mark.parametrize(
  ('label', 'has_pairs', 'limits', 'refusal', 'printed'),
  [
    ({'order_agreement': 0.6}, True, {}, '', ''),
    ({'order_agreement': float('nan')}, True, {}, 'swapped, on nan%', ''),
    ({'order_agreement': 0.6}, False, {}, r'held_out.json: there is no such file', ''),
    ({}, True, {}, '', 'order_agreement asks for 55.0%, which is not'),
    (None, True, {'judge_agreement': 0.6}, '', 'judge_agreement asks'),
    ({'agreement': 0.5}, True, {'judge_agreement': 0.6}, 'on 50.0%', ''),
    ({'order_agreement': 1}, True, {'grounding': 0.05}, 'grounding asks for 5.0%', ''),
    (None, False, {'override': True}, '', ''),
    (None, False, {'reward_accuracy': 0.0, 'order_agreement': 0.0}, '', ''),
  ],
)
def test_the_gate(tmp_path, capsys, label, has_pairs, limits, refusal, printed):
  settings, run = run_with(tmp_path, label, has_pairs, **limits)
  if refusal:
    with pytest.raises(artifacts.ArtifactError, match=refusal) as error:
      gate.check_gate(settings, run)
    assert '--config.gate.override=True' in str(error.value)
  else:
    gate.check_gate(settings, run)
  said = capsys.readouterr().out
  assert printed in said and bool(said) == bool(printed)


@pytest.mark.parametrize(('blind', 'refused'), [(0.69, True), (0.6, False)])
def test_the_gate_asks_for_a_lead_over_the_blind_control(tmp_path, blind, refused):
  settings, run = run_with(tmp_path, {'order_agreement': 1}, grounding=0.05)
  summary = {'accuracy': 0.7, 'accuracy_without_video': blind}
  (tmp_path / 'reward' / 'summary.json').write_text(json.dumps(summary))
  if not refused:
    gate.check_gate(settings, run)
    return
  with pytest.raises(artifacts.ArtifactError, match=r'than without by 1\.0%'):
    gate.check_gate(settings, run)


@pytest.mark.parametrize(
  ('accuracy', 'interval', 'count', 'refusal', 'printed'),
  [
    (0.7, (0.65, 0.75), 500, '', '(95 % interval 65.0% to 75.0%)\n'),
    (0.7, (0.4, 1.0), 4, '', 'asks for 60.0%, which the interval does not exclude'),
    (0.6, (0.6, 0.6), 1, '', 'ranks 1 held-out pairs right on 60.0%'),
    (0.59, (0.5, 0.7), 90, r'in nf4, ranks 90 held-out pairs right on 59\.0%', ''),
    (float('nan'), (0.5, 0.7), 90, 'right on nan%', ''),
    (0.0, (0.0, 0.0), 0, 'it has no usable pair', ''),
  ],
)
def test_the_gate_of_the_reward_model(
  tmp_path, capsys, accuracy, interval, count, refusal, printed
):
  settings, run = run_with(tmp_path, None)
  measured = {
    'accuracy': accuracy, 'accuracy_interval': interval, 'pairs': count,
    'residency': 'nf4',
  }  # fmt: skip
  if refusal:
    with pytest.raises(artifacts.ArtifactError, match=refusal):
      gate.check_reward(settings, run, measured)
  else:
    gate.check_reward(settings, run, measured)
    assert printed in capsys.readouterr().out


def test_the_gate_says_that_a_blind_reward_model_was_measured_blind(tmp_path):
  settings, run = run_with(tmp_path, None)
  measured = {
    'accuracy': 0.5, 'accuracy_interval': (0.4, 0.6), 'pairs': 90, 'residency': 'nf4',
    'blind': True,
  }  # fmt: skip
  with pytest.raises(artifacts.ArtifactError, match='in nf4 and without the video, '):
    gate.check_reward(settings, run, measured)


def test_a_blind_reward_has_no_lead_by_the_video():
  blind = PpoConfig(blind_reward=True)
  with pytest.raises(ValueError, match=r'gate\.grounding: asks for a lead of 0\.03 by'):
    PpoRun(ppo=blind, gate=GateConfig(grounding=0.03))
  PpoRun(ppo=blind, gate=GateConfig(grounding=0.03, override=True))
  assert PpoRun(ppo=blind).gate.grounding == 0


@pytest.mark.parametrize(
  ('inputs', 'critic_size', 'printed'),
  [
    ({}, '7b', 'other) than {root}/7b/sft is now (tuned); configs/label.py with '),
    ({'sft': 'elsewhere'}, '7b', 'other) than elsewhere is now (tuned); '),
    ({}, '13b', 'other) than {root}/13b/sft is now (tuned); '),
    ({'reward': 'theirs'}, '7b', ''),
    ({'label': 'theirs', 'reward': 'theirs'}, '7b', ''),
  ],
)
def test_pairs_that_another_sft_labeled_are_said(
  tmp_path, capsys, inputs, critic_size, printed
):
  settings = PpoRun(critic_size=critic_size, inputs=PpoInputs(**inputs))
  run = run_of(settings, tmp_path)
  label = tmp_path / critic_size / 'label'
  for labeled_by in ({}, {'fingerprint': 'tuned'}):  # not known, the same
    artifacts.write_summary(label, labeled_by)
    gate.say_other_labeler(settings, run, types.SimpleNamespace(fingerprint='tuned'))
    assert capsys.readouterr().out == ''
  artifacts.write_summary(label, {'fingerprint': 'other'})
  gate.say_other_labeler(settings, run, types.SimpleNamespace(fingerprint='tuned'))
  out = capsys.readouterr().out
  assert bool(out) == bool(printed) and out.count('\n') == bool(printed)
  assert printed.format(root=tmp_path) in out


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


def test_pairs_that_were_labeled_again_are_said(tmp_path, capsys):
  settings = PpoRun()
  run = run_of(settings, tmp_path)
  folder = tmp_path / '13b' / 'label'
  folder.mkdir(parents=True)
  (folder / 'pairs.json').write_text('[1]')
  trained_on = hosts.files_fingerprint([folder / 'pairs.json'])
  reward = artifacts.Artifact({}, {'pairs': trained_on})
  gate.say_other_pairs(settings, run, reward)
  assert capsys.readouterr().out == ''
  (folder / 'pairs.json').write_text('[2]')
  gate.say_other_pairs(settings, run, reward)
  assert 'is not what the reward model was trained on' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('change', 'placeholder', 'printed'),
  [
    ({}, 'captions', ''),
    ({'clip_frames': 8}, 'captions', 'written with another clip_frames than config.'),
    ({'caption_prompt': 'tiny_caption', 'caption_tokens': 9}, 'captions', ' another '
     'caption_tokens and caption_prompt than config.judge has'),
    ({'clip_frames': 8}, 'empty', ''),  # it reads none
  ],
)  # fmt: skip
def test_narratives_of_another_kind_than_the_pairs_have_are_said(
  tmp_path, capsys, change, placeholder, printed
):
  judge = PpoRun().judge
  settings = PpoRun(critic_size='7b', scoring=RewardPrompt(placeholder=placeholder))
  written = labeler.narrated(dataclasses.replace(judge, **change))
  tuned = types.SimpleNamespace(fingerprint='tuned')
  for record in ({}, {'narratives': written}):  # not known, as the pairs have them
    artifacts.write_summary(tmp_path / '7b' / 'label', record)
    gate.say_other_labeler(settings, run_of(settings, tmp_path), tuned)
    out = capsys.readouterr().out
    expected = printed if record else ''
    assert expected in out and out.count('\n') == bool(expected)
