"""The tiny base: what stands in for CLIP and an image-text model, from still pictures.

    tower      CLIP's contrastive loss, and naming attributes from one pooled token
    lists      the language model learns to say what is there and how it differs along
               stills taken one after another, and to read: many facts an answer
    questions  the same by short questions, and judging what is said
    forms      texts, by all the questions that the world knows

In all but the first, what every object of a strip does is also read off the states of
the visual tokens halfway up the language model, linearly: pictures are compared before
a word is said. Without that, the words alone teach it many times more slowly. Tower and
projector are frozen after the first phase, so pictures are looked at once and asked
about many times. The real sizes start from released weights (`launch.convert`).
"""

import dataclasses
import functools
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.data import batches, tokens
from vlm_rlaif_jax.data.world import lessons, stills, vocabulary
from vlm_rlaif_jax.data.world import scene as scenes
from vlm_rlaif_jax.data.world.lessons import COLORS, COURSES, FIELDS
from vlm_rlaif_jax.inference import features
from vlm_rlaif_jax.nn import clip, vlm
from vlm_rlaif_jax.nn.vlm import VIDEO, Vlm
from vlm_rlaif_jax.settings.pretrain import PretrainRun
from vlm_rlaif_jax.train import console, journal, loop, optim, shardings, supervised
from vlm_rlaif_jax.train.checkpoint import Checkpointer
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import artifacts, bases, network_shapes

MADE = 'made.json'  # in the artifact: the settings that made which weights
PHASES = ('tower', 'lists', 'questions', 'forms')


def run(settings: PretrainRun, workdir: str | pathlib.Path) -> dict:
  """Pretrains; leaves a base folder (weights, sizes, tokenizer) as its artifact."""
  space = RunContext(settings, workdir, reads_data=False)
  cfg, phases = settings.model, settings.pretrain
  folder = space.folder / 'artifact'
  words = space.folder / 'tokenizer'
  pieces = vocabulary.train(words, cfg.llama.vocab)
  tokenizer = tokens.load_tokenizer(words)
  model = Vlm(cfg)

  root = jax.random.key(settings.seed)
  keys = iter(jax.random.split(root, 5))
  pair = clip.Clip(cfg.vision, cfg.text, cfg.joint)
  params = fan_in(network_shapes.init(cfg, root), next(keys))
  text = _init_text(pair, cfg, next(keys))
  probe = {
    'w': 0.05 * jax.random.normal(next(keys), (cfg.llama.width, len(COLORS) * FIELDS)),
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
      'text': fan_in(text['text'], next(keys)),
      'logit_scale': text['logit_scale'],
    },
    lambda t, _, batch, key: tower_loss(model, pair, settings, t, batch, key),
    lambda number: lessons.faces(tokenizer, settings, number),
  )
  frozen = {name: seen[name] for name in ('tower', 'projector')}
  talk = lessons.Talk(
    tokenizer,
    settings,
    *lessons.look(
      settings, seer(model, settings, frozen), functools.partial(_bar, settings)
    ),
  )
  courses = courses_probe(cfg.llama.width, next(keys))
  trained = {'llama': params['llama'], 'courses': courses}
  for name in PHASES[1:]:
    trained = _phase(
      settings,
      space,
      name,
      trained,
      lambda t, _, batch, key: talk_loss(model, settings, t, batch),
      functools.partial(talk.batch, name),
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
  made = {'weights': bases.fingerprint(folder), **made_by(settings)}
  (folder / MADE).write_text(json.dumps(made, indent=1) + '\n')
  summary = {
    'stage': 'pretrain',
    'parameters': trees.size(weights),
    'pieces': pieces,
    'steps': {name: getattr(phases, f'{name}_steps') for name in PHASES},
    'artifact': str(folder),
  }
  artifacts.write_summary(space.folder, summary)
  return summary


def made_by(settings: PretrainRun) -> dict:
  """What decides the weights of a base, as it is written beside them."""
  known = journal.identity(settings, '')
  own = ('model.', 'optim.', 'pretrain.')
  kept = {name: known[name] for name in known if name.startswith(own)}
  return {'jax': jax.__version__, 'seed': settings.seed, **kept}


def _phase(
  settings: PretrainRun, space: RunContext, name, trainable, loss, batch
) -> dict:
  """One phase of training from its own checkpoints; returns what was trained."""
  steps = getattr(settings.pretrain, f'{name}_steps')
  peak = getattr(settings.pretrain, f'{name}_rate', settings.optim.learning_rate)
  schedule = dataclasses.replace(settings.optim, learning_rate=peak)
  rate = optim.learning_rate(schedule, steps)
  optimizer = optim.make_muon(settings.optim)
  step = jax.jit(supervised.make_step(loss, optimizer, rate, 1), donate_argnums=0)
  whole = sharding.replicated(space.mesh)  # batches, too: the size is tiny
  layout = jax.tree.map(lambda _: whole, trainable)
  folder = space.folder / name
  folder.mkdir(exist_ok=True)
  known = journal.identity(settings, name, total_steps=steps)
  # A phase is done without the settings of later ones.
  later = tuple(f'pretrain.{phase}_' for phase in PHASES[PHASES.index(name) + 1 :])
  known = {key: value for key, value in known.items() if not key.startswith(later)}
  checkpointer = Checkpointer(folder, settings.checkpoint, known)
  initial = shardings.start(trainable, layout, optimizer, settings.seed, space.mesh)
  console.write_sharding_table(folder / 'layout.txt', {'trained': initial})
  state = loop.fit(
    lambda state, batch: step(state, {}, batch),
    initial,
    lambda first: batches.prefetch(
      lambda number: sharding.put(batch(number), whole), range(first, steps)
    ),
    steps,
    title=f'base: {name}',
    folder=folder,
    checkpointer=checkpointer,
    log=settings.log,
    profiler=Profiler(settings.profile, folder, []),
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


def tower_loss(
  model: Vlm, pair: clip.Clip, settings: PretrainRun, trainable, batch, key
):
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
  return named + settings.pretrain.contrastive * contrast, metrics


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
  return presence + shapes + away, {
    'shape_accuracy': right,
    'pixels_off': pixels,
  }


def courses_probe(width: int, key) -> dict:
  """Linear maps from the state of a visual token to what each color does, and where."""
  draw = lambda key, outputs: {
    'w': 0.05 * jax.random.normal(key, (width, outputs)),
    'b': jnp.zeros(outputs),
  }
  does, moves = jax.random.split(key)
  return {
    'does': draw(does, len(COLORS) * COURSES),
    'moves': draw(moves, len(COLORS) * 2),
  }


def courses_loss(model: Vlm, trainable, task, scale: float):
  """How well what each object does can be read off the visual tokens of a strip.

  Of the last picture of a phase, what it does there (this counts `scale` times); of
  every picture, how far it has moved since the one before. The states are those of the
  lower half of the layers, after the final norm.
  """
  cfg = model.cfg
  depth = max(1, cfg.llama.layers // 2)
  lower = Vlm(
    dataclasses.replace(cfg, llama=dataclasses.replace(cfg.llama, layers=depth))
  )
  llama = trainable['llama']
  layers = jax.tree.map(lambda leaf: leaf[:depth], llama['layers'])
  visual = task['visual'][:, : stills.STRIP].astype(jnp.float32)
  size = visual.shape[0]
  ids = task['ids'][:, :1]  # <s>
  ids = jnp.concatenate([ids, jnp.full_like(ids, VIDEO)], axis=1)
  states, _, _ = vlm.hidden(
    lower, {'params': {'llama': {**llama, 'layers': layers}}}, ids, ids != 0, visual
  )
  read = lambda states, probe: states @ probe['w'] + probe['b'][None, None]
  states = states[:, 1:]
  each = stills.STRIP // scenes.PHASES
  does = read(states[:, each - 1 :: each], trainable['courses']['does'])
  does = does.reshape(size, scenes.PHASES, len(COLORS), COURSES)
  there = task['does'] >= 0
  wrong = optax.softmax_cross_entropy_with_integer_labels(
    does, jnp.maximum(task['does'], 0)
  )
  count = jnp.maximum(jnp.sum(there), 1)
  wrong = jnp.sum(wrong * there) / count
  right = jnp.sum((jnp.argmax(does, -1) == task['does']) & there) / count
  moves = read(states, trainable['courses']['moves'])
  moves = moves.reshape(*states.shape[:2], len(COLORS), 2)
  seen = task['moves'][..., :1]
  off = jnp.sum(jnp.square(moves - task['moves'][..., 1:]) * seen)
  off /= jnp.maximum(jnp.sum(seen), 1)
  return scale * wrong + off, {'course_accuracy': right, 'moves_off': off}


def talk_loss(model: Vlm, settings: PretrainRun, trainable, batch):
  """Answer loss of every task in the batch, "Yes" and "No" weighing more."""
  params = {'llama': trainable['llama']}
  judged = settings.pretrain.judged
  total, metrics = jnp.zeros(()), {}
  for name, task in sorted(batch.items()):
    ids, weight = task['ids'], task['weight'][:, 1:]
    visual = jnp.zeros((ids.shape[0], 1, model.cfg.llama.width))
    if 'visual' in task:
      visual = task['visual'].astype(jnp.float32)
    if 'does' in task:
      loss, read = courses_loss(model, trainable, task, settings.pretrain.courses)
      metrics |= read
      total += loss
    logp = supervised.target_logprobs(model, {'params': params}, ids, ids != 0, visual)
    mean = lambda logp, w: -jnp.sum(logp * w) / jnp.maximum(jnp.sum(w), 1)
    metrics[name] = mean(logp, weight)
    if name != 'part':  # nothing is judged there
      metrics[f'{name}_judged'] = mean(logp, weight == judged)
    total += metrics[name]
  return total, metrics


def seer(model: Vlm, settings: PretrainRun, params):
  """Chunks of pictures -> their visual tokens `float16[B, F + P, D]`."""

  @jax.jit
  def see(params, frames, key):
    pixels = _pixels(frames.reshape(-1, *frames.shape[2:]), settings, key)
    features = vlm.see(model, params, pixels)
    features = features.reshape(*frames.shape[:2], *features.shape[1:])
    return vlm.project(model, params, features).astype(jnp.float16)

  def of_chunk(kind: int, number: int, frames):
    key = jax.random.fold_in(jax.random.key(settings.seed), kind)
    return np.asarray(see(params, frames, jax.random.fold_in(key, number)))

  return of_chunk


def _bar(settings: PretrainRun, numbers: range, title: str):
  return loop.progress(numbers, len(numbers), title, settings.log, 'batch')


def _pixels(frames, settings: PretrainRun, key):
  """`uint8[..., 3]` -> normalized, with a little noise."""
  x = features.normalize(frames)
  return x + settings.pretrain.noise * jax.random.normal(key, x.shape)
