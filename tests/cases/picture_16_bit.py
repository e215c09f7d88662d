"""A gray PNG with 16 bits a pixel, as depth cameras, microscopes and scanners write it.

Pillow's `convert('RGB')` clips the values instead of scaling them, so that everything
above 255 turns white. The right picture has the upper eight bits, within one step.

  python -m tests.cases.picture_16_bit OUT
"""

import json
import pathlib

import numpy as np
from PIL import Image

from tests.cases import clips


def make(out: pathlib.Path) -> list[dict]:
  ramp = np.tile(np.linspace(0, 65535, 160).astype(np.uint16), (80, 1))
  Image.fromarray(ramp).save(out / 'gray_16_bit.png')
  gray = (ramp // 257).astype(np.uint8)
  Image.fromarray(np.stack([gray] * 3, axis=-1)).save(out / 'gray_16_bit_right.png')
  expected = {
    'picture': 'gray_16_bit.png',
    'expected': 'gray_16_bit_right.png',
    'tolerance': 1,
  }
  (out / 'gray_16_bit.png.json').write_text(json.dumps(expected) + '\n')
  return [expected]


if __name__ == '__main__':
  clips.main(make)
