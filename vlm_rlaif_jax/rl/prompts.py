"""The prompts of a run: those trained on, those held out, and their features."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.data import answer_match, examples, holdout, pairs, readers
from vlm_rlaif_jax.data.examples import Example
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.inference.features import VisualFeatures, encode_all
from vlm_rlaif_jax.labeling.answers import Answer
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.train import loop
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.types import Prompts, Rollout, Scores
from vlm_rlaif_jax.weights.bases import Base

SAMPLES_A_STEP = 8  # responses of an iteration that are written, to be read


@dataclasses.dataclass(frozen=True)
class Prompt:
  """A question about a video, and its token ids `int32[T]`, not padded."""

  example: Example
  ids: np.ndarray


class PromptDataset:
  """Encodes every video once; batches prompts as a pure function of the iteration.

  Attributes:
    train: prompts that are trained on.
    eval: prompts about held-out videos; none where `data.holdout` is 0.
    too_long: how many were dropped for `ppo.query_tokens`.
    fingerprint: of the weights below both networks.
    reward_suffixes: ids of the reward prompt of each video; none where all have the
      same.
  """

  def __init__(
    self,
    settings: PpoRun,
    run: RunContext,
    actor_model: Vlm,
    critic_model: Vlm,
    actor_base: Base,
    critic_base: Base,
  ):
    self.settings, self.run = settings, run
    self.tokenizer = actor_base.tokenizer
    self.reward_suffixes: dict[Video, np.ndarray] = {}
    self.fingerprint = f'{actor_base.fingerprint}+{critic_base.fingerprint}'
    self.actor_features = run.features(actor_model, actor_base)
    self.critic_features = self.actor_features
    same_weights = critic_base.fingerprint == actor_base.fingerprint
    if not same_weights or _vision(settings.critic) != _vision(settings.model):
      self.critic_features = run.features(
        critic_model, critic_base, settings.critic_quant
      )

    # Rows: all checks come before a video is decoded
    items = readers.read(run.data, 'rl', run.skipped, splits=True)
    prompts = self._checked([item for item in items if item.video])
    own_file = dataclasses.replace(run.data, train='')
    self.truth = Truth.load(readers.locate(own_file, 'truth'))
    readers.check_joined([prompt.example for prompt in prompts], self.truth)
    self._split(prompts)

    # Visual tokens
    self._split(self._encode_videos(prompts))
    path = readers.locate(run.data, 'rl')
    run.skipped.report_split(path, len(self.train), len(self.eval), 'prompts')

  def _split(self, prompts: list[Prompt]) -> None:
    """Divides the prompts; raises DataError if either side has too few.

    Of one file for every stage, the videos that evaluation asks about are on neither
    side; another share is held out here.
    """
    data, config = self.run.data, self.settings.ppo
    reserved = {p.example.place for p in prompts if data.train and p.example.held_out}
    places = {prompt.example.place for prompt in prompts} - reserved
    if data.train:
      candidates = holdout.held_out_of(places, data.holdout, holdout.OTHER_SHARE)
    else:
      candidates = {p.example.place for p in prompts if p.example.held_out}
    self.train, self.eval = holdout.split(
      prompts,
      lambda prompt: prompt.example.place,
      lambda prompt: prompt.example.place in candidates,
      config.eval_prompts,
      lambda prompt: prompt.example.place in reserved,
    )
    minimum = config.rollout_batch // config.group
    if len(self.train) < minimum or (data.holdout and not self.eval):
      copies = f', ppo.group {config.group}' if config.group > 1 else ''
      apart = f', {len(reserved)} further ones for evaluation' if reserved else ''
      raise examples.DataError(
        f'{readers.locate(data, "rl")}: {len(self.train)} prompts to train on '
        f'(config.ppo.rollout_batch is {config.rollout_batch}{copies}) and '
        f'{len(self.eval)} held out, of {len(places)} videos{apart}; expected '
        f'{minimum} and {int(bool(data.holdout))}: add videos, or change '
        f'config.data.holdout={data.holdout:g} or config.ppo.rollout_batch'
      )

  def _checked(self, items: list[Example]) -> list[Prompt]:
    """Returns the prompts that are usable as far as their rows say.

    One that is too long is left out and counted, as in the reference; one that has no
    tokens or no valid answer type is bad.
    """

    def check(item: Example) -> Prompt:
      try:
        if self.settings.ppo.answer_types == 'data':
          answer_match.answer_type(item.record, item.where)
        return Prompt(item, readers.encode_question(self.tokenizer, item))
      except examples.DataError:
        raise
      except ValueError as error:
        raise examples.DataError(f'{item.where}: {error}') from None

    attempted = [
      self.run.skipped.attempt(functools.partial(check, item)) for item in items
    ]
    prompts = [prompt for prompt in attempted if prompt is not None]
    limit = self.settings.ppo.query_tokens
    fitting = [prompt for prompt in prompts if len(prompt.ids) <= limit]
    self.too_long = len(prompts) - len(fitting)
    if self.too_long:
      self.run.skipped.say(
        f'  {self.too_long} prompts left out, longer than config.ppo.query_tokens='
        f'{limit}'
      )
    return fitting

  def _encode_videos(self, prompts: list[Prompt]) -> list[Prompt]:
    """Encodes the videos; returns the prompts about those that can be read."""
    bar = loop.bar('ppo: encoding videos', self.settings.log, 'video')
    videos = [prompt.example.video for prompt in prompts if prompt.example.video]
    if self.critic_features is self.actor_features:
      bad = self.actor_features.encode(videos, 'tokens', bar)
    else:
      both = self.actor_features, self.critic_features
      bad = encode_all(both, videos, 'tokens', bar)
    return [
      prompt
      for prompt in prompts
      if readers.is_readable(prompt.example, bad, self.run.skipped)
    ]

  def set_narratives(self, narratives: Mapping[Video, str]) -> None:
    """Puts the narrative of each video into the reward prompt of its questions.

    Raises:
      DataError: with the longest one, a response has no room in the reward model.
    """
    scoring = self.settings.scoring
    self.reward_suffixes = {
      video: pairs.suffix_ids(
        self.tokenizer, pairs.reward_prompt(scoring, text.splitlines())
      )
      for video, text in narratives.items()
    }
    longest = max(narratives, key=lambda video: len(self.reward_suffixes[video]))
    self.check_reward_room(
      self.suffix_tokens, longest.paths[0], 'lower config.judge.caption_tokens'
    )

  def check_reward_room(self, suffix: int, place: str, advice: str) -> None:
    """Raises DataError for a reward prompt past the last position of the critic.

    Args:
      suffix: tokens of the reward prompt, which follows a question and a response.
      place: what has this prompt.
      advice: what to do about it.
    """
    config, critic = self.settings.ppo, self.settings.critic
    visual = self.run.data.frames + critic.vision.patches
    room = critic.llama.max_positions
    response = config.query_tokens + config.response_tokens
    if visual + response + suffix > room:
      raise examples.DataError(
        f'{place}: {visual} visual tokens, {response} of a question and a response and '
        f'{suffix} of the reward prompt exceed critic.llama.max_positions {room}; '
        f'{advice}'
      )

  @property
  def suffix_tokens(self) -> int:
    """Returns the tokens of the longest reward prompt with a narrative; 0 without."""
    return max(map(len, self.reward_suffixes.values()), default=0)

  @property
  def videos(self) -> set[tuple[str, ...]]:
    """Returns the paths of the videos of all prompts."""
    examples_of = (prompt.example for prompt in (*self.train, *self.eval))
    return {one.video.paths for one in examples_of if one.video}

  @property
  def rollouts(self) -> int:
    """Returns the iterations of one pass over the prompts."""
    return len(self.train) * self.settings.ppo.group // self.settings.ppo.rollout_batch

  def batch(self, step: int) -> tuple[Prompts, list[Example]]:
    """Returns the prompts of an iteration (from 1), and their examples."""
    copies = self.settings.ppo.group
    size = self.settings.ppo.rollout_batch // copies
    epoch, index = divmod(step - 1, len(self.train) // size)
    rng = np.random.default_rng([self.settings.seed, 3, epoch])
    order = rng.permutation(len(self.train))
    chosen = np.repeat(order[index * size : (index + 1) * size], copies)
    prompts = [self.train[i] for i in chosen]
    # Each copy has a number of its own, so that answers of a group differ.
    numbers = chosen * copies + np.arange(len(chosen)) % copies
    return self._put(prompts, numbers), [prompt.example for prompt in prompts]

  def held_out(self) -> Iterator[tuple[Prompts, list[Example]]]:
    """Yields batches of held-out prompts, the last one filled with its first.

    A prompt has a number of its own, so that no two draw with the same key, and what it
    draws does not depend on the size of a batch.
    """
    size = self.settings.ppo.rollout_batch
    for first in range(0, len(self.eval), size):
      prompts = self.eval[first : first + size]
      filled = prompts + [prompts[0]] * (size - len(prompts))
      batch = self._put(filled, first + np.arange(len(filled)))
      yield batch, [prompt.example for prompt in prompts]

  def _put(self, prompts: list[Prompt], numbers: np.ndarray) -> Prompts:
    """Returns prompts on the devices; each host reads the rows of its own."""
    rows = sharding.rows_of_this_host(len(prompts), self.run.mesh)
    prompts, numbers = prompts[rows], numbers[rows]
    arrays = readers.collate_prompts(
      [prompt.ids for prompt in prompts], self.settings.ppo.query_tokens
    )
    arrays['example_id'] = np.asarray(numbers, np.int32)
    videos = [prompt.example.video for prompt in prompts if prompt.example.video]
    if self.reward_suffixes:
      suffixes = np.full((len(prompts), self.suffix_tokens), PAD, np.int32)
      for row, video in zip(suffixes, videos, strict=True):
        ids = self.reward_suffixes[video]
        row[len(row) - len(ids) :] = ids
      arrays['reward_suffix'] = suffixes

    def visual(features: VisualFeatures) -> jax.Array:
      tokens = np.stack([features.read('tokens', video) for video in videos])
      dtype = self.actor_features.model.cfg.dtype
      return sharding.put_batch(tokens.astype(dtype), self.run.mesh)

    actor_visual = visual(self.actor_features)
    shared = self.critic_features is self.actor_features
    return Prompts(
      **sharding.put_batch(arrays, self.run.mesh),
      actor_visual=actor_visual,
      critic_visual=actor_visual if shared else visual(self.critic_features),
    )

  def correctness(
    self, items: list[Example], tokens: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Returns agreement with reference answers and weight of the length bonus.

    Both are `float32[B]`; 0 and 1 unless `ppo.answer_types` reads them from the data.
    """
    agreement = np.zeros(len(items), np.float32)
    length_weight = np.ones(len(items), np.float32)
    if self.settings.ppo.answer_types == 'data':
      responses = sharding.to_host(tokens)
      for i, (item, ids) in enumerate(zip(items, responses, strict=True)):
        kind, length_weight[i] = answer_match.answer_type(item.record, item.where)
        agreement[i] = answer_match.agreement(kind, self.tokenizer.decode(ids))
    return self.put_rows((agreement, length_weight))

  def put_rows(self, tree: Any) -> Any:
    """Returns arrays of all rows of an iteration on the devices that compute them."""
    mesh = self.run.mesh
    count = len(jax.tree.leaves(tree)[0])
    rows = sharding.rows_of_this_host(count, mesh)
    return sharding.put_batch(jax.tree.map(lambda x: x[rows], tree), mesh)

  def put_everywhere(self, x: Any) -> Any:
    """Returns a key or a number on every device."""
    return sharding.put(x, sharding.replicated(self.run.mesh))

  def answers(self, items: list[Example], rollout: Rollout) -> list[Answer]:
    """Returns the responses to examples as text, and which of them ended.

    One without an end of sequence was cut: at the longest length, or by a stop text.
    """
    tokens, has_eos = sharding.to_host((rollout.tokens, rollout.has_eos))
    rows = zip(items, tokens, has_eos, strict=False)  # batches are filled up
    return [Answer(self.tokenizer.decode(ids), bool(ended)) for _, ids, ended in rows]

  def quality(self, items: list[Example], tokens: np.ndarray) -> list[float]:
    """Returns the true quality of responses, where the data come with a truth."""
    truth = self.truth
    if truth is None:
      return []
    return [
      truth.score(item.key, self.tokenizer.decode(ids)).quality
      for item, ids in zip(items, tokens, strict=False)
      if item.key in truth
    ]

  def write_samples(
    self,
    path: pathlib.Path,
    step: int,
    items: list[Example],
    rollout: Rollout,
    scores: Scores,
  ) -> None:
    """Appends a few responses of an iteration to a file of JSON lines."""
    tokens, rewards = sharding.to_host((rollout.tokens, scores.reward))
    if not hosts.is_first():
      return
    rows = list(zip(items, tokens, rewards, strict=False))[:SAMPLES_A_STEP]
    with path.open('a', encoding='utf-8') as file:
      for item, ids, reward in rows:
        line = {
          'iteration': step,
          'id': item.key,
          'paths': list(item.video.paths) if item.video else [],
          **({'clip': item.video.clip} if item.video and item.video.clip else {}),
          'question': item.question,
          'answer': self.tokenizer.decode(ids),
          'reward': float(reward),
        }
        file.write(json.dumps(line) + '\n')


def _vision(cfg: VlmConfig) -> tuple:
  """Returns what decides the visual tokens of a network with given weights."""
  return cfg.vision, cfg.projector
