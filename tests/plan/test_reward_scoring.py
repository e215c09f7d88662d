"""A reward model that scores an evaluation is planned without its weights."""

import dataclasses
import json

import jax
import pytest

from tests.tiny import CFG, LORA
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan import count, fit, generation
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.eval import EvalConfig, EvalInputs, EvalRun
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig
from vlm_rlaif_jax.train import shardings
from vlm_rlaif_jax.train.profiling import flops
from vlm_rlaif_jax.weights import model_config

LARGE = dataclasses.replace(
  CFG, name='large', llama=dataclasses.replace(CFG.llama, width=48, layers=3)
)
PROMPT = 'USER: Rate the answer. ASSISTANT:'  # 33 letters, about 9 tokens
BATCH, FRAMES, DESCRIBE = 8, 5, 20


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])


def base_folder(root, name, cfg):
  folder = root / name
  folder.mkdir(parents=True)
  (folder / 'model.json').write_text(model_config.to_model_json(cfg))
  return folder


def reward_folder(root, base, **changes):
  """What a stage reward leaves, without its weights."""
  info = {
    'stage': 'reward',
    'base_folder': str(base),
    'lora': dataclasses.asdict(LORA),
    'scoring_text': PROMPT,
    **changes,
  }
  artifact = root / 'reward' / 'artifact'
  artifact.mkdir(parents=True)
  (artifact / 'artifact.json').write_text(json.dumps(info))
  return root / 'reward'


def evaluation(base, **inputs):
  return EvalRun(
    size='tiny', model=CFG, base=str(base), inputs=EvalInputs(**inputs),
    data=DataConfig(root='data', train='my.json', frames=FRAMES, buckets=(16, 32)),
    eval=EvalConfig(batch=BATCH, answer_tokens=4, describe_tokens=DESCRIBE,
                    models=('sft',)),
  )  # fmt: skip


@pytest.mark.slow
def test_a_reward_model_of_another_base_encodes_and_scores(mesh, tmp_path):
  policies = base_folder(tmp_path, 'small', CFG)
  folder = reward_folder(tmp_path, base_folder(tmp_path, 'large', LARGE))
  settings = evaluation(policies, reward=str(folder))
  phases = {p.name: p for p in generation.eval_phases(settings, mesh, (LORA, LORA))}
  assert list(phases) == [
    'encode', 'project', 'qa', 'describe', 'encode (reward)', 'project (reward)',
    'reward',
  ]  # fmt: skip

  # 16 of a question, 20 of an answer, 9 of the prompt: twice the last bucket.
  reward = phases['reward']
  length = 64 + FRAMES + LARGE.vision.patches - 1
  (work,) = reward.work
  assert work.flops == BATCH * flops.forward(LARGE.llama, LORA, length)
  assert reward.times == 2  # answers of both tasks
  executed = count.executed(
    reward.program.trace(*reward.arguments).jaxpr.jaxpr, 1, 'cpu'
  )
  assert 1 <= executed / work.flops < 1.4

  # It has the devices to itself, and is larger than the policies.
  decoder = shardings.abstract_base(LARGE, mesh, 'llama')
  adapter = shardings.abstract_adapter(LARGE, LORA, mesh)
  expected = sharding.bytes_per_device((decoder, adapter))
  assert fit.resident(settings, mesh, (LORA, LORA)) == expected
  alone = fit.resident(evaluation(policies), mesh, (LORA, LORA))
  assert 0 < alone < expected

  # Decoders are on the devices while videos are encoded.
  beside = [leaf for leaf in jax.tree.leaves(phases['encode (reward)'].resident)]
  towers = shardings.abstract_base(LARGE, mesh, 'tower', 'projector')
  assert sharding.bytes_per_device(beside) == expected + sharding.bytes_per_device(
    towers
  )


def test_a_reward_model_on_the_policies_base_has_their_visual_tokens(mesh, tmp_path):
  policies = base_folder(tmp_path, 'small', CFG)
  folder = reward_folder(tmp_path, policies)
  for place in (folder, folder / 'artifact'):
    settings = evaluation(policies, reward=str(place))
    names = [p.name for p in generation.eval_phases(settings, mesh, (LORA, LORA))]
    assert names == ['encode', 'project', 'qa', 'describe', 'reward']


def test_beside_benchmarks_a_file_of_ones_own_is_a_batch_of_each_task(mesh, tmp_path):
  policies = base_folder(tmp_path, 'small', CFG)
  settings = evaluation(policies, reward=str(reward_folder(tmp_path, policies)))
  both = dataclasses.replace(settings.eval, benchmarks=('own', 'msvd_qa'))
  settings = dataclasses.replace(settings, eval=both)
  phases = {p.name: p for p in generation.eval_phases(settings, mesh, (LORA, LORA))}
  assert [*phases][2:] == ['open_ended', 'qa (own)', 'describe (own)', 'reward']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (None, r'config\.inputs\.reward: .*nowhere: no such folder'),
    ({'stage': 'init'}, "config.inputs.reward=.*: stage 'init' is no reward model"),
    ({'frames': FRAMES + 1}, r'trained with data\.frames=6, this run has 5'),
    ({'scoring': {'placeholder': 'captions'}}, 'which evaluation does not write'),
    ({'base_folder': '/none'}, r'/none/model\.json, .* config\.inputs\.reward_base'),
  ],
)
def test_what_cannot_be_planned_is_one_line(mesh, tmp_path, changes, message):
  policies = base_folder(tmp_path, 'small', CFG)
  place = tmp_path / 'nowhere'
  if changes:
    place = reward_folder(tmp_path, policies, **changes)
  settings = evaluation(policies, reward=str(place))
  with pytest.raises(UserError, match=message) as error:
    generation.eval_phases(settings, mesh, (LORA, LORA))
  assert '\n' not in str(error.value)
