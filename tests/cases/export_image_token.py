"""--to=hf of a network whose embedding has more rows than its tokenizer has tokens.

config.json of the export names an id for <image>. If its tokenizer got that token only
where it has as many tokens as the embedding has rows, <image> would be text to the
processor otherwise, and pictures would not reach the network. Embeddings of 32,003 or
32,064 rows for 32,000 tokens are common. Right: a folder that works with AutoProcessor
and LlavaForConditionalGeneration, with the logits of the original network.

  python -m tests.cases.export_image_token OUT [CASE ...]
"""

import functools
import pathlib

import torch
import transformers
from PIL import Image

from tests.cases import checkpoints, commands

TEXT = 'USER: <image>\nWhat happens? ASSISTANT:'


def check(out: pathlib.Path, extra: int) -> str:
  """Exports a network with `extra` rows of text beyond the tokens, and uses it."""
  out.mkdir(exist_ok=True)
  tokenizer = checkpoints.byte_tokenizer()
  original = checkpoints.random_network(len(tokenizer) + extra)
  folder = checkpoints.save(original, out / 'network', tokenizer)
  result = commands.convert_twice(folder, out, '--to=hf')
  if result.returncode:
    return f'{commands.outcome(result)}; right: a folder that works'
  try:
    processor = transformers.AutoProcessor.from_pretrained(out / 'export')
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
      out / 'export', dtype=torch.float32
    )
    token = processor.tokenizer.convert_tokens_to_ids('<image>')
    image_id = model.config.image_token_index
    if token != image_id:
      return f'<image> is {token} in the tokenizer and {image_id} in config.json'
    picture = Image.open(checkpoints.picture(out / 'picture.png'))
    batch = processor(images=picture, text=TEXT, return_tensors='pt')
    with torch.no_grad():
      difference = model(**batch).logits - original(**batch).logits
  except Exception as error:  # what a user of transformers meets
    return f'the export does not work: {type(error).__name__}: {str(error)[:200]}'
  error = difference[..., :image_id].abs().max().item()
  return '' if error < 1e-4 else f'logits differ by up to {error:.2g}'


def cases(out: pathlib.Path) -> dict:
  return {
    'as_many_rows': functools.partial(check, out / 'as_many_rows', 0),
    'three_rows_more': functools.partial(check, out / 'three_rows_more', 3),
  }


if __name__ == '__main__':
  commands.main(cases)
