"""`vlm_rlaif_jax.load`: the same network from every kind of folder, asked in three
ways."""

import dataclasses
import functools
import io
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import vlm_rlaif_jax
from launch import chat
from tests import tiny
from tests.weights import checkpoints
from vlm_rlaif_jax.api import LoadError
from vlm_rlaif_jax.core.quant.nf4 import Nf4
from vlm_rlaif_jax.data import decoder_pool, image, pairs, prompts, tokens
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.models import LINEARS
from vlm_rlaif_jax.weights import conversion, peft_files
from vlm_rlaif_jax.weights.conversion import Request

CFG = dataclasses.replace(
  tiny.CFG, llama=dataclasses.replace(tiny.CFG.llama, vocab=768, max_positions=640)
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """ours, llava, a reward adapter on it, and a clip of 20 frames."""
  folder = tmp_path_factory.mktemp('api')
  checkpoints.write_base(folder / 'ours', cfg=CFG)
  checkpoints.write_foreign(folder / 'llava', folder / 'ours', 'llava')
  checkpoints.write_adapter(folder / 'reward' / 'adapter_model' / 'lora_default', CFG)
  checkpoints.write_head(folder / 'reward' / 'reward_head')
  clip(folder / 'clip.mp4')
  return folder


def clip(path):
  import av

  rng = np.random.default_rng(0)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=10)
    stream.width = stream.height = 32
    stream.pix_fmt = 'yuv420p'
    for _ in range(20):
      picture = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
      for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format='rgb24')):
        container.mux(packet)
    for packet in stream.encode():
      container.mux(packet)


@pytest.fixture(scope='module')
def model(root):
  return vlm_rlaif_jax.load(root / 'ours', dtype='float32', frames=4)


@pytest.fixture(scope='module')
def asked(rng_module):
  ids = np.asarray([[0, 1, 7, -200, 9, 4], [1, 5, -200, 6, 8, 3]], np.int32)
  frames = rng_module.integers(0, 256, (2, 4, 20, 24, 3)).astype(np.uint8)
  return ids, frames


@pytest.fixture(scope='module')
def rng_module():
  return np.random.default_rng(0)


@pytest.mark.slow
def test_logits_of_ours_and_of_foreign_folders_are_equal(root, model, asked):
  ids, frames = asked
  logits = model.logits(ids, frames)
  assert logits.dtype == np.float32
  assert logits.shape == (2, 6 - 1 + 4 + CFG.vision.patches, CFG.llama.vocab)
  foreign = vlm_rlaif_jax.load(root / 'llava', dtype='float32', frames=4)
  np.testing.assert_array_equal(foreign.logits(ids, frames), logits)
  alone = model.logits(ids[:1], frames[:1])
  np.testing.assert_allclose(alone[0], logits[0], atol=1e-5)


class Numbers(tokens.Tokenizer):
  """Shows the ids themselves: random networks say bytes that are no characters."""

  def decode(self, ids):
    ids = [int(i) for i in ids]
    return ' '.join(map(str, ids[: ids.index(self.eos)] if self.eos in ids else ids))


@pytest.mark.slow
def test_answers_come_whole_and_in_pieces(root, model, monkeypatch):
  known = model.tokenizer
  monkeypatch.setattr(model, 'tokenizer', Numbers(known.backend, known.bos, known.eos))
  for temperature in (0.0, 1.0):
    settings = {'max_tokens': 12, 'temperature': temperature, 'seed': 3}
    whole = model.answer(root / 'clip.mp4', 'What happens?', **settings)
    pieces = list(model.stream(root / 'clip.mp4', 'What happens?', **settings))
    assert whole and ''.join(pieces) == whole


@pytest.mark.slow
def test_chat_streams_answers(root, model, monkeypatch, capsys):
  """Each line of the input is a question; pieces are printed as they come."""
  monkeypatch.setattr(vlm_rlaif_jax, 'load', lambda *_, **__: model)
  known = model.tokenizer
  monkeypatch.setattr(model, 'tokenizer', Numbers(known.backend, known.bos, known.eos))
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')
  monkeypatch.setattr('sys.stdin', io.StringIO('What happens?\nWhy?\n\nno more'))
  with flagsaver.flagsaver():
    flags.FLAGS(['chat', '--max_tokens=12', '--bits=4', '--dtype=float32'])
    chat.main(['chat', str(root / 'ours'), str(root / 'clip.mp4')])
  said = capsys.readouterr().out
  answers = [
    model.answer(root / 'clip.mp4', question, max_tokens=12)
    for question in ('What happens?', 'Why?')
  ]
  assert said == ''.join(f'{answer}\n' for answer in answers) and all(answers)


@pytest.mark.slow
def test_a_reward_model_scores(root, model):
  reward = vlm_rlaif_jax.load(
    root / 'reward', dtype='float32', base=str(root / 'ours'), frames=4
  )
  found = reward.score(root / 'clip.mp4', 'What?', 'A dog.')
  text = prompts.render((('What?', 'A dog.'),))
  ids = [
    *reward.tokenizer.encode(text),
    *pairs.prompt_ids(reward.tokenizer, reward.scoring),
  ]
  hidden = reward._hidden(
    reward.variables,
    np.asarray([ids], np.int32),
    np.ones((1, len(ids)), bool),
    reward.encode(root / 'clip.mp4'),
  )
  assert found == pytest.approx(float(reward.head(hidden[0, -1])), abs=1e-4)
  assert found != reward.score(root / 'clip.mp4', 'What?', 'A cat.')
  with pytest.raises(LoadError, match='no reward head'):
    model.score(root / 'clip.mp4', 'What?', 'A dog.')

  # Trained with narratives: it needs one, and others need none.
  story = 'Clip 1: a dog.'
  with pytest.raises(LoadError, match='reads no narrative'):
    reward.score(root / 'clip.mp4', 'What?', 'A dog.', narrative=story)
  reward.scoring = vlm_rlaif_jax.RewardPrompt(placeholder='captions')
  with pytest.raises(LoadError, match='pass narrative='):
    reward.score(root / 'clip.mp4', 'What?', 'A dog.')
  assert found != reward.score(root / 'clip.mp4', 'What?', 'A dog.', narrative=story)


@pytest.mark.slow
def test_a_reward_model_scores_with_the_prompt_that_it_was_trained_with(root, tmp_path):
  """Given to `load`, or recorded when the files became an artifact."""
  prompt = tmp_path / 'prompt.txt'
  prompt.write_text('Rate the answer.')
  base = str(root / 'ours')
  recorded = Request(base=base, reward_prompt=str(prompt))
  conversion.convert(root / 'reward', tmp_path / 'reward', recorded)
  scoring = vlm_rlaif_jax.RewardPrompt(prompt=str(prompt))
  load = functools.partial(vlm_rlaif_jax.load, dtype='float32', frames=4)
  given = load(root / 'reward', base=base, scoring=scoring)
  assert given.scoring == load(tmp_path / 'reward').scoring == scoring
  asked = root / 'clip.mp4', 'What?', 'A dog.'
  found = given.score(*asked)
  given.scoring = vlm_rlaif_jax.RewardPrompt()
  assert found != given.score(*asked)
  with pytest.raises(UserError, match='has no reward head'):
    load(root / 'ours', scoring=scoring)


def test_a_stage_is_loaded_with_its_base(root, tmp_path):
  """As an artifact of ours: base, SFT and adapter found by their fingerprints."""
  base = str(root / 'ours')
  conversion.convert(root / 'reward', tmp_path / 'reward', Request(base=base))
  stage = vlm_rlaif_jax.load(tmp_path / 'reward', dtype='float32', frames=4)
  foreign = vlm_rlaif_jax.load(root / 'reward', dtype='float32', base=base, frames=4)
  for one, other in zip(_leaves(stage), _leaves(foreign), strict=True):
    np.testing.assert_array_equal(one, other)
  assert stage.head.b == foreign.head.b


@pytest.mark.slow
def test_a_stage_sees_videos_as_it_was_trained(root, tmp_path):
  conversion.convert(
    root / 'reward', tmp_path / 'reward', Request(base=str(root / 'ours'))
  )
  settings = tmp_path / 'reward' / 'checkpoints' / 'identity.json'
  settings.parent.mkdir()
  settings.write_text('{"data.frames": 3, "data.aspect": "crop"}')
  stage = vlm_rlaif_jax.load(tmp_path / 'reward', dtype='float32')
  assert (stage.frames, stage.aspect) == (3, 'crop')
  settings.unlink()  # checkpoints may be deleted; what the artifact says stays
  artifact = tmp_path / 'reward' / 'artifact' / 'artifact.json'
  info = json.loads(artifact.read_text()) | {'frames': 3, 'aspect': 'crop'}
  artifact.write_text(json.dumps(info))
  stage = vlm_rlaif_jax.load(tmp_path / 'reward', dtype='float32')
  assert (stage.frames, stage.aspect) == (3, 'crop')
  wide = np.random.default_rng(0).integers(0, 256, (3, 32, 96, 3)).astype(np.uint8)
  features = np.asarray(stage._encode_frames(wide))
  squares = image.squares(wide, CFG.vision.image_size, 'crop')
  expected = stage._visual_tokens(stage.variables['params'], squares)
  np.testing.assert_array_equal(features, expected)
  padded = vlm_rlaif_jax.load(root / 'ours', dtype='float32', frames=3)
  assert np.abs(features - padded._encode_frames(wide)).max() > 1e-3


@pytest.fixture(scope='module')
def later(root, tmp_path_factory):
  """base + SFT, and a policy and a critic with a base of its own that stand on it."""
  folder = tmp_path_factory.mktemp('later')
  base = str(root / 'ours')
  checkpoints.write_base(folder / 'critic', seed=7, cfg=CFG)
  checkpoints.write_adapter(folder / 'lora', CFG)
  projector = folder / 'lora' / 'non_lora_trainables.bin'
  checkpoints.write_projector(projector, 'model.', cfg=CFG)
  conversion.convert(folder / 'lora', folder / 'run' / 'sft', Request(base=base))
  sft = str(folder / 'run' / 'sft')
  checkpoints.write_adapter(folder / 'policy', CFG, seed=8)
  on = Request(base=base, sft=sft, critic=str(folder / 'critic'))
  init = dataclasses.replace(on, critic='')
  conversion.convert(folder / 'policy', folder / 'run' / 'init', init)
  places = folder / 'peft' / 'adapter_model'
  checkpoints.write_adapter(places / 'lora_policy', CFG, seed=8)
  checkpoints.write_adapter(places / 'lora_value', CFG, seed=9)
  checkpoints.write_head(folder / 'peft' / 'value_head.pt')
  conversion.convert(folder / 'peft', folder / 'run' / 'ppo', on)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize(('adapter', 'merged'), [('peft', 'llava'), ('peft-hf', 'hf')])
def test_a_stage_and_its_peft_files_are_one_network(
  root, later, tmp_path, asked, adapter, merged
):
  """base + SFT + adapter -> the merged base and the adapter that names it."""
  load = functools.partial(vlm_rlaif_jax.load, dtype='float32', frames=4)
  said = []
  conversion.convert(later / 'run' / 'sft', tmp_path / 'base', Request(to=merged))
  conversion.convert(
    later / 'run' / 'init',
    tmp_path / 'peft',
    Request(to=adapter, base_name=str(tmp_path / 'base')),
    log=said.append,
  )
  assert any(
    f'{later / "run" / "sft"} merged into it; its file names {tmp_path / "base"}'
    in line
    for line in said
  )
  assert (tmp_path / 'peft' / 'generation_config.json').is_file()
  stage, peft_files = load(later / 'run' / 'init'), load(tmp_path / 'peft')
  np.testing.assert_allclose(peft_files.logits(*asked), stage.logits(*asked), atol=1e-5)
  untuned = load(tmp_path / 'peft', base=str(root / 'ours'))
  assert np.abs(untuned.logits(*asked) - stage.logits(*asked)).max() > 1


def test_what_a_peft_file_cannot_name_is_not_guessed(root, later, tmp_path):
  """A base that nobody has written yet, and the critic's."""
  sft, out = later / 'run' / 'sft', tmp_path / 'out'

  def refused(stage, said, **names):
    with pytest.raises(UserError) as caught:
      conversion.convert(later / 'run' / stage, out, Request(**names))
    assert said in str(caught.value) and '\n' not in str(caught.value)
    assert not out.exists()

  make = f'python -m launch.convert {sft} OUT --to=llava, and name it with --base_name'
  refused('init', make)
  refused('init', '--to=hf, and name it', to='peft-hf')
  refused('init', 'only a PPO stage', base_name='x', critic_base_name='y')
  refused('ppo', make)
  make = f'python -m launch.convert {later / "critic"} OUT --to=llava'
  refused('ppo', f'{make}, and name it with --critic_base_name=OUT', base_name='x')
  conversion.convert(
    later / 'run' / 'ppo', out, Request(base_name='x', critic_base_name='y')
  )
  places = peft_files.find(out)
  assert [peft_files.read(places[role]).base for role in ('policy', 'value')] == [
    'x',
    'y',
  ]


def _leaves(model):
  return jax.tree.leaves(model.variables)


def test_default_dtype_is_bfloat16_and_norms_are_float32(root):
  params = vlm_rlaif_jax.load(root / 'ours').variables['params']
  assert params['llama']['head']['w'].dtype == jnp.bfloat16
  assert params['llama']['final_norm']['scale'].dtype == jnp.float32


@pytest.mark.slow
def test_four_bits_are_held_on_the_device(tmp_path, asked):
  """4.13 bits a weight, and the same leaves from 16-bit and from NF4 folders."""
  cfg = dataclasses.replace(
    CFG, llama=dataclasses.replace(CFG.llama, width=128, mlp=384, head_dim=32)
  )
  checkpoints.write_base(tmp_path / 'ours', cfg=cfg)
  conversion.convert(tmp_path / 'ours', tmp_path / 'nf4', Request(bits=4))
  load = functools.partial(vlm_rlaif_jax.load, dtype='float32', frames=4)
  quantized, read = (load(tmp_path / name, bits=4) for name in ('ours', 'nf4'))
  for model in (quantized, read):
    layers = model.variables['params']['llama']['layers']
    linears = {name: layers[name]['w'] for name in LINEARS}
    assert all(isinstance(leaf, Nf4) for leaf in linears.values())
    arrays = jax.tree.leaves(linears)
    assert all(isinstance(array, jax.Array) for array in arrays)
    count = sum(np.prod(leaf.shape) for leaf in linears.values())
    bits = 8 * sum(array.nbytes for array in arrays) / (cfg.llama.layers * count)
    assert 4.125 < bits < 4.15
  for one, other in zip(_leaves(quantized), _leaves(read), strict=True):
    np.testing.assert_array_equal(one, other)
  wide = load(tmp_path / 'nf4', bits=16)
  assert wide.variables['params']['llama']['layers']['q']['w'].dtype == jnp.float32
  found = read.logits(*asked)
  np.testing.assert_allclose(found, wide.logits(*asked), atol=1e-4)
  assert np.abs(found).max() > 1


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda m, ids, x: m.logits(ids, x.astype(np.float32)), 'uint8'),
    (lambda m, ids, x: m.logits(np.abs(ids), x), 'one -200 a row'),
    (lambda m, ids, x: m.answer('nowhere.mp4', 'What?'), 'no such file'),
    (lambda m, ids, x: m.answer('a.mp4', 'What? ' * 500), 'exceed the 640 positions'),
  ],
)
def test_what_cannot_be_asked_is_said(model, asked, call, message):
  with pytest.raises(UserError, match=message):
    call(model, *asked)


def test_a_decoder_that_crashes_does_not_end_the_notebook(model, tmp_path, monkeypatch):
  monkeypatch.setattr(decoder_pool, 'MODULE', 'tests.data.bad_decoder')
  monkeypatch.chdir(tmp_path)
  pathlib.Path('crash.mp4').write_bytes(b'x')
  vars(model).pop('_decoders', None)
  with pytest.raises(UserError, match=r'crash\.mp4: its decoder crashed \(SIGSEGV\)'):
    model.encode('crash.mp4')
  vars(model).pop('_decoders').close()


def test_what_cannot_be_loaded_is_said(root, tmp_path):
  with pytest.raises(UserError, match='bits'):
    vlm_rlaif_jax.load(root / 'ours', bits=3)
  with pytest.raises(UserError, match='dtype: choose one of'):
    vlm_rlaif_jax.load(root / 'ours', dtype='int8')
  with pytest.raises(UserError, match='needs the network under it'):
    vlm_rlaif_jax.load(root / 'reward')
  (tmp_path / 'model.json').write_text('{"llama.width": "wide"}')
  with pytest.raises(UserError, match=r'llama\.width'):
    vlm_rlaif_jax.load(tmp_path)
