"""Three lines for people with a checkpoint and a video.

vlm = vlm_rlaif_jax.load('checkpoints/vlm_rlaif_video_llava_7b')
vlm.answer('clip.mp4', 'What happens?')          # text
vlm.score('clip.mp4', 'What happens?', 'A dog.')  # float, of a reward model
"""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.data import image, pairs, prompts, tokens
from vlm_rlaif_jax.data.video import Video, read_frames
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.nn import heads, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings import sections
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.weights import (
  model_config,
  placement,
  readers,
  weight_forms,
  writers,
)

FRAMES = {'tiny': 12}  # that a size was trained on; the released ones on 50
_STEP = 64  # prompts are padded to a multiple, so that few programs are compiled


class LoadError(UserError):
  """Something that was asked of a checkpoint that it cannot do."""


def load(
  path: str | pathlib.Path,
  bits: int = 16,
  dtype: str = 'bfloat16',
  *,
  base: str = '',
  sft: str = '',
  vision: str = '',
  projector: str = '',
  frames: int = 0,
  scoring: RewardPrompt | None = None,
) -> 'VideoModel':
  """Reads a checkpoint, ours or foreign: base, tokenizer, and any adapter or head.

  Args:
    path: a base folder, a stage folder such as `runs/7b/ppo`, a LLaVA folder in either
      layout, or a PEFT adapter.
    bits: of the decoder's linears: 4 holds them in NF4, quantized here unless the
      folder has them so; 16 holds them in `dtype`, unpacked if need be.
    dtype: of weights and activations: float32, bfloat16, float16.
    base: the network under an adapter or a stage, where it cannot be found.
    sft: the SFT stage under a later one, where it is not beside it.
    vision: a CLIP folder, for a LLaVA checkpoint without its tower.
    projector: a projector-only file.
    frames: sampled from a video; 0: as trained.
    scoring: `vlm_rlaif_jax.RewardPrompt(prompt='a name or file')`, the turn that a
      reward model reads after an answer; None: as its artifact records, or, for PEFT
      files, the reference's.

  Raises:
    UserError: one line on what is missing, left over, damaged or of the wrong size.
  """
  if bits not in (4, 16):
    raise LoadError(f'bits: choose 4 or 16; got {bits}')
  if dtype not in weight_forms.DTYPES:
    choices = ', '.join(weight_forms.DTYPES)
    raise LoadError(f'dtype: choose one of {choices}; got {dtype!r}')
  opened = readers.load_checkpoint(
    pathlib.Path(path),
    base=base,
    sft=sft,
    vision=vision,
    projector=projector,
    scoring=scoring,
  )
  cfg = dataclasses.replace(
    model_config.with_dtype(opened.network.cfg, dtype), remat='none'
  )
  tokenizer = tokens.load_tokenizer(opened.network.folder)
  form = weight_forms.form_of(opened.network, dtype, bits)
  params = trees.unflatten(writers.in_memory(opened.network, form))
  mesh = sharding.make_mesh(sections.MeshConfig(data=1), jax.devices()[:1])
  params = placement.on_device(params, cfg, mesh)
  lora, head = None, None
  variables = {'params': params}
  if opened.adapter is not None:
    lora = dataclasses.replace(opened.adapter.lora, dropout=0.0)
    adapter = trees.cast(trees.unflatten(opened.adapter.flat), jnp.float32)
    variables['lora'] = jax.device_put(adapter)
  if opened.head is not None:
    head = heads.ScalarHead(
      **{name: jnp.asarray(v, jnp.float32) for name, v in opened.head.items()}
    )
  return VideoModel(
    Vlm(cfg, lora),
    variables,
    tokenizer,
    frames or opened.frames or FRAMES.get(cfg.name, 50),
    head,
    opened.scoring,
    opened.aspect,
  )


class VideoModel:
  """A network that answers questions about videos.

  Args:
    variables: `{'params': base}`, and `lora` where there is an adapter.
    frames: sampled from a video.
    head: the reward head, or None.
    scoring: what the reward model reads after an answer.
    aspect: how frames become squares, see `data.image.square`.
  """

  def __init__(
    self,
    model: Vlm,
    variables: dict,
    tokenizer: tokens.Tokenizer,
    frames: int,
    head: heads.ScalarHead | None = None,
    scoring: RewardPrompt | None = None,
    aspect: str = 'pad',
  ):
    self.model, self.variables, self.tokenizer = model, variables, tokenizer
    self.frames, self.head, self.aspect = frames, head, aspect
    self.scoring = scoring or RewardPrompt()
    self._seen: tuple | None = None
    self._look = jax.jit(lambda params, pixels: _visual(model, params, pixels))
    self._logits = jax.jit(lambda variables, *x: _logits(model, variables, *x))
    self._hidden = jax.jit(lambda variables, *x: vlm.hidden(model, variables, *x)[0])
    self._sample = jax.jit(
      lambda variables, settings, *x: sampler.sample(model, variables, *x, settings),  # type: ignore
      static_argnums=1,
    )
    self._prefill = jax.jit(
      lambda variables, limit, *x: _prefill(model, variables, limit, *x),
      static_argnums=1,
    )
    self._step = jax.jit(
      lambda variables, settings, *x: _step(model, variables, settings, *x),
      static_argnums=1,
      donate_argnums=2,
    )

  def answer(
    self,
    video: str | pathlib.Path,
    question: str,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
  ) -> str:
    """The answer to a question about a video file; greedy unless told otherwise."""
    ids, settings = self._question(question, max_tokens, temperature)
    answers = self._sample(
      self.variables,
      settings,
      ids,
      ids != tokens.PAD,
      self.look(video),
      jax.random.split(jax.random.key(seed), 1),
    )
    return self.tokenizer.decode(np.asarray(answers.tokens[0])[answers.mask[0]])

  def stream(
    self,
    video: str | pathlib.Path,
    question: str,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
  ) -> Iterator[str]:
    """The same answer, in pieces as they come."""
    ids, settings = self._question(question, max_tokens, temperature)
    state = self._prefill(
      self.variables, max_tokens, ids, ids != tokens.PAD, self.look(video)
    )
    key = jax.random.split(jax.random.key(seed), 1)
    said: list[int] = []
    text = shown = ''
    for _ in range(max_tokens):
      state, token = self._step(self.variables, settings, state, key)
      if int(token[0]) == self.tokenizer.eos:
        break
      said.append(int(token[0]))
      text = self.tokenizer.decode(said)
      if not text.endswith('\ufffd'):  # else perhaps half a character
        yield text[len(shown) :]
        shown = text
    yield text[len(shown) :]

  def score(self, video: str | pathlib.Path, question: str, answer: str) -> float:
    """The reward of an answer; of a checkpoint that has a reward head."""
    if self.head is None:
      raise LoadError('score: this checkpoint has no reward head; load a reward model')
    conversation = prompts.render(((question, answer),))
    suffix = pairs.prompt_ids(self.tokenizer, self.scoring)
    ids = self._padded([*self.tokenizer.encode(conversation), *suffix], 0)
    hidden = self._hidden(self.variables, ids, ids != tokens.PAD, self.look(video))
    return float(self.head(hidden[0, -1]))

  def logits(self, token_ids, frames) -> np.ndarray:
    """The network's own numbers.

    Args:
      token_ids: `int32[B, T]`, one -200 (the video) a row, 0 is padding.
      frames: `uint8[B, F, H, W, 3]`.

    Returns:
      `float32[B, L, V]`, L = T - 1 + F + P embedded positions.
    """
    token_ids, frames = np.asarray(token_ids, np.int32), np.asarray(frames)
    if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
      raise LoadError(
        f'frames: expected uint8[B, F, H, W, 3], got {frames.dtype}{frames.shape}'
      )
    slots = np.sum(token_ids == vlm.VIDEO, axis=-1)
    if (
      token_ids.shape[:1] != frames.shape[:1] or token_ids.ndim != 2 or any(slots != 1)
    ):
      raise LoadError(
        f'token_ids: expected int32[{len(frames)}, T] with one {vlm.VIDEO} a row, got '
        f'{token_ids.shape} with {slots.tolist()}'
      )
    visual = jnp.concatenate([self._visual_of(video) for video in frames])
    return np.asarray(
      self._logits(self.variables, token_ids, token_ids != tokens.PAD, visual)
    )

  def look(self, video: str | pathlib.Path) -> jax.Array:
    """Visual tokens `[1, F + P, D]` of a file; those of the last one are kept."""
    path = pathlib.Path(video)
    key = (path.resolve(), path.stat().st_mtime_ns if path.exists() else 0)
    if self._seen is None or self._seen[0] != key:
      frames = read_frames(Video((path.name,)), path.parent, self.frames)
      self._seen = (key, self._visual_of(frames))
    return self._seen[1]

  def _visual_of(self, frames: np.ndarray) -> jax.Array:
    size = self.model.cfg.vision.image_size
    pixels = image.clip_pixels(frames, size, self.aspect)
    return self._look(self.variables['params'], pixels)

  def _question(self, question: str, max_tokens: int, temperature: float):
    ids = self._padded(tokens.encode_prompt(self.tokenizer, question), max_tokens)
    return ids, sampler.Sampling(max_tokens, temperature, eos=self.tokenizer.eos)

  def _padded(self, ids, more: int) -> np.ndarray:
    """`int32[1, T]`, left-padded; refuses what has no room for the answer."""
    visual = self.frames + self.model.cfg.vision.patches
    room = self.model.cfg.llama.max_positions - visual - more
    if len(ids) > room:
      raise LoadError(
        f'{len(ids)} tokens of text, {visual} of video and {more} to come exceed the '
        f'{self.model.cfg.llama.max_positions} positions of the network'
      )
    return tokens.pad([ids], min(-(-len(ids) // _STEP) * _STEP, room), 'left').astype(
      np.int32
    )


def _visual(model: Vlm, params, pixels) -> jax.Array:
  """`float32[F, S, S, 3]` -> visual tokens `[1, F + P, D]`."""
  return vlm.project(model, params, vlm.see(model, params, pixels)[None])


def _logits(model: Vlm, variables, ids, valid, visual):
  hidden, _, _ = vlm.hidden(model, variables, ids, valid, visual)
  return vlm.logits(model, variables, hidden)


def _prefill(model: Vlm, variables, limit: int, ids, valid, visual):
  """What `_step` goes on from: newest hidden state, cache with room, positions."""
  hidden, valid, new = vlm.hidden(
    model, variables, ids, valid, visual, sampler.empty_cache(model, ids.shape[0])
  )
  past = jax.tree.map(
    lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, limit), (0, 0))), new
  )
  seen = jnp.pad(valid, ((0, 0), (0, limit)))
  return hidden[:, -1], past, seen, jnp.int32(valid.shape[1]), jnp.int32(0)


def _step(model: Vlm, variables, settings: sampler.Sampling, state, keys):
  """Draws one token, as `decode.sample` does, and reads it."""
  hidden, past, seen, position, count = state
  step_keys = jax.vmap(lambda key: jax.random.fold_in(key, count))(keys)
  token, _ = sampler.draw(step_keys, vlm.logits(model, variables, hidden), settings)
  mask = jnp.pad(seen, ((0, 0), (0, 1)), constant_values=True)[:, None]
  hidden, new = vlm.extend(
    model,
    variables,
    token[:, None],
    jnp.broadcast_to(position, (token.shape[0], 1)),
    mask,
    past,
  )
  past = jax.tree.map(
    lambda old, x: jax.lax.dynamic_update_slice_in_dim(old, x, position, axis=3),
    past,
    new,
  )
  seen = seen.at[:, position].set(True)
  return (hidden[:, 0], past, seen, position + 1, count + 1), token
