"""The tiny base: what stands in for CLIP and an image-text model, from still pictures.

    tower      CLIP's contrastive loss, and naming attributes from one pooled token
    pictures   language model and projector on pictures and albums, bare prompts
    mixed      the same with the conversation template, and texts without pictures
    strips     how objects differ along stills taken one after another, and texts

The tower is frozen after the first phase. The real sizes start from released weights
instead (`launch.convert`).
"""

import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta

from vlm_rlaif_jax import encode
from vlm_rlaif_jax.config.stages import BaseRun
from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.data import batches, tokens
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world import stills, vocabulary
from vlm_rlaif_jax.nn import clip, vlm
from vlm_rlaif_jax.nn.vlm import VIDEO, Vlm
from vlm_rlaif_jax.objectives import likelihood
from vlm_rlaif_jax.train import (
  artefacts,
  bases,
  layouts,
  loop,
  optim,
  records,
  report,
  supervised,
)
from vlm_rlaif_jax.train.checkpoint import Checkpointer
from vlm_rlaif_jax.train.workspace import Workspace

COLORS: list[str] = list(scenes.COLORS)
SHAPES: list[str] = list(scenes.SHAPES)
FIELDS = 1 + len(SHAPES) + 2  # of the probe, a color: there? which shape? x, y
LENGTHS = {1: 144, 4: 176, 12: 160, 0: 224}  # text of a sample, by pictures
BARE_LENGTHS = {1: 104, 4: 144}
STRIP_LENGTHS = {4: 88, 12: 184}
PHASES = ('tower', 'picture', 'mixed', 'strip')  # as their settings begin
WEIGHTS = {'text': 2.0, 'strip': 2.0}  # of a task's loss; 1 for the others


def run(settings: BaseRun, workdir: str | pathlib.Path) -> dict:
  """Pretrains; leaves a base folder (weights, sizes, tokenizer) as its artefact."""
  space = Workspace(settings, workdir, reads_data=False)
  cfg, phases = settings.model, settings.base_run
  folder = space.folder / 'artefact'
  words = space.folder / 'tokenizer'
  pieces = vocabulary.train(words, cfg.llama.vocab)
  talk = _Talk(tokens.load_tokenizer(words), settings)
  model = Vlm(cfg)

  key = jax.random.key(settings.seed)
  params = bases.init(cfg, key)
  pair = clip.Clip(cfg.vision, cfg.text, cfg.joint)
  text = _init_text(pair, cfg, key)
  probe = {
    'w': 0.05 * jax.random.normal(key, (cfg.llama.width, len(COLORS) * FIELDS)),
    'b': jnp.zeros(len(COLORS) * FIELDS),
  }

  seen = _phase(
    settings,
    space,
    'tower',
    phases.tower_steps,
    {
      'tower': params['tower'],
      'projector': params['projector'],
      'probe': probe,
      **text,
    },
    {},
    lambda t, _, batch, key: tower_loss(model, pair, settings, t, batch, key),
    talk.faces,
  )
  frozen = {'tower': seen['tower']}
  trained = {
    'llama': params['llama'],
    'projector': seen['projector'],
    'probe': seen['probe'],
  }
  for name, steps, batch in (
    ('pictures', phases.picture_steps, talk.pictures),
    ('mixed', phases.mixed_steps, talk.mixed),
    ('strips', phases.strip_steps, talk.strips),
  ):
    trained = _phase(
      settings,
      space,
      name,
      steps,
      trained,
      frozen,
      lambda t, b, batch, key: talk_loss(model, settings, t, b, batch, key),
      batch,
    )
  weights = {
    'tower': seen['tower'],
    'projector': trained['projector'],
    'llama': trained['llama'],
    'text': {**seen['text'], 'logit_scale': seen['logit_scale']},
  }
  weights = jax.tree.map(lambda x: np.asarray(x, np.float16), jax.device_get(weights))
  shutil.rmtree(folder, ignore_errors=True)
  bases.save(folder, weights, cfg)
  for file in words.iterdir():
    shutil.copy(file, folder / file.name)
  summary = {
    'stage': 'base',
    'parameters': trees.size(weights),
    'pieces': pieces,
    'steps': {name: getattr(phases, f'{name}_steps') for name in PHASES},
    'artefact': str(folder),
  }
  artefacts.write_summary(space.folder, summary)
  return summary


def _phase(
  settings: BaseRun, space: Workspace, name, steps, trainable, frozen, loss, batch
) -> dict:
  """One phase of training from its own checkpoints; returns what was trained."""
  optimizer = optim.make_optimizer(settings.optim)
  step = jax.jit(
    supervised.make_step(
      loss, optimizer, optim.learning_rate(settings.optim, steps), 1
    ),
    donate_argnums=0,
  )
  whole = sharding.replicated(space.mesh)  # batches, too: the size is tiny
  layout = jax.tree.map(lambda _: whole, trainable)
  folder = space.folder / name
  folder.mkdir(exist_ok=True)
  known = records.identity(settings, name, total_steps=steps)
  later = PHASES[PHASES.index(name.removesuffix('s')) + 1 :]
  later = tuple(f'base_run.{phase}_' for phase in later)  # a phase is done without them
  known = {key: value for key, value in known.items() if not key.startswith(later)}
  checkpointer = Checkpointer(folder, settings.checkpoint, known)
  initial = layouts.start(trainable, layout, optimizer, settings.seed, space.mesh)
  report.layout(folder / 'layout.txt', {'frozen': frozen, 'trained': initial})
  state = loop.fit(
    lambda state, batch: step(state, frozen, batch),
    initial,
    lambda first: batches.prefetch(
      lambda number: sharding.put(batch(number), whole), range(first, steps)
    ),
    steps,
    title=f'base: {name}',
    folder=folder,
    checkpointer=checkpointer,
    log=settings.log,
  )
  checkpointer.close()
  return state.trainable


def _init_text(pair: clip.Clip, cfg, key) -> dict:
  """The text tower and the temperature of CLIP's loss."""
  size = cfg.vision.image_size
  variables = pair.init(key, jnp.zeros((1, size, size, 3)), jnp.ones((1, 4), jnp.int32))
  params = meta.unbox(variables)['params']
  return {'text': params['text'], 'logit_scale': params['logit_scale']}


# ---------------------------------------------------------------- losses


def tower_loss(model: Vlm, pair: clip.Clip, settings: BaseRun, trainable, batch, key):
  """CLIP's symmetric loss, and attributes read off the pooled token of one picture."""
  pixels = _pixels(batch['faces'], settings, key)
  features = vlm.see(model, {'tower': trainable['tower']}, pixels)
  pooled = vlm.project(model, {'projector': trainable['projector']}, features[:, None])
  named, metrics = probe_loss(trainable['probe'], pooled[:, 0], batch['attributes'])
  count = batch['captions'].shape[0]
  params = {
    'vision': trainable['tower'],
    'text': trainable['text'],
    'logit_scale': trainable['logit_scale'],
  }
  similarity = pair.apply({'params': params}, pixels[:count], batch['captions'])
  contrast = clip_loss(similarity)
  metrics['contrast'] = contrast
  return named + settings.base_run.contrastive * contrast, metrics


def clip_loss(similarity):
  """Mean cross-entropy of picture -> text and text -> picture; matches are diagonal."""
  by_row = jnp.diag(jax.nn.log_softmax(similarity, axis=1))
  by_column = jnp.diag(jax.nn.log_softmax(similarity, axis=0))
  return -0.5 * (jnp.mean(by_row) + jnp.mean(by_column))


def probe_loss(probe, token, attributes):
  """How well each color's presence, shape and place can be read off a token, linearly.

  Args:
    token: `[B, D]`; attributes: `float32[B, colors, 4]`: there, shape, x, y in [0, 1].
  """
  read = token @ probe['w'] + probe['b'][None]
  read = read.reshape(token.shape[0], len(COLORS), FIELDS)
  there = attributes[..., 0]
  count = jnp.maximum(jnp.sum(there), 1)
  shape = attributes[..., 1].astype(jnp.int32)
  presence = jnp.mean(optax.sigmoid_binary_cross_entropy(read[..., 0], there))
  shapes = optax.softmax_cross_entropy_with_integer_labels(read[..., 1:-2], shape)
  away = jnp.sum(jnp.square(read[..., -2:] - 4 * attributes[..., 2:]), axis=-1)
  shapes, away = (jnp.sum(x * there) / count for x in (shapes, away))
  right = jnp.sum((jnp.argmax(read[..., 1:-2], -1) == shape) * there) / count
  pixels = scenes.CANVAS / 4 * jnp.sqrt(away / 2)
  return presence + shapes + away, {'shape_accuracy': right, 'pixels_off': pixels}


def talk_loss(model: Vlm, settings: BaseRun, trainable, frozen, batch, key):
  """Answer loss of every task in the batch; the pooled tokens stay readable."""
  params = {'llama': trainable['llama'], 'projector': trainable['projector']}
  total, metrics = jnp.zeros(()), {}
  for number, (name, task) in enumerate(sorted(batch.items())):
    ids, target = task['ids'], task['target']
    visual = jnp.zeros((ids.shape[0], 1, model.cfg.llama.width))
    if 'frames' in task:
      frames = task['frames']
      pixels = _pixels(
        frames.reshape(-1, *frames.shape[2:]), settings, jax.random.fold_in(key, number)
      )
      features = jax.lax.stop_gradient(vlm.see(model, frozen, pixels))
      features = features.reshape(*frames.shape[:2], *features.shape[1:])
      visual = vlm.project(model, params, features)
      if 'attributes' in task:
        named, _ = probe_loss(trainable['probe'], visual[:, 0], task['attributes'])
        total += 0.3 * named
      if name.startswith('bare'):  # temporal tokens alone
        visual = visual[:, : frames.shape[1]]
    logp = supervised.answer_log_probabilities(
      model, {'params': params}, ids, ids != 0, visual
    )
    metrics[name] = likelihood.cross_entropy(logp, target[:, 1:])
    total += metrics[name] * WEIGHTS.get(name, 1.0)
  return total, metrics


def _pixels(frames, settings: BaseRun, key):
  """`uint8[..., 3]` -> normalised, with a little noise."""
  x = encode.normalise(frames)
  return x + settings.base_run.noise * jax.random.normal(key, x.shape)


# ---------------------------------------------------------------- batches


@dataclasses.dataclass(frozen=True)
class _Talk:
  """Makes batch number n of a phase, the same whenever it is asked for."""

  tokenizer: tokens.Tokenizer
  settings: BaseRun

  def faces(self, number: int) -> dict:
    """Single pictures with attributes, and captions for half of them."""
    rng = np.random.default_rng([self.settings.seed, 11, number])
    size = self.settings.base_run.tower_batch
    made = [stills.sample_picture(rng) for _ in range(size)]
    captions = [
      [*self.tokenizer.pieces(picture.caption), self.tokenizer.eos]
      for picture in made[: size // 2]
    ]
    length = self.settings.model.text.context
    return {
      'faces': np.stack([picture.frame for picture in made]),
      'attributes': np.stack([attributes(picture) for picture in made]),
      'captions': tokens.pad([c[:length] for c in captions], length, 'right'),
    }

  def pictures(self, number: int) -> dict:
    rng = np.random.default_rng([self.settings.seed, 12, number])
    size = self.settings.base_run.picture_batch
    return {
      'bare_single': self._album(rng, 1, size, bare=True),
      'bare_album': self._album(rng, 4, size, bare=True),
    }

  def mixed(self, number: int) -> dict:
    rng = np.random.default_rng([self.settings.seed, 13, number])
    size = self.settings.base_run.mixed_batch
    rounds = [stills.sample_text(rng) for _ in range(2 * size)]
    return {
      'single': self._album(rng, 1, size),
      'album': self._album(rng, 4, size // 2),
      'long_album': self._album(rng, 12, size // 2),
      'text': self._encode(rounds, LENGTHS[0], video=False),
    }

  def strips(self, number: int) -> dict:
    rng = np.random.default_rng([self.settings.seed, 14, number])
    size = self.settings.base_run.strip_batch
    rounds = [stills.sample_text(rng) for _ in range(max(size // 5 * 2, 1))]
    return {
      'single': self._album(rng, 1, max(size // 4, 1)),
      'strip': self._strip(rng, 12, size),
      'part': self._strip(rng, 4, max(size // 2, 1), part=True),
      'text': self._encode(rounds, LENGTHS[0], video=False),
    }

  def _strip(self, rng, pictures: int, size: int, part: bool = False) -> dict:
    made = [stills.sample_strip(rng, pictures, part) for _ in range(size)]
    task = self._encode([rounds for _, rounds in made], STRIP_LENGTHS[pictures])
    return {**task, 'frames': np.stack([frames for frames, _ in made])}

  def _album(self, rng, pictures: int, size: int, bare: bool = False) -> dict:
    made = [stills.sample_album(rng, pictures) for _ in range(size)]
    length = (BARE_LENGTHS if bare else LENGTHS)[pictures]
    task = self._encode([a.rounds for a in made], length, bare=bare)
    task['frames'] = np.stack([a.frames for a in made])
    if pictures == 1:
      task['attributes'] = np.stack([attributes(a.first) for a in made])
    return task

  def _encode(
    self, rounds, length: int, video: bool = True, bare: bool = False
  ) -> dict:
    """Ids and targets; bare: without the words before the video."""
    ids, target = [], []
    for one in rounds:
      encoded = tokens.encode_conversation(self.tokenizer, one, video=video)
      start = int(np.argmax(encoded.ids == VIDEO)) if bare else 0
      keep = (
        np.r_[0:1, start : len(encoded.ids)] if start else np.arange(len(encoded.ids))
      )
      ids.append(encoded.ids[keep][:length])
      target.append(encoded.target[keep][:length])
    return {
      'ids': tokens.pad(ids, length, 'right'),
      'target': tokens.pad(target, length, 'right', False),
    }


def attributes(picture: stills.Picture) -> np.ndarray:
  """`float32[colors, 4]`: there, index of the shape, x and y in [0, 1]."""
  table = np.zeros((len(COLORS), 4), np.float32)
  for (color, shape), centre in zip(picture.objects, picture.centres, strict=True):
    table[COLORS.index(color)] = [
      1, SHAPES.index(shape), centre[0] / scenes.CANVAS, centre[1] / scenes.CANVAS
    ]  # fmt: skip
  return table
