"""Artifacts of stages that are damaged, and their bases."""

import dataclasses
import shutil

import pytest

from tests.weights import checkpoints
from tests.weights.damage import edit_json, on, refused
from vlm_rlaif_jax.weights import (
  artifacts,
  conversion,
)
from vlm_rlaif_jax.weights.conversion import Request


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda i: [1], 'contains a list, expected a dict'),
    (lambda i: {**i, 'lora': 3}, 'lora is 3, expected a dict'),
    (lambda i: {**i, 'lora': {'x': 1}}, 'lora.rank is missing'),
    (lambda i: {**i, 'lora': {**i['lora'], 'x': 1}}, 'lora.x: no such field'),
    (lambda i: {**i, 'lora': {**i['lora'], 'alpha': 'x'}}, 'lora.alpha: must be float'),
    (lambda i: {**i, 'lora': {**i['lora'], 'targets': None}}, 'artifact.json: lora'),
    (lambda i: {**i, 'lora': {**i['lora'], 'targets': ['q']}}, 'lora.targets are not'),
    (lambda i: {**i, 'lora': {**i['lora'], 'rank': 7}}, 'section lora was edited'),
    (lambda i: {**i, 'parts': []}, 'contents have fingerprint'),
    (lambda i: {**i, 'parts': [3]}, 'parts is [3], expected'),
    (lambda i: {**i, 'parts': ['../lora']}, "parts is ['../lora'], expected"),
    (lambda i: {**i, 'scoring': {'x': 1}}, 'scoring.x: no such field'),
    (lambda i: {**i, 'scoring': 'x'}, "scoring is 'x', expected a dict"),
    (lambda i: {**i, 'base_folder': 3}, 'base_folder is 3, expected a text'),
    *(
      (lambda i, n=name: {k: v for k, v in i.items() if k != n}, name)
      for name in ('lora', 'parts', 'fingerprint', 'base', 'stage')
    ),
    (
      lambda i: {**i, 'lora': {k: v for k, v in i['lora'].items() if k != 'targets'}},
      'lora.targets is missing',
    ),
  ],
)
def test_a_damaged_artifact(root, tmp_path, adapter, change, message):
  conversion.convert(adapter, tmp_path / 'init', on(root))
  path = tmp_path / 'init' / 'artifact' / 'artifact.json'
  edit_json(path, change)
  refused(tmp_path / 'init', 'artifact.json', message)


def test_an_artifact_without_a_part_of_its_stage(root, tmp_path, adapter):
  checkpoints.write_projector(adapter / 'non_lora_trainables.bin', 'model.')
  conversion.convert(adapter, tmp_path / 'sft', on(root))
  whole = artifacts.load(tmp_path / 'sft', 'sft')
  for part in ('lora', 'projector'):
    less = {name: tree for name, tree in whole.parts.items() if name != part}
    artifacts.save(
      tmp_path / 'sft' / 'artifact', dataclasses.replace(whole, parts=less)
    )
    refused(tmp_path / 'sft', f'artifact.json: parts is missing {part} of stage sft')


def test_a_policy_without_a_value_function(root, tmp_path, adapter):
  """GRPO leaves it: an artifact of stage ppo with the policy's adapter alone."""
  conversion.convert(adapter, tmp_path / 'ppo', on(root))
  init = artifacts.load(tmp_path / 'ppo', 'init')
  policy = dataclasses.replace(init, info={**init.info, 'stage': 'ppo'})
  artifacts.save(tmp_path / 'ppo' / 'artifact', policy)
  conversion.convert(tmp_path / 'ppo', tmp_path / 'out', Request(to='peft'))
  written = tmp_path / 'out' / 'adapter_model'
  assert [path.name for path in written.iterdir()] == ['lora_policy']
  assert not (tmp_path / 'out' / 'value_head.pt').exists()
  shutil.rmtree(tmp_path / 'out')
  # One that names a value adapter has to have it.
  info = {**policy.info, 'critic_lora': policy.info['lora']}
  artifacts.save(tmp_path / 'ppo' / 'artifact', dataclasses.replace(policy, info=info))
  refused(
    tmp_path / 'ppo', 'parts is missing value, value_head of stage ppo',
    request=Request(to='peft'),
  )  # fmt: skip


def test_a_changed_base_is_noticed(root, tmp_path, adapter):
  """A stage knows the fingerprint of what it was trained on."""
  conversion.convert(adapter, tmp_path / 'init', on(root))
  other = checkpoints.write_base(tmp_path / 'other', seed=1)
  refused(
    tmp_path / 'init', 'trained on weights', request=Request(to='hf', base=str(other))
  )
