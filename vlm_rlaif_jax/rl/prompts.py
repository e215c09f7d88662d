"""The prompts of a run."""

import dataclasses
import json
import pathlib

import numpy as np

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.data import answer_match as golds
from vlm_rlaif_jax.data import examples, readers
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.train import loop
from vlm_rlaif_jax.types import Prompts


class PromptDataset:
  """The prompts of a run: which are trained on, which held out, and their features."""

  def __init__(self, settings: PpoRun, space, actor, critic, actor_base, critic_base):
    self.settings, self.space = settings, space
    self.tokenizer = actor_base.tokenizer
    self.fingerprint = f'{actor_base.fingerprint}+{critic_base.fingerprint}'
    self.actor = space.seen(actor, actor_base)
    sees = lambda cfg: (cfg.vision, cfg.projector)
    shared = critic_base.fingerprint == actor_base.fingerprint and sees(
      settings.critic
    ) == sees(settings.model)
    self.critic = (
      self.actor if shared else space.seen(critic, critic_base, settings.critic_quant)
    )
    items = [
      item
      for item in readers.read(space.data, 'rl', space.skipped)
      if item.video is not None
    ]
    bar = lambda items, total: loop.progress(
      items, total, 'ppo: see', settings.log, 'video'
    )
    for seen in {id(s): s for s in (self.actor, self.critic)}.values():
      bad = seen.encode([item.video for item in items], 'tokens', bar)
      items = readers.drop_unreadable(items, bad, space.skipped)
    encoded = {
      id(item): readers.encode_question(self.tokenizer, item) for item in items
    }
    longest = settings.ppo.query_tokens
    fitting = [item for item in items if len(encoded[id(item)]) <= longest]
    self.too_long = len(items) - len(fitting)
    self.ids = {id(item): encoded[id(item)] for item in fitting}  # keys may repeat
    held = lambda item: examples.is_held_out(item.video, space.data.holdout)
    self.train = [item for item in fitting if not held(item)]
    self.eval = [item for item in fitting if held(item)][: settings.ppo.eval_prompts]
    self.truth = Truth.load(
      readers.locate(dataclasses.replace(space.data, train=''), 'truth')
    )
    readers.check_joined(items, self.truth)
    need = settings.ppo.rollout_batch
    if len(self.train) < need or not self.eval:
      raise examples.DataError(
        f'{readers.locate(space.data, "rl")}: {len(self.train)} prompts to train on '
        f'(config.ppo.rollout_batch is {need}) and {len(self.eval)} held out'
      )

  def batch(self, step: int):
    """The prompts of one iteration (from 1), a pure function of the step."""
    size = self.settings.ppo.rollout_batch
    in_pass = len(self.train) // size
    epoch, index = divmod(step - 1, in_pass)
    order = np.random.default_rng([self.settings.seed, 3, epoch]).permutation(
      len(self.train)
    )
    picked = order[index * size : (index + 1) * size]
    items = [self.train[i] for i in picked]
    return self._put(items, picked), items

  def held_out(self):
    """Batches of held-out prompts, filled up with the first of them."""
    size = self.settings.ppo.rollout_batch
    for first in range(0, len(self.eval), size):
      items = self.eval[first : first + size]
      filled = items + [items[0]] * (size - len(items))
      yield self._put(filled, np.arange(len(filled))), items

  def _put(self, items, numbers) -> Prompts:
    """On the devices; each host reads the rows that its own hold."""
    mine = sharding.rows_of_this_host(len(items), self.space.mesh)
    items, numbers = items[mine], numbers[mine]
    ids = [self.ids[id(item)] for item in items]
    arrays = readers.collate_prompts(ids, self.settings.ppo.query_tokens)
    read = lambda seen: np.stack([seen.read('tokens', item.video) for item in items])
    dtype = self.actor.model.cfg.dtype
    actor = sharding.put_batch(read(self.actor).astype(dtype), self.space.mesh)
    critic = (
      actor
      if self.critic is self.actor
      else sharding.put_batch(read(self.critic).astype(dtype), self.space.mesh)
    )
    return Prompts(
      **sharding.put_batch(
        {**arrays, 'number': np.asarray(numbers, np.int32)}, self.space.mesh
      ),
      actor=actor,
      critic=critic,
    )

  def gold(self, items, tokens):
    """Agreement with gold answers and weight of the length bonus, `float32[B]` each."""
    agreed, weight = np.zeros(len(items), np.float32), np.ones(len(items), np.float32)
    if self.settings.ppo.answer_types == 'data':
      answers = sharding.to_host(tokens)
      for i, (item, row) in enumerate(zip(items, answers, strict=True)):
        kind, weight[i] = golds.answer_type(item.record, item.where)
        agreed[i] = golds.agreement(kind, self.tokenizer.decode(row))
    mine = sharding.rows_of_this_host(len(items), self.space.mesh)
    put = lambda x: sharding.put_batch(x[mine], self.space.mesh)
    return put(agreed), put(weight)

  def quality(self, items, tokens) -> list[float]:
    """True quality of answers, where the data come with a truth."""
    if self.truth is None:
      return []
    return [
      self.truth.score(item.key, self.tokenizer.decode(row)).quality
      for item, row in zip(items, tokens, strict=False)
      if item.key in self.truth
    ]

  def dump(self, path: pathlib.Path, step: int, items, rollout, scores) -> None:
    """A few answers of every iteration, to read."""
    tokens, reward = sharding.to_host((rollout.tokens, scores.reward))
    if not hosts.is_first():
      return
    count = min(8, len(items))
    items, tokens, reward = items[:count], tokens[:count], reward[:count]
    with path.open('a', encoding='utf-8') as file:
      for item, row, score in zip(items, tokens, reward, strict=False):
        line = {
          'iteration': step,
          'id': item.key,
          'question': item.question,
          'answer': self.tokenizer.decode(row),
          'reward': float(score),
        }
        file.write(json.dumps(line) + '\n')
