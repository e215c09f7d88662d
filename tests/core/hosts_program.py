"""What each process of `test_hosts` runs: steps of every kind on the test network."""

import dataclasses
import functools
import json
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, logging

from configs import models
from configs.ppo import PRESETS
from launch import process
from tests.tiny import CFG, LORA
from vlm_rlaif_jax.core import host_failures, hosts, sharding, trees
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.generation import Generator
from vlm_rlaif_jax.inference.text_encoder import TextEncoder
from vlm_rlaif_jax.nn import heads
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.rl import ppo
from vlm_rlaif_jax.rl.algorithm import programs
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.settings.ppo import PpoConfig
from vlm_rlaif_jax.settings.reward import RewardRun
from vlm_rlaif_jax.settings.sections import (
  CheckpointConfig,
  DataConfig,
  MeshConfig,
  OptimConfig,
)
from vlm_rlaif_jax.train import journal, optim, pairwise, shardings, supervised
from vlm_rlaif_jax.train.checkpointer import Checkpointer
from vlm_rlaif_jax.types import Bases, Frozen, Prompts
from vlm_rlaif_jax.weights import network_shapes, placement, text_towers

ROWS, T, R, N = 8, 7, 6, 5
WIDTH = CFG.llama.width


def numbers_like(shapes, seed: int) -> dict:
  """Weights drawn on the host: nothing is compiled for them, in any process."""
  rng = np.random.default_rng(seed)
  draw = lambda name, x: 0.3 * rng.normal(size=x.shape) + ('norm' in name)
  flat = {k: np.float32(draw(k, x)) for k, x in trees.flatten(shapes).items()}
  return trees.unflatten(flat)


def weights(seed: int = 0) -> dict:
  return numbers_like(network_shapes.abstract_params(CFG), seed)


def adapter_weights(seed: int = 1) -> dict:
  return numbers_like(network_shapes.abstract_adapter(CFG, LORA), seed)


def batch(mesh, **arrays):
  """Each process hands over its own rows."""
  mine = sharding.rows_of_this_host(ROWS, mesh)
  return sharding.put_batch({k: v[mine] for k, v in arrays.items()}, mesh)


def words(rng, *shape):
  ids = rng.integers(3, 60, (*shape, T)).astype(np.int32)
  ids[..., 2] = VIDEO
  return ids


def sft(mesh, rng) -> tuple[list[float], list[float]]:
  """Two steps, saved by all, restored, and a third; against three in a row."""
  settings = OptimConfig(learning_rate=1e-2, warmup=0.0, accumulate=2)
  model, optimizer = Vlm(CFG, LORA), optim.make_optimizer(settings)
  base = weights()
  frozen = placement.on_device({'llama': base['llama']}, CFG, mesh)
  values = {'lora': adapter_weights(), 'projector': base['projector']}
  layout = shardings.trainable(CFG, LORA, mesh, values)
  state = shardings.start(values, layout, optimizer, 0, mesh)
  step = supervised.program(
    functools.partial(supervised.loss, model),
    *(optimizer, optim.learning_rate(settings, 10), 2, mesh, state, frozen),
  )
  ids = words(rng, ROWS)
  rows = batch(
    mesh,
    ids=ids,
    target=ids > 20,
    patches=rng.normal(size=(ROWS, 2, 4, CFG.vision.width)).astype(np.float32),
  )
  losses = []
  for _ in range(2):
    state, metrics = step(state, frozen, rows)
    losses.append(float(metrics['loss']))
  folder = pathlib.Path(sys.argv[1]) / 'sft'
  saver = Checkpointer(folder, CheckpointConfig(), {'weights': 'test'})
  saver.save(state)
  saver.wait()
  restored, _ = saver.restore(state)
  saver.close()
  state, metrics = step(state, frozen, rows)
  _, again = step(restored, frozen, rows)
  return [*losses, float(metrics['loss'])], [float(again['loss'])]


def pairs(mesh, rng) -> list[float]:
  settings = dataclasses.replace(
    RewardRun(),
    model=CFG,
    lora=LORA,
    data=DataConfig(frames=2, buckets=(64,)),
    optim=OptimConfig(learning_rate=1e-2, warmup=0.0),
  )
  optimizer = optim.make_optimizer(settings.optim)
  frozen = placement.on_device({'llama': weights()['llama']}, CFG, mesh)
  values = {
    'lora': adapter_weights(), 'head': heads.init_head(jax.random.key(3), WIDTH)
  }  # fmt: skip
  layout = shardings.trainable(CFG, LORA, mesh, values)
  state = shardings.start(values, layout, optimizer, 0, mesh)
  rate = optim.learning_rate(settings.optim, 10)
  step, judge = pairwise.programs(
    settings, Vlm(CFG, LORA), optimizer, rate, mesh, state, frozen
  )
  ids = words(rng, ROWS, 2)
  rows = batch(
    mesh,
    ids=ids,
    valid=ids != 0,
    preferred=rng.integers(0, 2, ROWS).astype(np.int32),
    weight=np.ones(ROWS, np.float32),
    visual=rng.normal(size=(ROWS, N, WIDTH)).astype(np.float32),
  )
  losses = []
  for _ in range(2):
    state, metrics = step(state, frozen, rows)
    losses.append(float(metrics['loss']))
  scores = sharding.to_host(judge(state.trainable, frozen, rows))
  return [*losses, *scores.ravel().tolist()]


def reinforce(mesh, rng) -> dict:
  settings = PpoConfig(
    **PRESETS['masked'],
    **{'rollout_batch': ROWS, 'step_batch': 4, 'micro_batch': 4, 'sample_batch': 4},
    **{'query_tokens': T, 'response_tokens': R, 'logit_chunk': 0},
  )
  algorithm = ppo.PpoLearner(
    actor=Vlm(CFG, LORA),
    critic=Vlm(CFG, LORA),
    config=settings,
    optimizer=optim.make_optimizer(OptimConfig(clip_norm=1.0)),
    eos=2,
    stops=(),
    suffix=(11, 12),
    devices=sharding.batch_shards(mesh),
  )
  base = lambda seed: placement.on_device({'llama': weights(seed)['llama']}, CFG, mesh)
  networks = Bases(actor=base(0), critic=base(9))
  adapter, head = shardings.adapter(CFG, LORA, mesh), shardings.head(mesh)
  first = heads.init_head(jax.random.key(4), WIDTH)
  frozen = sharding.put(
    Frozen(adapter_weights(1), adapter_weights(2), first),
    Frozen(adapter, adapter, head),
  )
  copied = jax.tree.map(jnp.copy, frozen)  # as the stage starts: on the mesh already
  state = shardings.start(
    {'policy': copied.reference, 'value': copied.reward, 'head': copied.reward_head},
    {'policy': adapter, 'value': adapter, 'head': head},
    *(algorithm.optimizer, 0, mesh),
  )
  run = programs(algorithm, mesh, networks, frozen, state)
  ids = words(rng, ROWS)
  rows = batch(
    mesh,
    ids=ids,
    valid=ids != 0,
    actor_visual=rng.normal(size=(ROWS, N, WIDTH)).astype(np.float32),
    critic_visual=rng.normal(size=(ROWS, N, WIDTH)).astype(np.float32),
    example_id=np.arange(ROWS, dtype=np.int32),
    gold=np.zeros(ROWS, np.float32),
  )
  gold = rows.pop('gold')
  numbers = []
  for _ in range(2):
    rollout = run['rollout'](
      networks, state.trainable['policy'], Prompts(**rows), state.at_step(0)
    )
    scores = run['score'](networks, state.trainable, frozen, rollout)
    estimates, row = run['estimate'](
      rollout, scores, gold, gold, jnp.float32(settings.kl_coef)
    )
    state, losses = run['update'](
      state, networks, rollout, scores, estimates, jnp.float32(1e-3)
    )
    losses.pop('adapter')
    # Of the first iteration alone: in the second, rounding was seen to put one value on
    # the other side of its clip, which the gradient's norm feels at once.
    numbers = numbers or [float(x) for x in (*row.values(), *losses.values())]
  tokens, logprobs = sharding.to_host((rollout.tokens, scores.logprobs))
  leaves = jax.tree.leaves(sharding.to_host(state.trainable))
  return {
    'ppo': numbers,
    'tokens': tokens.tolist(),
    'logprobs': logprobs.ravel().tolist(),
    'adapter': [float(np.abs(leaf).sum()) for leaf in leaves],
  }


class Shown:
  """Visual tokens of videos that are named by numbers."""

  data = DataConfig(frames=2)

  def __init__(self, mesh):
    self.mesh = mesh

  def read(self, what: str, item: Video) -> np.ndarray:
    rng = np.random.default_rng(int(item.paths[0]))
    return rng.normal(size=(N, WIDTH)).astype(np.float32)


def ask(mesh, rng) -> dict:
  """Answers and log-odds of prompts of two lengths, and a journal of them."""
  base = placement.on_device({'llama': weights()['llama']}, CFG, mesh)
  tokenizer = types.SimpleNamespace(eos=2, other_ends=())
  features = Shown(mesh)
  generator = Generator(
    Vlm(CFG),
    {'params': base},
    tokenizer,
    features,
    (8, 16),
    ROWS,  # type: ignore
  )
  longer = np.full(4, 5, np.int32)
  asked_for = [np.concatenate([words(rng), longer[: 4 * (i % 2)]]) for i in range(11)]
  videos = [Video((str(i),)) for i in range(11)]
  settings = sampler.Sampling(R, eos=2)
  said = generator.generate(
    asked_for, videos, range(11), settings, jax.random.key(1), copies=2
  )
  odds = generator.log_odds(asked_for, videos, (7, 9))
  path = pathlib.Path(sys.argv[1]) / 'audit.jsonl'
  for _ in range(2):  # begun, and gone on with
    log = journal.Journal(path, {'weights': 'test'}, 'stop')
    log.extend([{'said': [row.tolist() for row in one]} for one in said])
  log.truncate(15)
  assert len(log) == 15
  kept = [row['said'] for row in log.rows()]
  return {'asked': kept, 'odds': odds.tolist()}


def texts(mesh) -> list[float]:
  """Vectors of short texts and of a long one, by the text tower of the package."""
  tower = text_towers.load('', '', models.tiny())
  encode = TextEncoder(
    tower.cfg, tower.joint, tower.params, tower.tokenizer, mesh, batch=4
  )
  samples = ['A red ring.', 'Nothing is there.', 'The blue circle stays. ' * 12, '']
  return encode(samples).vectors.ravel().tolist()


@process.one_line_errors
def main(argv) -> None:
  logging.set_verbosity(logging.ERROR)
  process.join()
  host_failures.watch()
  rng = np.random.default_rng(0)
  mesh = sharding.make_mesh(MeshConfig())
  halves = sharding.make_mesh(
    MeshConfig(tensor=2)
  )  # where there are four, a host has one
  losses, resumed = sft(mesh, rng)
  result = {
    'sft': losses,
    'resumed': resumed,
    'reward': pairs(mesh, rng),
    **reinforce(halves, rng),
    **ask(halves, rng),
    'texts': texts(halves),
  }
  if hosts.is_first():
    (pathlib.Path(argv[1]) / 'result.json').write_text(json.dumps(result))
  hosts.barrier('done')


if __name__ == '__main__':
  app.run(main)
