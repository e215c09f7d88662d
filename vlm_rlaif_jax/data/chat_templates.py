"""Whether the files of a network ask questions as we do: `USER: ... ASSISTANT:`.

chat_template.jinja, chat_template.json             the template, or its field
tokenizer_config.json, processor_config.json        its field

No template is run: that of LLaVA-1.5 and Vicuna contains how an answer begins, and
those of other conversations (Llama 2 and 3, ChatML) begin theirs otherwise.
"""

import json
import pathlib

from vlm_rlaif_jax.data.prompts import ANSWER

_FIELD = 'chat_template'
_WHOLE = 'chat_template.jinja'
_FILES = ('chat_template.json', 'tokenizer_config.json', 'processor_config.json')


def other_template(folder: pathlib.Path) -> str:
  """Returns the file whose conversation is another one than ours; '': none is."""
  for name, text in _templates(folder).items():
    if text and ANSWER not in text:
      return name
  return ''


def _templates(folder: pathlib.Path) -> dict[str, str]:
  """Returns the templates by file; several of one file as one text."""
  texts = {}
  if (folder / _WHOLE).is_file():
    texts[_WHOLE] = (folder / _WHOLE).read_text(encoding='utf-8', errors='replace')
  for name in _FILES:
    try:
      values = json.loads((folder / name).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
      continue  # absent, or an error of those who need the rest of it
    value = values.get(_FIELD) if isinstance(values, dict) else None
    if value:
      texts[name] = value if isinstance(value, str) else json.dumps(value)
  return texts
