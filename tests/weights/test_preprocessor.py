"""How frames become squares, in and out of the files of an image processor."""

import json
import shutil

import numpy as np
import pytest

from tests.weights import checkpoints
from tests.weights.damage import edit_json, on, refused
from vlm_rlaif_jax.data import image
from vlm_rlaif_jax.weights import conversion, network_files, preprocessor, readers
from vlm_rlaif_jax.weights.conversion import Request
from vlm_rlaif_jax.weights.errors import ConvertError

SIZE = checkpoints.CFG.vision.image_size
MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]
NUMBERS = {'image_mean': MEAN, 'image_std': STD, 'resample': 3}
CLIP = {  # openai/clip-vit-large-patch14-336, of 2022
  'crop_size': 336, 'do_center_crop': True, 'do_normalize': True, 'do_resize': True,
  'feature_extractor_type': 'CLIPFeatureExtractor', **NUMBERS, 'size': 336,
}  # fmt: skip
LLAVA = {  # llava-hf/llava-1.5-7b-hf
  'crop_size': {'height': 336, 'width': 336}, 'do_center_crop': True,
  'do_convert_rgb': True, 'do_normalize': True, 'do_rescale': True, 'do_resize': True,
  'image_processor_type': 'CLIPImageProcessor', 'processor_class': 'LlavaProcessor',
  'rescale_factor': 0.00392156862745098, 'size': {'shortest_edge': 336}, **NUMBERS,
}  # fmt: skip
VIDEO = LLAVA | {  # LanguageBind/Video-LLaVA-7B-hf
  'image_processor_type': 'VideoLlavaImageProcessor',
  'processor_class': 'VideoLlavaProcessor', 'size': {'shortest_edge': 224},
  'crop_size': {'height': 224, 'width': 224},
}  # fmt: skip
FAST = LLAVA | {  # as torchvision's processors are saved
  'image_processor_type': 'LlavaImageProcessorFast', 'do_pad': True, 'device': None,
  'data_format': 'channels_first', 'default_to_square': False,
  'input_data_format': None, 'return_tensors': None, 'disable_grouping': None,
  'image_seq_length': 576,
}  # fmt: skip
SQUARE = {'height': 336, 'width': 336}


def write(folder, values):
  folder.mkdir(exist_ok=True)
  (folder / preprocessor.FILE).write_text(json.dumps(values))
  return folder


def with_aspect(root, folder, aspect):
  """A base that records how frames became squares."""
  shutil.copytree(root / 'ours', folder)
  edit_json(folder / 'model.json', lambda c: {**c, 'aspect': aspect})
  return folder


# ---------------------------------------------------------------- in


@pytest.mark.parametrize(
  ('values', 'size', 'aspect'),
  [
    (CLIP, 336, 'crop'),
    (LLAVA, 336, 'crop'),
    (VIDEO, 224, 'crop'),
    (FAST, 336, 'pad'),
    (FAST | {'size': SQUARE, 'do_center_crop': False}, 336, 'pad'),
    ({'do_pad': True, 'do_center_crop': None, 'size': SQUARE}, 336, 'pad'),
    (LLAVA, 0, 'crop'),
    ({}, 336, 'crop'),
  ],
)
def test_squares_of_released_files(tmp_path, values, size, aspect):
  assert preprocessor.read(write(tmp_path, values), size) == aspect


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'some_field': 7}, 'some_field is 7, expected none'),
    ({'do_center_crop': False, 'size': SQUARE}, 'do_center_crop is False, expected'),
    ({'do_center_crop': None}, 'do_center_crop is None, expected True'),
    ({'size': SQUARE}, "size is {'height': 336, 'width': 336}, expected {'short"),
    ({'size': 336, 'default_to_square': True}, 'size is 336, expected {'),
    ({'size': {'shortest_edge': 384}}, "size is {'shortest_edge': 384}, expected {"),
    ({'size': {'shortest_edge': 336, 'longest_edge': 448}}, 'size is {'),
    ({'size': 'large'}, "size is 'large', expected a number"),
    ({'crop_size': 224}, "crop_size is 224, expected {'height': 336"),
    ({'size': None, 'crop_size': 224}, 'crop_size is 224, expected {'),
    ({'do_pad': True}, "image_processor_type is 'CLIPImageProcessor', expected Llava"),
    ({'do_pad': 'yes'}, "do_pad is 'yes', expected False or True"),
    ({'image_processor_type': 'ViTImageProcessor'}, "type is 'ViTImageProcessor'"),
    ({'do_rescale': None}, 'do_rescale is None, expected True'),
  ],
)
def test_other_squares_are_refused(tmp_path, change, message):
  with pytest.raises(ConvertError) as caught:
    preprocessor.read(write(tmp_path, LLAVA | change), 336)
  assert f'{preprocessor.FILE}: ' in str(caught.value) and message in str(caught.value)


def test_a_processor_within_the_file_of_the_whole(tmp_path):
  """As transformers 5 saves it."""
  assert preprocessor.read(tmp_path) == ''
  whole = tmp_path / 'processor_config.json'
  whole.write_text('{"processor_class": "LlavaProcessor"}')
  assert preprocessor.read(tmp_path) == ''
  whole.write_text(json.dumps({'image_processor': FAST}))
  assert preprocessor.read(tmp_path, 336) == 'pad'
  with pytest.raises(
    ConvertError, match=r"by 'crop', and processor_config.json.*'pad'"
  ):
    preprocessor.read(write(tmp_path, LLAVA), 336)
  whole.write_text(json.dumps({'image_processor': FAST | {'some_field': 7}}))
  with pytest.raises(ConvertError, match=r'image_processor\.some_field is 7'):
    preprocessor.read(tmp_path, 336)


def test_a_processor_that_pads_speaks_where_the_config_is_silent(root, tmp_path):
  """One that crops stands beside networks that were trained on padded frames, too."""
  folder = shutil.copytree(root / 'hf', tmp_path / 'in')
  silent = lambda c: {n: v for n, v in c.items() if n != 'image_aspect_ratio'}
  edit_json(folder / 'config.json', silent)
  assert network_files.read_network(folder).aspect == 'pad'
  write(folder, preprocessor.to_json(checkpoints.CFG, 'crop'))
  assert network_files.read_network(folder).aspect == ''
  (folder / preprocessor.FILE).unlink()
  assert network_files.read_network(folder).aspect == ''


@pytest.mark.parametrize('layout', ['hf', 'llava'])
def test_a_processor_that_pads_where_the_config_crops(root, tmp_path, layout):
  folder = shutil.copytree(root / layout, tmp_path / 'in')
  edit_json(folder / 'config.json', lambda c: {**c, 'image_aspect_ratio': 'square'})
  write(folder, preprocessor.to_json(checkpoints.CFG, 'pad'))
  message = "image_aspect_ratio is 'square', expected 'pad' as preprocessor_config.json"
  refused(folder, f'config.json: {message}')


@pytest.mark.parametrize('layout', ['hf', 'llava'])
def test_padding_comes_before_a_processor_that_crops(root, tmp_path, layout):
  folder = shutil.copytree(root / layout, tmp_path / 'in')
  write(folder, preprocessor.to_json(checkpoints.CFG, 'crop'))
  assert network_files.read_network(folder).aspect == 'pad'


def test_the_tower_alone_does_not_decide(root, tmp_path):
  """CLIP's own file crops; a network on it may be trained either way."""
  tower = root / 'llava' / 'vision_tower'
  assert preprocessor.read(tower, SIZE) == 'crop'
  assert network_files.read_network(tower).aspect == ''
  folder = shutil.copytree(tower, tmp_path / 'tower')
  edit_json(folder / preprocessor.FILE, lambda c: {**c, 'do_center_crop': False})
  request = Request(partial=True)
  refused(folder, 'preprocessor_config.json: do_center_crop is False', request=request)


# ---------------------------------------------------------------- out


@pytest.mark.parametrize('aspect', ['pad', 'crop'])
def test_pixels_that_transformers_reads(root, tmp_path, aspect):
  transformers = pytest.importorskip('transformers')
  base = with_aspect(root, tmp_path / 'base', aspect)
  conversion.convert(base, tmp_path / 'hf', Request(to='hf'))
  processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / 'hf')
  rng = np.random.default_rng(0)
  for shape in ((3 * SIZE, 2 * SIZE), (SIZE + 5, 2 * SIZE + 3), (SIZE, SIZE)):
    frame = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    theirs = processor(images=frame, return_tensors='np')['pixel_values'][0]
    ours = (image.square(frame, SIZE, aspect) / 255 - image.MEAN) / image.STD
    np.testing.assert_allclose(theirs, np.moveaxis(ours, -1, 0), atol=1e-5)


@pytest.mark.parametrize('aspect', ['pad', 'crop'])
@pytest.mark.parametrize('layout', ['llava', 'hf'])
def test_squares_survive_conversions(root, tmp_path, layout, aspect):
  base = with_aspect(root, tmp_path / 'base', aspect)
  conversion.convert(base, tmp_path / 'out', Request(to=layout))
  assert readers.load_checkpoint(tmp_path / 'out').aspect == aspect
  conversion.convert(tmp_path / 'out', tmp_path / 'back', Request())
  assert network_files.read_network(tmp_path / 'back').aspect == aspect


# ---------------------------------------------------------------- adapters


@pytest.mark.parametrize(
  ('files', 'aspect'),
  [
    ({'config.json': {'model_type': 'llava', 'image_aspect_ratio': 'square'}}, 'crop'),
    ({'config.json': {'model_type': 'llava', 'image_aspect_ratio': 'pad'}}, 'pad'),
    ({preprocessor.FILE: preprocessor.to_json(checkpoints.CFG, 'crop')}, ''),
    ({preprocessor.FILE: preprocessor.to_json(checkpoints.CFG, 'pad')}, 'pad'),
    ({}, ''),
  ],
)
def test_squares_of_an_adapter(root, adapter, tmp_path, files, aspect):
  """A stage, a merged base and an export record what the adapter was trained on."""
  for name, values in files.items():
    (adapter / name).write_text(json.dumps(values))
  conversion.convert(adapter, tmp_path / 'stage', on(root))
  info = json.loads((tmp_path / 'stage' / 'artifact' / 'artifact.json').read_text())
  assert info.get('aspect', '') == aspect
  stage = readers.load_checkpoint(tmp_path / 'stage')
  assert stage.network.aspect == aspect
  base = str(root / 'ours')
  for to in ('ours', 'llava', 'hf'):
    request = Request(to=to, base=base, merge=to == 'ours')
    conversion.convert(adapter, tmp_path / to, request)
    recorded = network_files.read_network(tmp_path / to).aspect
    assert recorded == (aspect if to == 'ours' else aspect or 'pad')
  for to in ('peft', 'peft-hf'):
    conversion.convert(tmp_path / 'stage', tmp_path / to, Request(to=to))
    again = readers.load_checkpoint(tmp_path / to, base=base)
    assert again.aspect == (aspect or 'pad')


def test_squares_of_a_tuned_base(root, adapter, tmp_path):
  """An adapter without a word was trained on those of the SFT stage under it."""
  sft = tmp_path / 'sft'
  source = shutil.copytree(adapter, tmp_path / 'in')
  checkpoints.write_projector(
    source / 'non_lora_trainables.bin', 'base_model.model.model.'
  )
  config = {'model_type': 'llava', 'image_aspect_ratio': 'square'}
  (source / 'config.json').write_text(json.dumps(config))
  conversion.convert(source, sft, on(root))
  request = Request(base=str(root / 'ours'), sft=str(sft))
  conversion.convert(adapter, tmp_path / 'init', request)
  assert readers.load_checkpoint(tmp_path / 'init').aspect == 'crop'
