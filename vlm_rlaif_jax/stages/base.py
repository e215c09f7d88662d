"""The tiny base: what stands in for CLIP and an image-text model, from still pictures.

    tower      CLIP's contrastive loss, and naming attributes from one pooled token
    pictures   the language model learns to say what is there, and to read
    strips     how objects differ along stills taken one after another, and texts

Each of the last two begins with one object at a time: what it does can be said without
finding it by its name, and that is learned several times sooner after the rest than
together with it. Tower and projector are frozen after the first phase. The real sizes
start from released weights instead (`launch.convert`).
"""

import dataclasses
import json
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
LENGTHS = {  # text of a sample; bare: without the words before the picture
  'bare_still': 104, 'bare_album': 120, 'still': 144, 'album': 152, 'part': 88,
  'strip': 208, 'text': 224, 'short_strip': 128, 'short_text': 160,
}  # fmt: skip
MADE = 'made.json'  # in the artefact: the settings that it was made with
PHASES = ('tower', 'pictures', 'strips')


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
  pair = clip.Clip(cfg.vision, cfg.text, cfg.joint)
  text = _init_text(pair, cfg, key)
  params = fan_in(bases.init(cfg, key), key)
  probe = {
    'w': 0.05 * jax.random.normal(key, (cfg.llama.width, len(COLORS) * FIELDS)),
    'b': jnp.zeros(len(COLORS) * FIELDS),
  }
  seen = _phase(
    settings,
    space,
    'tower',
    {
      'tower': params['tower'],
      'projector': params['projector'],
      'probe': probe,
      'text': fan_in(text['text'], key),
      'logit_scale': text['logit_scale'],
    },
    {},
    lambda t, _, batch, key: tower_loss(model, pair, settings, t, batch, key),
    talk.faces,
  )
  frozen = {name: seen[name] for name in ('tower', 'projector')}
  trained = {'llama': params['llama']}
  for name, batch in (('pictures', talk.pictures), ('strips', talk.strips)):
    trained = _phase(
      settings,
      space,
      name,
      trained,
      frozen,
      lambda t, b, batch, key: talk_loss(model, settings, t, b, batch, key),
      batch,
    )
  weights = {
    'tower': seen['tower'],
    'projector': seen['projector'],
    'llama': trained['llama'],
    'text': {**seen['text'], 'logit_scale': seen['logit_scale']},
  }
  weights = jax.tree.map(lambda x: np.asarray(x, np.float16), jax.device_get(weights))
  shutil.rmtree(folder, ignore_errors=True)
  bases.save(folder, weights, cfg)
  for file in words.iterdir():
    shutil.copy(file, folder / file.name)
  (folder / MADE).write_text(json.dumps(made_by(settings), indent=1) + '\n')
  summary = {
    'stage': 'base',
    'parameters': trees.size(weights),
    'pieces': pieces,
    'steps': {name: getattr(phases, f'{name}_steps') for name in PHASES},
    'artefact': str(folder),
  }
  artefacts.write_summary(space.folder, summary)
  return summary


def made_by(settings: BaseRun) -> dict:
  """What a base is made by, as it is written beside its weights."""
  return records.identity(settings, '', jax=jax.__version__)


def _phase(
  settings: BaseRun, space: Workspace, name, trainable, frozen, loss, batch
) -> dict:
  """One phase of training from its own checkpoints; returns what was trained."""
  steps = getattr(settings.base_run, f'{name}_steps')
  peak = getattr(settings.base_run, f'{name}_rate', settings.optim.learning_rate)
  rate = optim.learning_rate(
    dataclasses.replace(settings.optim, learning_rate=peak), steps
  )
  optimizer = optim.make_muon(settings.optim)
  step = jax.jit(supervised.make_step(loss, optimizer, rate, 1), donate_argnums=0)
  whole = sharding.replicated(space.mesh)  # batches, too: the size is tiny
  layout = jax.tree.map(lambda _: whole, trainable)
  folder = space.folder / name
  folder.mkdir(exist_ok=True)
  known = records.identity(settings, name, total_steps=steps)
  # A phase is done without the settings of later ones.
  later = tuple(f'base_run.{phase}_' for phase in PHASES[PHASES.index(name) + 1 :])
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


def fan_in(params, key):
  """Matrices anew, normal with variance 1 / inputs (LeCun et al. 1998), by name.

  The networks' own 0.02 is for widths of thousands. Matrices that write to the residual
  stream, and the head, are made 0.3 times as large; embeddings enter at 0.5.
  """

  def draw(number, name, leaf):
    *_, owner, kind = name.split('/')
    if owner == 'tokens':
      return leaf * (0.5 / 0.02)
    if kind != 'w' or leaf.ndim < 2 or owner == 'positions':
      return leaf
    scale = leaf.shape[-1] ** -0.5 * (0.3 if owner in ('o', 'down', 'head') else 1.0)
    return scale * jax.random.normal(jax.random.fold_in(key, number), leaf.shape)

  leaves = trees.flatten(params)
  return trees.unflatten(
    {name: draw(i, name, leaf) for i, (name, leaf) in enumerate(leaves.items())}
  )


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
  """Answer loss of every task in the batch, "Yes" and "No" weighing more."""
  params = {**frozen, **trainable}
  total, metrics = jnp.zeros(()), {}
  for number, (name, task) in enumerate(sorted(batch.items())):
    ids, weight = task['ids'], task['weight'][:, 1:]
    visual = jnp.zeros((ids.shape[0], 1, model.cfg.llama.width))
    if 'frames' in task:
      frames = task['frames']
      pixels = _pixels(
        frames.reshape(-1, *frames.shape[2:]), settings, jax.random.fold_in(key, number)
      )
      features = vlm.see(model, params, pixels)
      features = features.reshape(*frames.shape[:2], *features.shape[1:])
      visual = vlm.project(model, params, features)
      if name.startswith('bare'):  # what is pooled has to be read, too
        visual = visual[:, : frames.shape[1]]
    logp = supervised.answer_log_probabilities(
      model, {'params': params}, ids, ids != 0, visual
    )
    mean = lambda logp, w: -jnp.sum(logp * w) / jnp.maximum(jnp.sum(w), 1)
    metrics[name] = mean(logp, weight)
    if 'part' not in name and 'album' not in name:
      metrics[f'{name}_judged'] = mean(logp, weight == settings.base_run.judged)
    total += metrics[name]
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
    phases = self.settings.base_run
    objects = int(number < phases.pictures_steps * phases.pictures_alone)
    size = phases.pictures_batch
    albums = [stills.sample_album(rng, 4, objects) for _ in range(size)]
    return {
      'bare_still': self._stills(rng, size, 'bare_still', objects),
      'bare_album': self._shown(albums, 'bare_album'),
    }

  def strips(self, number: int) -> dict:
    rng = np.random.default_rng([self.settings.seed, 14, number])
    phases = self.settings.base_run
    objects = int(number < phases.strips_steps * phases.strips_alone)
    size, few = phases.strips_batch, -(-phases.strips_batch // 3)
    strip = lambda: stills.sample_strip(
      rng, 12, looks=phases.strips_looks, objects=objects
    )
    short = 'short_' if objects else ''
    return {
      'still': self._stills(rng, few, 'still'),
      'album': self._shown(
        [stills.sample_album(rng, 4) for _ in range(2 * few)], 'album'
      ),
      'part': self._shown(
        [stills.sample_strip(rng, 4, part=True) for _ in range(few)], 'part'
      ),
      'strip': self._shown([strip() for _ in range(size)], f'{short}strip'),
      'text': self._encode(
        [stills.sample_text(rng, objects) for _ in range(size)], f'{short}text'
      ),
    }

  def _stills(self, rng, size: int, name: str, objects: int = 0) -> dict:
    made = [stills.sample_still(rng, objects) for _ in range(size)]
    return self._shown([(p.frame[None], rounds) for p, rounds in made], name)

  def _shown(self, made, name: str) -> dict:
    task = self._encode([rounds for _, rounds in made], name)
    return {**task, 'frames': np.stack([frames for frames, _ in made])}

  def _encode(self, rounds, name: str) -> dict:
    """Ids, and the weights of those that are to be predicted; whole rounds that fit."""
    ids, weights, length = [], [], LENGTHS[name]
    judged = [self.tokenizer.option(word) for word in ('Yes', 'No')]
    for one in rounds:
      encoded = tokens.encode_conversation(
        self.tokenizer, one, video=not name.endswith('text')
      )
      keep = np.arange(len(encoded.ids))
      if name.startswith('bare'):
        keep = np.r_[0, np.argmax(encoded.ids == VIDEO) : len(encoded.ids)]
      kept, target = encoded.ids[keep], encoded.target[keep]
      ends = np.flatnonzero(kept[:length] == self.tokenizer.eos)
      stop = ends[-1] + 1 if len(ends) else length
      ids.append(kept[:stop])
      more = np.where(np.isin(kept, judged), self.settings.base_run.judged, 1)
      weights.append((target * more).astype(np.float32)[:stop])
    return {
      'ids': tokens.pad(ids, length, 'right'),
      'weight': tokens.pad(weights, length, 'right', 0),
    }


def attributes(picture: stills.Picture) -> np.ndarray:
  """`float32[colors, 4]`: there, index of the shape, x and y in [0, 1]."""
  table = np.zeros((len(COLORS), 4), np.float32)
  for (color, shape), centre in zip(picture.objects, picture.centres, strict=True):
    table[COLORS.index(color)] = [
      1, SHAPES.index(shape), centre[0] / scenes.CANVAS, centre[1] / scenes.CANVAS
    ]  # fmt: skip
  return table
