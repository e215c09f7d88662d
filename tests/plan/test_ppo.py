"""A critic with a tower of its own is planned with that tower."""

import dataclasses
import types

import jax
import pytest

from tests.tiny import CFG, LORA
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan import fit, phases, ppo
from vlm_rlaif_jax.rl import flops
from vlm_rlaif_jax.settings.label import LabelConfig
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoRun
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig
from vlm_rlaif_jax.train import shardings
from vlm_rlaif_jax.train.profiling import flops as model_flops

ROWS, TEXT, RESPONSE, FRAMES = 16, 8, 6, 2


pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])


def critic(image_size: int, patch_size: int):
  """A wider network that sees (image / patch)² patches."""
  vision = dataclasses.replace(
    CFG.vision, image_size=image_size, patch_size=patch_size, width=32
  )
  llama = dataclasses.replace(CFG.llama, width=32)
  return dataclasses.replace(CFG, vision=vision, llama=llama)


def run(network):
  config = PpoConfig(
    rollout_batch=ROWS, step_batch=8, micro_batch=8, query_tokens=TEXT,
    response_tokens=RESPONSE, logit_chunk=0,
  )  # fmt: skip
  return PpoRun(
    size='tiny', model=CFG, critic=network, critic_size='7b', ppo=config,
    data=DataConfig(frames=FRAMES, buckets=(16,)),
  )  # fmt: skip


def test_a_critic_reads_the_visual_tokens_of_its_own_tower(mesh):
  network = critic(16, 4)
  patches, other = CFG.vision.patches, network.vision.patches
  assert (patches, other) == (4, 16)
  by_name = {phase.name: phase for phase in phases.of(run(network), mesh, (LORA, LORA))}

  prompts = by_name['rollout'].arguments[2]
  assert prompts.actor_visual.shape == (ROWS, FRAMES + patches, 16)
  assert prompts.critic_visual.shape == (ROWS, FRAMES + other, 32)

  # Policy and value are counted over the positions that each of them has.
  score = {work.name: work.flops for work in by_name['score'].work}
  here = FRAMES + patches + TEXT - 1 + RESPONSE
  there = FRAMES + other + TEXT - 1 + RESPONSE
  assert score['value'] == ROWS * model_flops.forward(network.llama, LORA, there)
  policy = model_flops.forward(CFG.llama, LORA, here, RESPONSE)
  assert score['policy'] == ROWS * policy
  assert flops.lengths(run(network), of_critic=True)[1] == there

  # And so are videos, by the tower of each.
  towers = [by_name[name].work[0].flops for name in ('encode', 'encode (critic)')]
  videos = 16 * FRAMES
  assert towers == [videos * model_flops.tower(cfg.vision) for cfg in (CFG, network)]


@pytest.mark.parametrize(('image_size', 'together'), [(16, True), (32, False)])
def test_two_towers_are_on_the_devices_where_a_video_is_decoded_once(
  mesh, image_size, together
):
  network = critic(image_size, 8)
  encoding = ppo.encoding(run(network), mesh)
  names = ['encode', 'project', 'encode (critic)', 'project (critic)']
  assert [phase.name for phase in encoding] == names
  parts = [
    sharding.bytes_per_device(shardings.abstract_base(cfg, mesh, 'tower', 'projector'))
    for cfg in (CFG, network)
  ]
  for phase, own in zip(
    encoding, (parts[0], parts[0], parts[1], parts[1]), strict=True
  ):
    on_devices = sum(parts) if together else own
    assert sharding.bytes_per_device(phase.resident) == on_devices


def test_the_judge_of_an_iteration_is_planned(mesh):
  """It and the captions before it run on the actor's base, beside all that PPO has."""
  settings = run(CFG)
  assert not settings.narrates
  judge = LabelConfig(batch=8, clip_frames=1, caption_tokens=4)

  def planned(**config):
    changed = dataclasses.replace(settings.ppo, **config)
    asked = dataclasses.replace(settings, ppo=changed, judge=judge)
    return {phase.name: phase for phase in phases.of(asked, mesh, (LORA, LORA))}

  assert not {'caption', 'judge'} & planned().keys()
  by_name = planned(reward='judge')
  assert by_name['judge'].times == ROWS / 8 and by_name['caption'].times == 0
  bases = by_name['rollout'].arguments[0]
  for name in ('caption', 'judge'):
    used = {id(leaf) for leaf in jax.tree.leaves(by_name[name].arguments)}
    beside = {id(leaf) for leaf in jax.tree.leaves(by_name[name].resident)}
    everything = {id(leaf) for leaf in jax.tree.leaves(by_name['score'].resident)}
    assert {id(leaf) for leaf in jax.tree.leaves(bases.actor)} <= used
    assert everything <= beside
  assert planned(select='judge')['judge'].times == 0
  captions = dataclasses.replace(settings, scoring=RewardPrompt(placeholder='captions'))
  names = [phase.name for phase in phases.of(captions, mesh, (LORA, LORA))]
  assert 'caption' in names and 'judge' not in names


def test_the_batch_of_the_judge_divides_over_the_devices():
  settings = dataclasses.replace(
    run(CFG), ppo=dataclasses.replace(run(CFG).ppo, reward='judge'),
    judge=LabelConfig(batch=6),
  )  # fmt: skip
  four = types.SimpleNamespace(shape={'data': 4, 'fsdp': 1, 'tensor': 1})
  with pytest.raises(sharding.MeshError, match=r'config\.judge\.batch: 6 does not'):
    fit.check_batches(settings, four)
  fit.check_batches(run(CFG), four)
