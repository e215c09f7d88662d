"""--to=llava of a network whose vision tower is not CLIP ViT-L/14 at 336 pixels.

LLaVA loads the tower that config.json of the export names, so a constant name would put
another tower into its place. Right: the name of the tower that the network has,
a folder beside the weights, or one line that says that the tower has no name.

  python -m tests.cases.export_vision_tower OUT
"""

import json
import pathlib

from tests.cases import checkpoints, commands

SIZE = 32  # pixels


def check(out: pathlib.Path) -> str:
  tokenizer = checkpoints.byte_tokenizer()
  network = checkpoints.random_network(len(tokenizer), image_size=SIZE)
  folder = checkpoints.save(network, out / 'network', tokenizer)
  result = commands.convert_twice(folder, out, '--to=llava')
  if result.returncode:
    return commands.refused_naming(result, {'the vision tower': 'tower'})
  config = json.loads((out / 'export' / 'config.json').read_text())
  tower = str(config.get('mm_vision_tower'))
  if 'clip-vit-large-patch14' not in tower:
    return ''
  return f'the tower of {SIZE} pixels and width 32 is called {tower}'


def cases(out: pathlib.Path) -> dict:
  return {'tower_of_32_pixels': lambda: check(out)}


if __name__ == '__main__':
  commands.main(cases)
