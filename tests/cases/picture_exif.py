"""JPEGs with an EXIF orientation, as phones write them; all eight values.

Viewers rotate and mirror the stored pixels as the tag says. Read without it, a picture
lies on its side, stands on its head or is mirrored.

  python -m tests.cases.picture_exif OUT
"""

import json
import pathlib

import numpy as np
from PIL import Image, ImageOps

from tests.cases import clips

ORIENTATION = 0x0112


def make(out: pathlib.Path) -> list[dict]:
  pixels = np.full((80, 160, 3), 110, np.uint8)
  pixels[:20, :20] = (220, 20, 20)
  results = []
  for value in range(1, 9):
    name = f'exif_{value}.jpg'
    exif = Image.Exif()
    exif[ORIENTATION] = value
    Image.fromarray(pixels).save(out / name, exif=exif, quality=95)
    with Image.open(out / name) as stored:
      upright = np.asarray(ImageOps.exif_transpose(stored))
    Image.fromarray(upright).save(out / f'exif_{value}_right.png')
    expected = {
      'picture': name,
      'expected': f'exif_{value}_right.png',
      'tolerance': 0,
    }
    (out / f'{name}.json').write_text(json.dumps(expected) + '\n')
    results.append(expected)
  return results


if __name__ == '__main__':
  clips.main(make)
