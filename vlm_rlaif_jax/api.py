"""Loads a checkpoint and answers questions about a video.

vlm = vlm_rlaif_jax.load('checkpoints/vlm_rlaif_video_llava_7b')
vlm.answer('clip.mp4', 'What happens?')          # text
vlm.score('clip.mp4', 'What happens?', 'A dog.')  # float, from a reward model
"""

import dataclasses
import functools
import pathlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from vlm_rlaif_jax.core import sharding, trees
from vlm_rlaif_jax.data import image, pairs, prompts, tokens
from vlm_rlaif_jax.data.decoder_pool import DecoderPool
from vlm_rlaif_jax.data.video import check_file
from vlm_rlaif_jax.inference import decoding, encoder, generation, requests, sampler
from vlm_rlaif_jax.inference.requests import LoadError
from vlm_rlaif_jax.nn import heads, vlm
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings import sections
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.reward import RewardPrompt
from vlm_rlaif_jax.weights import (
  model_config,
  placement,
  readers,
  weight_forms,
  writers,
)

# frames of a video by network; the released ones read 50
FRAMES = {'tiny': 12, 'small': 12}
_PAD_MULTIPLE = 64  # prompts are padded to a multiple, so that few programs compile


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
    bits: bits per weight of the decoder's linears. With 4 they are NF4, quantized now
      unless the checkpoint is; with 16 they are in `dtype`, dequantized if need be.
    dtype: of weights and activations: float32, bfloat16 or float16.
    base: path of the network under an adapter or a stage, if it cannot be found.
    sft: path of the SFT stage under a later one, if it is not in the next folder.
    vision: path of a CLIP folder, for a LLaVA checkpoint without its tower.
    projector: path of a projector-only file.
    frames: number of frames sampled from a video; 0: as in training.
    scoring: `vlm_rlaif_jax.RewardPrompt(prompt='a name or file')`, the turn that a
      reward model reads after an answer; None: as its artifact records, or that of the
      reference implementation for PEFT files.

  Raises:
    UserError: one line on what is missing, not expected, damaged or of the wrong size.
  """
  requests.check_load(bits, frames)
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
  requests.warn_of_template(pathlib.Path(path), opened.kind)
  cfg = dataclasses.replace(
    model_config.with_dtype(opened.network.cfg, dtype), remat='none'
  )
  tokenizer = tokens.load_tokenizer(opened.network.folder, cfg.llama.vocab)
  form = weight_forms.form_of(opened.network, dtype, bits)
  params = trees.unflatten(writers.in_memory(opened.network, form))
  mesh = sharding.make_mesh(sections.MeshConfig(data=1), jax.devices()[:1])
  params = placement.on_device(params, cfg, mesh)
  lora, head, variables = None, None, {'params': params}
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
    variables: `{'params': base}`, and `lora` if there is an adapter.
    frames: number of frames sampled from a video.
    head: the reward head, or None.
    scoring: the turn that the reward model reads after an answer.
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
    self._data = sections.DataConfig(frames=frames, aspect=aspect)  # type: ignore
    self.head = head
    self.scoring = scoring or RewardPrompt()
    self._last_video: tuple[tuple, jax.Array] | None = None

    def jit(function: Callable, **options: Any) -> Callable[..., Any]:
      return jax.jit(functools.partial(function, model), **options)

    self._visual_tokens = jit(_visual_tokens)
    self._logits = jit(_all_logits)
    self._hidden = jit(_hidden)
    self._sample = jit(decoding.answer, static_argnames='settings')
    self._prefill = jit(decoding.prefill, static_argnames='settings')
    self._decode_step = jit(
      decoding.decode_step, static_argnames='settings', donate_argnames='state'
    )

  @property
  def frames(self) -> int:
    """Number of frames sampled from a video; another number is another `load`."""
    return self._data.frames

  @property
  def aspect(self) -> str:
    """How frames become squares."""
    return self._data.aspect

  def answer(
    self,
    video: str | pathlib.Path,
    question: str,
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    seed: int = 0,
  ) -> str:
    """Answers a question about a video file.

    Args:
      max_tokens: the longest answer.
      temperature: sampling temperature; 0 is greedy.
      seed: of the sampling.
    """
    ids, settings = self._question(question, max_tokens, temperature, seed)
    answers = self._sample(
      self.variables,
      ids,
      ids != PAD,
      self.encode(video),
      jax.random.split(jax.random.key(seed), 1),
      settings=settings,
    )
    logprobs = np.asarray(answers.logprobs[0])[answers.mask[0]]
    generation.check_finite(logprobs, 'log-probabilities of an answer')
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
    """Yields the text of `answer` piece by piece, as tokens are sampled."""
    ids, settings = self._question(question, max_tokens, temperature, seed)
    visual = self.encode(video)
    weights = decoding.answer_weights(self.model, self.variables)
    state = self._prefill(weights, ids, ids != PAD, visual, settings=settings)
    keys = jax.random.split(jax.random.key(seed), 1)
    output_ids: list[int] = []
    text = printed = ''
    for _ in range(max_tokens):
      state, token, logprob = self._decode_step(
        weights, keys, settings=settings, state=state
      )
      generation.check_finite(np.asarray(logprob), 'log-probabilities of an answer')
      if int(token[0]) in self.tokenizer.ends:
        break
      output_ids.append(int(token[0]))
      text = self.tokenizer.decode(output_ids)
      if not text.endswith('\ufffd'):  # else the last character may be incomplete
        yield text[len(printed) :]
        printed = text
    yield text[len(printed) :]

  def score(
    self, video: str | pathlib.Path, question: str, answer: str, narrative: str = ''
  ) -> float:
    """Returns the reward of an answer; the checkpoint must have a reward head.

    Args:
      narrative: of the video, a caption a line; for a reward model that was trained
        with narratives (`scoring.placeholder='captions'`), which needs it.
    """
    if self.head is None:
      raise LoadError('score: this checkpoint has no reward head; load a reward model')
    reads_narrative = self.scoring.placeholder == 'captions'
    if reads_narrative != bool(narrative):
      raise LoadError(
        'score: this reward model was trained with the narrative of the video '
        "(scoring.placeholder='captions'); pass narrative=..., a caption a line"
        if reads_narrative
        else 'score: this reward model reads no narrative; leave narrative out'
      )
    requests.check_texts(question=question, answer=answer, narrative=narrative)
    conversation = prompts.render(((question, answer),))
    text = pairs.reward_prompt(self.scoring, narrative.splitlines())
    suffix = pairs.suffix_ids(self.tokenizer, text)
    ids = self._padded([*self.tokenizer.encode(conversation), *suffix], 0)
    hidden = self._hidden(self.variables, ids, ids != PAD, self.encode(video))
    reward = float(self.head(hidden[0, -1]))
    generation.check_finite(np.asarray(reward), 'scores of a reward model')
    return reward

  def logits(self, token_ids: ArrayLike, frames: ArrayLike) -> np.ndarray:
    """Returns the network's logits.

    Args:
      token_ids: `int32[B, T]`, one -200 (the video) in each row; -1 is padding, and so
        is 0 where it is the tokenizer's unknown token, which no text has.
      frames: `uint8[B, F, H, W, 3]`.

    Returns:
      `float32[B, L, V]`, L = T - 1 + F + P embedded positions.
    """
    token_ids, frames = requests.ids_of(token_ids), np.asarray(frames)
    cfg = self.model.cfg
    requests.check_inputs(token_ids, frames, cfg.llama.vocab)
    valid = token_ids != PAD
    if self.tokenizer.unk == 0:
      valid &= token_ids != 0
    visual_count = frames.shape[1] + cfg.vision.patches
    requests.check_room(valid, visual_count, cfg.llama.max_positions)
    visual = jnp.concatenate([self._encode_frames(video) for video in frames])
    ids = token_ids.astype(np.int32)
    return np.asarray(self._logits(self.variables, ids, valid, visual))

  def encode(self, video: str | pathlib.Path) -> jax.Array:
    """Returns the visual tokens of a file, `[1, F + P, D]`.

    Those of the last file are cached. A decoder that crashes or hangs is an error that
    names the file, and does not end this process.
    """
    key = requests.file_state(path := pathlib.Path(video))
    if self._last_video is None or self._last_video[0] != key:
      check_file(path)
      squares = self._decoders.read((str(path.absolute()),))
      self._last_video = (key, self._encode_squares(squares))
    return self._last_video[1]

  @functools.cached_property
  def _decoders(self) -> DecoderPool:
    """The process that decodes; it ends with this object."""
    pool = DecoderPool(self._data, self.model.cfg.vision.image_size)
    weakref.finalize(self, pool.close)
    return pool

  def _encode_frames(self, frames: np.ndarray) -> jax.Array:
    """Returns the visual tokens of frames `uint8[F, H, W, 3]`."""
    size = self.model.cfg.vision.image_size
    return self._encode_squares(image.squares(frames, size, self.aspect))

  def _encode_squares(self, squares: np.ndarray) -> jax.Array:
    """Returns the visual tokens of frames `uint8[F, S, S, 3]`."""
    return self._visual_tokens(self.variables['params'], squares)

  def _question(
    self, question: str, max_tokens: int, temperature: float, seed: int
  ) -> tuple[np.ndarray, sampler.Sampling]:
    """Returns the ids `int32[1, T]` of a question and how to sample its answer."""
    requests.check_sampling(max_tokens, temperature, seed)
    requests.check_texts(question=question)
    ids = self._padded(tokens.encode_prompt(self.tokenizer, question), max_tokens)
    eos, others = self.tokenizer.eos, self.tokenizer.other_ends
    return ids, sampler.Sampling(max_tokens, temperature, eos=eos, other_ends=others)

  def _padded(self, ids: Sequence[int] | np.ndarray, max_tokens: int) -> np.ndarray:
    """Left-pads ids, `int32[1, T]`.

    Raises:
      LoadError: no room for the answer.
    """
    visual = self.frames + self.model.cfg.vision.patches
    room = self.model.cfg.llama.max_positions - visual - max_tokens
    if len(ids) > room:
      raise LoadError(
        f'{len(ids)} tokens of text, {visual} of video and {max_tokens} of the answer '
        f'exceed the {self.model.cfg.llama.max_positions} positions of the network; '
        'shorten the question or lower max_tokens'
      )
    length = min(-(-len(ids) // _PAD_MULTIPLE) * _PAD_MULTIPLE, room)
    return tokens.pad([ids], length, 'left', PAD).astype(np.int32)


def _visual_tokens(model: Vlm, params: Any, frames: jax.Array) -> jax.Array:
  """Encodes one video, `uint8[F, S, S, 3]` -> visual tokens `[1, F + P, D]`."""
  patches = encoder.encode_frames(model, params, frames)
  return vlm.project(model, params, patches[None])


def _hidden(
  model: Vlm, variables: Any, ids: jax.Array, valid: jax.Array, visual: jax.Array
) -> jax.Array:
  return vlm.hidden(model, variables, ids, valid, visual)[0]


def _all_logits(
  model: Vlm, variables: Any, ids: jax.Array, valid: jax.Array, visual: jax.Array
) -> jax.Array:
  return vlm.logits(model, variables, _hidden(model, variables, ids, valid, visual))
