"""Words of texts, also in scripts that put no space between them."""

import re

# Han and kana; each of their characters is a word by itself.
_UNSPACED = re.compile('([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])')
_MARKS = re.compile('[\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\u30fb]')  # between them


def separate(text: str) -> str:
  """Returns a text with a space around each character that is a word by itself."""
  return _UNSPACED.sub(r' \1 ', text)


def count(text: str) -> int:
  """Returns how many words a text has."""
  return len(separate(_MARKS.sub(' ', text)).split())
