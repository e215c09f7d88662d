"""What `AutoProcessor` reads beside a network in Hugging Face's layout.

The picture has a token there, which needs an id of its own: the first beyond the text
of tokenizer and table. Ids in between get tokens that no text has, since a tokenizer
gives a new token the next free id.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.data.prompts import VIDEO_MARK
from vlm_rlaif_jax.settings.constants import PAD
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.weights import network_files, preprocessor
from vlm_rlaif_jax.weights.errors import ConvertError

_PAD = '<pad>'


@dataclasses.dataclass(frozen=True)
class TextIds:
  """The ids that `config.json` names; those of LLaMA where there is no tokenizer."""

  bos: int = 1
  eos: int = 2
  pad: int = 0


def text_ids(folder: pathlib.Path) -> TextIds:
  """Returns the ids of a folder's tokenizer."""
  if not network_files.has_tokenizer(folder):
    return TextIds()
  tokenizer = tokens.load_tokenizer(folder)
  backend: Any = tokenizer.backend
  pad = backend.get_vocab().get(backend.pad_token, tokenizer.unk)
  return TextIds(tokenizer.bos, tokenizer.eos, tokenizer.eos if pad == PAD else pad)


def image_token(folder: pathlib.Path, rows: int) -> int:
  """Returns the id of <image>: the tokenizer's, else the first beyond the text.

  Args:
    folder: of the network, perhaps without a tokenizer.
    rows: of its embedding.

  Raises:
    ConvertError: the tokenizer has <image>, but among the text.
  """
  if not network_files.has_tokenizer(folder):
    return rows
  tokenizer = tokens.load_tokenizer(folder)
  vocab: dict[str, int] = tokenizer.backend.get_vocab()  # type: ignore[attr-defined]
  image = vocab.get(VIDEO_MARK)
  if image is None:
    return max(rows, tokenizer.vocab)
  after = [text for text, i in vocab.items() if i > image and text != _PAD]
  if after or image < rows - 1:
    raise ConvertError(
      f'{folder}: its tokenizer has {VIDEO_MARK} as id {image}, with text behind it: '
      f'of {rows} rows the hf layout would lose some; write --to=llava'
    )
  return image


def write(folder: pathlib.Path, cfg: VlmConfig, image: int, aspect: str) -> None:
  """Writes the files of `AutoProcessor` beside the tokenizer that is there.

  Args:
    image: id of <image>, of `image_token`.
    aspect: how frames become squares, 'pad' or 'crop'.
  """
  processor = {
    'processor_class': 'LlavaProcessor',
    'image_token': VIDEO_MARK,
    'num_additional_image_tokens': 1,
    'patch_size': cfg.vision.patch_size,
    'vision_feature_select_strategy': 'default',
  }
  for name, value in (
    (preprocessor.FILE, preprocessor.to_json(cfg, aspect)),
    ('processor_config.json', processor),
  ):
    (folder / name).write_text(json.dumps(value, indent=2) + '\n')
  if network_files.has_tokenizer(folder):
    _write_tokenizer(folder, image)


def _write_tokenizer(folder: pathlib.Path, image: int) -> None:
  """Adds <image>, <pad> and what is missing before them to a folder's tokenizer."""
  import tokenizers
  import transformers

  backend: Any = tokens.load_tokenizer(folder).backend
  vocab: dict[str, int] = backend.get_vocab()
  used = set(vocab.values())
  new = {f'<reserved_{i}>': i for i in range(image) if i not in used}
  if VIDEO_MARK not in vocab:
    new[VIDEO_MARK] = image
  if _PAD not in vocab:
    new[_PAD] = image + 1
  whole = json.loads(backend.backend_tokenizer.to_str())
  model_vocab = whole['model']['vocab']
  if isinstance(model_vocab, dict):
    model_vocab.update(new)
  model = tokenizers.Tokenizer.from_str(json.dumps(whole))
  model.add_special_tokens(list(new))
  _check_ids(folder, model.get_vocab(), new)
  names = backend.special_tokens_map
  names = {k: names[k] for k in ('bos_token', 'eos_token', 'unk_token') if names.get(k)}
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=model, pad_token=backend.pad_token or _PAD, **names
  ).save_pretrained(folder)
  # all of these tokens are in tokenizer.json now
  (folder / 'added_tokens.json').unlink(missing_ok=True)


def _check_ids(
  folder: pathlib.Path, vocab: Mapping[str, int], expected: Mapping[str, int]
) -> None:
  """Raises ConvertError if a kind of tokenizer numbers new tokens as it likes."""
  wrong = [text for text, i in expected.items() if vocab.get(text) != i]
  if wrong:
    raise ConvertError(
      f'{folder}: {wrong[0]} would be id {vocab.get(wrong[0])} of its tokenizer, '
      f'expected {expected[wrong[0]]}; write --to=llava'
    )
