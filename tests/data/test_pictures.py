"""Pictures are read as viewers show them; what cannot be is one line with its name."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from vlm_rlaif_jax.data import pictures
from vlm_rlaif_jax.data.packets import VideoError

ORIENTATION = 0x0112


@pytest.fixture
def corner():
  """A red corner on gray, so that every turn shows."""
  pixels = np.full((24, 48, 3), 110, np.uint8)
  pixels[:8, :8] = (220, 20, 20)
  return Image.fromarray(pixels)


@pytest.mark.parametrize('value', range(1, 9))
@pytest.mark.parametrize('ending', ['png', 'webp', 'tif', 'jpg'])
def test_exif_orientation_is_followed(tmp_path, corner, ending, value):
  exif = Image.Exif()
  exif[ORIENTATION] = value
  path = tmp_path / f'p.{ending}'
  options = {'lossless': True} if ending == 'webp' else {'exif': exif}
  corner.save(path, **{'exif': exif, **options})
  stored = corner
  if ending == 'jpg':
    with Image.open(path) as picture:
      stored = picture.copy()
      stored.getexif().clear()
  turned = stored.copy()
  turned.getexif()[ORIENTATION] = value
  expected = np.asarray(ImageOps.exif_transpose(turned))
  np.testing.assert_array_equal(pictures.read_picture(path), expected)
  is_red = np.abs(expected.astype(int) - (220, 20, 20)).max(-1) < 60
  row, column = np.argwhere(is_red).mean(0)
  right, below = column > expected.shape[1] / 2, row > expected.shape[0] / 2
  corners = {1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1)}
  corners |= {5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1)}
  assert (int(right), int(below)) == corners[value]


def test_broken_exif_turns_nothing(tmp_path, corner):
  corner.save(tmp_path / 'p.jpg', exif=b'Exif\x00\x00II*\x00\xff\xff\xff\x7f')
  assert pictures.read_picture(tmp_path / 'p.jpg').shape == (24, 48, 3)


@pytest.mark.parametrize('name', ['p.png', 'p.tif', 'p.pgm'])
def test_of_16_bits_the_upper_eight_are_read(tmp_path, name):
  ramp = np.tile(np.linspace(0, 65535, 160).astype(np.uint16), (8, 1))
  Image.fromarray(ramp).save(tmp_path / name)
  picture = pictures.read_picture(tmp_path / name)
  assert picture.shape == (8, 160, 3) and picture.dtype == np.uint8
  np.testing.assert_array_equal(picture, np.stack([ramp >> 8] * 3, axis=-1))


def png(path, depth: int, color: int, rows: np.ndarray) -> None:
  """Writes a PNG by hand, of depths that PIL does not write."""
  import struct
  import zlib

  def chunk(kind: bytes, data: bytes) -> bytes:
    checksum = struct.pack('>I', zlib.crc32(kind + data))
    return struct.pack('>I', len(data)) + kind + data + checksum

  height, width = rows.shape[:2]
  head = struct.pack('>IIBBBBB', width, height, depth, color, 0, 0, 0)
  data = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))
  parts = chunk(b'IHDR', head), chunk(b'IDAT', data), chunk(b'IEND', b'')
  path.write_bytes(b'\x89PNG\r\n\x1a\n' + b''.join(parts))


@pytest.mark.parametrize(('color', 'channels'), [(2, 3), (6, 4), (4, 2), (0, 1)])
def test_16_bits_a_color(tmp_path, rng, color, channels):
  values = rng.integers(0, 65536, (4, 6, channels)).astype('>u2')
  png(tmp_path / 'p.png', 16, color, values)
  shown = (values[..., :3] if channels > 2 else values[..., :1]) >> 8
  expected = np.broadcast_to(shown, (4, 6, 3)).astype(np.uint8)
  np.testing.assert_array_equal(pictures.read_picture(tmp_path / 'p.png'), expected)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'YCbCr'])
def test_other_modes_become_colors(tmp_path, corner, mode):
  name = 'p.tif' if mode in ('CMYK', 'YCbCr') else 'p.png'
  corner.convert(mode).save(tmp_path / name)
  picture = pictures.read_picture(tmp_path / name)
  assert picture.shape == (24, 48, 3)
  expected = np.asarray(corner.convert(mode).convert('RGB')).astype(int)
  assert np.abs(picture - expected).max() <= 2


def test_a_palette_with_transparency(tmp_path, corner):
  picture = corner.quantize(4)
  picture.save(tmp_path / 'p.png', transparency=bytes([0, 128, 255, 255]))
  read = pictures.read_picture(tmp_path / 'p.png')
  np.testing.assert_array_equal(read, np.asarray(picture.convert('RGB')))


@pytest.mark.parametrize('name', ['p.webp', 'p.png', 'p.tif', 'p.bmp'])
def test_an_animation_is_refused(tmp_path, corner, name):
  others = [ImageOps.mirror(corner), ImageOps.flip(corner)]
  kind = 'GIF' if name == 'p.bmp' else None
  corner.save(tmp_path / name, kind, save_all=True, append_images=others)
  with pytest.raises(VideoError, match=rf'{name}: holds 3 pictures; write the one'):
    pictures.read_picture(tmp_path / name)


def test_the_preview_in_a_cameras_jpeg_is_no_animation(tmp_path, corner):
  other = ImageOps.mirror(corner)
  corner.save(tmp_path / 'p.jpg', 'MPO', save_all=True, append_images=[other])
  picture = pictures.read_picture(tmp_path / 'p.jpg')
  assert picture[4, 4, 0] > 150 and picture[4, -4, 0] < 150  # the first of the two


def broken_chunk(path):
  noise = np.random.default_rng(1).integers(0, 255, (400, 400, 3), np.uint8)
  Image.fromarray(noise).save(path)
  data = bytearray(path.read_bytes())
  second = data.index(b'IDAT', data.index(b'IDAT') + 4)
  data[second : second + 4] = b'\xa9\x8a\xbc\x07'
  path.write_bytes(data)


def bomb(path):
  png(path, 1, 0, np.zeros((1, 1), np.uint8))
  data = bytearray(path.read_bytes())
  data[16:24] = (30000).to_bytes(4, 'big') * 2
  path.write_bytes(data)


def long_text(path):
  from PIL import PngImagePlugin

  info = PngImagePlugin.PngInfo()
  info.add_text('comment', 'x' * (2 << 20), zip=True)
  Image.new('RGB', (4, 4)).save(path, pnginfo=info)


def fractions(path):
  Image.fromarray(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)).save(
    path, 'TIFF'
  )


def cut(path):
  Image.effect_noise((200, 200), 50).save(path)
  path.write_bytes(path.read_bytes()[:2000])


def page(path):
  path.write_text('<html>404</html>')


@pytest.mark.parametrize(
  'break_', [broken_chunk, bomb, long_text, fractions, cut, page]
)
def test_what_cannot_be_read_is_one_line(tmp_path, break_):
  break_(tmp_path / 'p.png')
  with pytest.raises(VideoError) as caught:
    pictures.read_pictures([tmp_path / 'p.png'])
  text = str(caught.value)
  assert text.startswith(f'{tmp_path}/p.png: ') and '\n' not in text


def test_pictures_of_different_sizes_are_named(tmp_path, corner):
  corner.save(tmp_path / 'a.png')
  corner.rotate(90, expand=True).save(tmp_path / 'b.png')
  with pytest.raises(VideoError, match=r"different sizes: \['24x48', '48x24'\]"):
    pictures.read_pictures([tmp_path / 'a.png', tmp_path / 'b.png'])


def test_numbers_of_32_bits_have_no_range(tmp_path):
  """A mask of 0 to 99 would be black by the upper eight of 16 bits."""
  numbers = np.arange(100, dtype=np.int32).reshape(10, 10)
  Image.fromarray(numbers).save(tmp_path / 'p.tif')
  with pytest.raises(VideoError, match=r'p\.tif: 32-bit numbers in place of colors'):
    pictures.read_picture(tmp_path / 'p.tif')
