"""Pretrains a small base, which stands in for CLIP and an image-text model.

    tower      CLIP's contrastive loss, and naming attributes from one pooled token
    lists      the language model learns to say what is shown and how it differs along
               stills taken one after another, and to read: many facts an answer
    questions  the same by short questions, and judging answers
    forms      texts, by all the forms of questions of the world

In all but the first, a linear probe also reads what every object of a strip does off
the states of the visual tokens halfway up the language model, so pictures are compared
before the first word of an answer. Without it, the words alone teach that many times
more slowly. Tower and projector are frozen after the first phase, so images are encoded
once and asked about many times. The real sizes start from released weights
(`launch.convert`).

With `config.base=random`, all of that. With a base, as the size `small` has it, the
network is grown from that one (`weights.growth`): its tower sees as before, its larger
language model says as before, and only the last two phases follow.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import meta

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.data import batches, tokens
from vlm_rlaif_jax.data.world import lessons, vocabulary
from vlm_rlaif_jax.data.world.lessons import COLORS, FIELDS
from vlm_rlaif_jax.nn import clip, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.pretrain import PretrainRun
from vlm_rlaif_jax.settings.stage import RANDOM
from vlm_rlaif_jax.train import (
  console,
  journal,
  loop,
  optim,
  pretraining,
  shardings,
  supervised,
)
from vlm_rlaif_jax.train.checkpointer import Checkpointer
from vlm_rlaif_jax.train.profiling.profiler import Profiler
from vlm_rlaif_jax.train.run_context import RunContext
from vlm_rlaif_jax.weights import (
  artifacts,
  bases,
  growth,
  model_config,
  network_files,
  network_shapes,
)

PROVENANCE = 'made.json'  # in the artifact: the settings that made which weights
PHASES = ('tower', 'lists', 'questions', 'forms')
GROWN = PHASES[2:]  # of a network that is grown from a base


def run(settings: PretrainRun, workdir: str | pathlib.Path) -> dict:
  """Pretrains; leaves a base folder (weights, sizes, tokenizer) as its artifact."""
  run = RunContext(settings, workdir, reads_data=False)
  if settings.checkpoint.on_change == 'restart':  # each phase drops its own checkpoints
    artifacts.drop_summary(run.folder)
  model = Vlm(settings.model)
  start = _from_nothing if settings.base == RANDOM else _from_base
  vision, trained, tokenizer, tokenizer_files = start(settings, run, model)

  # Visual tokens, once.
  frozen = {name: vision[name] for name in ('tower', 'projector')}
  encode = image_encoder(model, settings, frozen)
  progress = functools.partial(_progress, settings)
  sampler = lessons.TextTaskSampler(
    tokenizer, settings, *lessons.encode_images(settings, encode, progress)
  )

  # The language model.
  for name in phases(settings):
    if name == 'tower':
      continue
    trained = _train_phase(
      settings,
      run,
      name,
      trained,
      lambda trainable, _, batch, key: pretraining.text_loss(
        model, settings, trainable, batch
      ),
      functools.partial(sampler.batch, name),
    )

  # Artifact.
  weights = {
    'tower': vision['tower'],
    'projector': vision['projector'],
    'llama': trained['llama'],
    'text': {**vision['text'], 'logit_scale': vision['logit_scale']},
  }
  folder = run.folder / 'artifact'
  artifacts.drop_summary(run.folder)
  _save(settings, folder, weights, tokenizer_files)
  summary = {
    'stage': 'pretrain',
    'parameters': trees.size(weights),
    'pieces': tokenizer.vocab,
    'steps': {
      name: getattr(settings.pretrain, f'{name}_steps') for name in phases(settings)
    },
    'artifact': str(folder),
  }
  artifacts.write_summary(run.folder, summary)
  return summary


def phases(settings: PretrainRun) -> tuple[str, ...]:
  """Returns the phases of a run, in their order."""
  return PHASES if settings.base == RANDOM else GROWN


Start = tuple[dict[str, Any], dict[str, Any], tokens.Tokenizer, list[pathlib.Path]]


def _from_nothing(settings: PretrainRun, run: RunContext, model: Vlm) -> Start:
  """Returns what the language model's phases start from, after the first phase.

  Returns:
    tower, projector, text, logit_scale; llama, linear_probe; the tokenizer; its files.
  """
  cfg = settings.model

  # Tokenizer.
  folder = run.folder / 'tokenizer'
  vocabulary.train(folder, cfg.llama.vocab)
  tokenizer = tokens.load_tokenizer(folder)

  # Tower and projector.
  pair = clip.Clip(cfg.vision, cfg.text, cfg.joint)
  vision, language = _initial(settings, pair)
  vision = _train_phase(
    settings,
    run,
    'tower',
    vision,
    lambda trainable, _, batch, key: pretraining.tower_loss(
      model, pair, settings, trainable, batch, key
    ),
    lambda number: lessons.tower_batch(tokenizer, settings, number),
  )
  return vision, language, tokenizer, list(folder.iterdir())


def _from_base(settings: PretrainRun, run: RunContext, model: Vlm) -> Start:
  """Returns what `_from_nothing` does, of a base that becomes a larger network."""
  del run
  cfg, folder = model.cfg, bases.base_folder(settings.base)
  small = model_config.read_model_json(folder / 'model.json')
  base = bases.load(settings.base, small)
  grown = growth.grow(base.params, small, cfg, settings.seed)
  arrays = bases.read_arrays(bases.weight_files(settings.base, small))
  towers = {
    name: leaf.astype(np.float32)
    for name, leaf in arrays.items()
    if name.startswith(('tower/', 'text/'))
  }
  vision = {**trees.unflatten(towers), 'projector': grown['projector']}
  vision['logit_scale'] = vision['text'].pop('logit_scale')
  key = jax.random.key(settings.seed)
  probe = pretraining.init_motion_probe(cfg.llama.width, key)
  llama = jax.tree.map(jnp.asarray, grown['llama'])
  own = [path for path in folder.iterdir() if path.name in network_files.TOKENIZER]
  return vision, {'llama': llama, 'linear_probe': probe}, base.tokenizer, own


def _train_phase(
  settings: PretrainRun,
  run: RunContext,
  name: str,
  trainable: dict[str, Any],
  loss: Callable,
  batch: Callable[[int], dict],
) -> dict[str, Any]:
  """Trains one phase, from its own checkpoints; returns the weights."""
  # Optimizer.
  steps = getattr(settings.pretrain, f'{name}_steps')
  peak = getattr(settings.pretrain, f'{name}_rate', settings.optim.learning_rate)
  schedule = dataclasses.replace(settings.optim, learning_rate=peak)
  rate = optim.learning_rate(schedule, steps)
  optimizer = optim.make_muon(settings.optim)
  step = jax.jit(supervised.make_step(loss, optimizer, rate, 1), donate_argnums=0)
  replicated = sharding.replicated(run.mesh)  # batches, too: the size is tiny
  layout = jax.tree.map(lambda _: replicated, trainable)

  # Checkpoints. A phase stays valid when settings of later phases change.
  folder = run.folder / name
  folder.mkdir(exist_ok=True)
  identity = journal.identity(
    settings, name, total_steps=steps, **pretraining.grown_from(settings)
  )
  later = tuple(f'pretrain.{phase}_' for phase in PHASES[PHASES.index(name) + 1 :])
  identity = {key: identity[key] for key in identity if not key.startswith(later)}
  checkpointer = Checkpointer(folder, settings.checkpoint, identity)

  # Training.
  initial = shardings.start(trainable, layout, optimizer, settings.seed, run.mesh)
  console.write_sharding_table(folder / 'layout.txt', {'trained': initial})
  state = loop.fit(
    lambda state, batch: step(state, {}, batch),
    initial,
    lambda first: batches.prefetch(
      lambda number: sharding.put(batch(number), replicated), range(first, steps)
    ),
    steps,
    title=f'pretrain: {name}',
    folder=folder,
    checkpointer=checkpointer,
    log=settings.log,
    profiler=Profiler(settings.profile, folder, []),
  )
  checkpointer.close()
  return state.trainable


def image_encoder(model: Vlm, settings: PretrainRun, params: Any) -> lessons.Encode:
  """Returns a function from chunks of pictures to visual tokens `float16[B, F + P, D]`.

  Args:
    params: tower, projector.
  """

  @jax.jit
  def encode_chunk(params: Any, frames: jax.Array, key: jax.Array) -> jax.Array:
    flat = frames.reshape(-1, *frames.shape[2:])
    pixels = pretraining.noisy_pixels(flat, settings, key)
    patches = vlm.patch_features(model, params, pixels)
    patches = patches.reshape(*frames.shape[:2], *patches.shape[1:])
    return vlm.project(model, params, patches).astype(jnp.float16)

  def encode(kind: int, number: int, frames: np.ndarray) -> np.ndarray:
    key = jax.random.fold_in(jax.random.key(settings.seed), kind)
    return np.asarray(encode_chunk(params, frames, jax.random.fold_in(key, number)))

  return encode


def _progress(settings: PretrainRun, numbers: range, title: str):
  return loop.progress(numbers, len(numbers), title, settings.log, 'batch')


# ---------------------------------------------------------------- initial weights


def _initial(settings: PretrainRun, pair: clip.Clip) -> tuple[dict, dict]:
  """Returns what the first phase trains, and what the others do.

  The gradient norm is a sum over leaves in the order of their names: others give other
  bits.
  """
  cfg = settings.model
  root = jax.random.key(settings.seed)
  keys = iter(jax.random.split(root, 5))
  params = fan_in(network_shapes.init(cfg, root), next(keys))
  text = _init_text(pair, cfg, next(keys))
  probe = {
    'w': 0.05 * jax.random.normal(next(keys), (cfg.llama.width, len(COLORS) * FIELDS)),
    'b': jnp.zeros(len(COLORS) * FIELDS),
  }
  vision = {
    'tower': params['tower'],
    'projector': params['projector'],
    'probe': probe,
    'text': fan_in(text['text'], next(keys)),
    'logit_scale': text['logit_scale'],
  }
  linear_probe = pretraining.init_motion_probe(cfg.llama.width, next(keys))
  return vision, {'llama': params['llama'], 'linear_probe': linear_probe}


def _init_text(pair: clip.Clip, cfg: VlmConfig, key: jax.Array) -> dict[str, Any]:
  """Returns the text tower and the temperature of CLIP's loss."""
  size = cfg.vision.image_size
  variables = pair.init(key, jnp.zeros((1, size, size, 3)), jnp.ones((1, 4), jnp.int32))
  params = meta.unbox(variables)['params']
  return {'text': params['text'], 'logit_scale': params['logit_scale']}


def fan_in(params: Any, key: jax.Array) -> Any:
  """Returns new matrices, normal with variance 1 / inputs (LeCun et al. 1998).

  The networks' own 0.02 is for widths of thousands. Matrices that write to the residual
  stream, and the head, are 0.3 times as large; embeddings enter at 0.5.
  """

  def init_leaf(number: int, name: str, leaf: jax.Array) -> jax.Array:
    *_, owner, kind = name.split('/')
    if owner == 'tokens':
      return leaf * (0.5 / 0.02)
    if kind != 'w' or leaf.ndim < 2 or owner == 'positions':
      return leaf
    scale = leaf.shape[-1] ** -0.5 * (0.3 if owner in ('o', 'down', 'head') else 1.0)
    return scale * jax.random.normal(jax.random.fold_in(key, number), leaf.shape)

  leaves = trees.flatten(params)
  return trees.unflatten(
    {name: init_leaf(i, name, leaf) for i, (name, leaf) in enumerate(leaves.items())}
  )


# ---------------------------------------------------------------- the artifact


def _save(
  settings: PretrainRun,
  folder: pathlib.Path,
  weights: dict[str, Any],
  tokenizer_files: Sequence[pathlib.Path],
) -> None:
  """Writes the base folder: float16 weights, sizes, tokenizer and provenance."""
  weights = jax.tree.map(lambda x: np.asarray(x, np.float16), jax.device_get(weights))
  shutil.rmtree(folder, ignore_errors=True)
  bases.save(folder, weights, settings.model, settings.data.aspect, own_tower=True)
  for file in tokenizer_files:
    shutil.copy(file, folder / file.name)
  record = {'weights': bases.fingerprint(folder), **provenance(settings)}
  (folder / PROVENANCE).write_text(json.dumps(record, indent=1) + '\n')


def provenance(settings: PretrainRun) -> dict[str, Any]:
  """Returns what decides the weights of a base; it is written beside them."""
  identity = journal.identity(settings, '')
  own = ('model.', 'optim.', 'pretrain.')
  deciding = {name: identity[name] for name in identity if name.startswith(own)}
  grown = pretraining.grown_from(settings)
  return {'jax': jax.__version__, 'seed': settings.seed, **grown, **deciding}
