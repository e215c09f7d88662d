import functools
import threading
import time

import numpy as np
import pytest

from tests.data import clips
from vlm_rlaif_jax.data import batches, decoder_pool, image
from vlm_rlaif_jax.data.decoder_pool import DecoderPool
from vlm_rlaif_jax.data.video import Video, VideoError, read_frames
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.sections import DataConfig


@pytest.fixture
def settings(tmp_path):
  clips.write(tmp_path / 'good.mp4', 60)
  return DataConfig(root=str(tmp_path), frames=6, decode_timeout=20.0)


def results_of(pool: DecoderPool, names: list[str], workers: int) -> list:
  def read(name: str):
    try:
      return pool.read((name,))
    except VideoError as error:
      return str(error)

  return list(batches.parallel(read, names, workers))


def test_squares_are_those_of_this_process(tmp_path, settings):
  (tmp_path / 'broken.mp4').write_bytes(b'no video' * 99)
  with DecoderPool(settings, 32) as pool:
    good, broken, again = results_of(pool, ['good.mp4', 'broken.mp4', 'good.mp4'], 2)
  square = functools.partial(image.square, size=32, aspect='pad')
  expected = read_frames(Video(('good.mp4',)), tmp_path, 6, square)
  np.testing.assert_array_equal(good, expected)
  np.testing.assert_array_equal(again, expected)
  assert broken.startswith(f'{tmp_path}/broken.mp4: cannot be decoded (')


def test_a_decoder_that_hangs_or_crashes_costs_its_video_alone(
  tmp_path, settings, monkeypatch
):
  monkeypatch.setattr(decoder_pool, 'MODULE', 'tests.data.bad_decoder')
  settings = DataConfig(root=settings.root, frames=6, decode_timeout=1.5)
  names = ['good.mp4', 'hang.mp4', 'crash.mp4', 'noise.mp4', 'good.mp4']
  with DecoderPool(settings, 32) as pool:
    first, hang, crash, noise, last = results_of(pool, names, 2)
    processes = [decoder.process for decoder in pool._all]
  assert first.shape == last.shape == (6, 32, 32, 3)
  advice = '(config.data.decode_timeout)'
  assert hang == f'{tmp_path}/hang.mp4: not decoded within 1.5 s {advice}'
  assert crash == f'{tmp_path}/crash.mp4: its decoder crashed (SIGSEGV)'
  assert noise == "noise.mp4: cannot be decoded (KeyError('a library raises this'))"
  assert processes and all(process.poll() is not None for process in processes)
  with pytest.raises(VideoError, match='closed'):
    pool.read(('good.mp4',))


def test_an_idle_decoder_that_was_killed_is_no_fault_of_the_next_video(settings):
  with DecoderPool(settings, 32) as pool:
    pool.read(('good.mp4',))
    pool._all[0].process.kill()
    pool._all[0].process.wait()
    assert pool.read(('good.mp4',)).shape == (6, 32, 32, 3)


def test_a_decoder_that_cannot_start_is_no_fault_of_a_video(settings, monkeypatch):
  monkeypatch.setattr(decoder_pool, 'MODULE', 'vlm_rlaif_jax.no_such_module')
  with DecoderPool(settings, 32) as pool, pytest.raises(UserError, match='not start'):
    pool.read(('good.mp4',))


def test_a_thread_that_waits_ends_when_the_pool_closes(settings, monkeypatch):
  """Not at its deadline: the pipe must not be closed under it."""
  monkeypatch.setattr(decoder_pool, 'MODULE', 'tests.data.bad_decoder')
  for _ in range(4):
    pool, errors = DecoderPool(settings, 16), []

    def read(pool=pool, errors=errors):
      try:
        pool.read(('hang.mp4',))
      except VideoError as error:
        errors.append(str(error))

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
      thread.start()
    while len(pool._all) < 2 or not all(one.has_started for one in pool._all):
      time.sleep(0.05)
    time.sleep(0.2)  # asked, and waiting
    pool.close()
    for thread in threads:
      thread.join(timeout=10)
      assert not thread.is_alive()
    assert len(errors) == 2 and all('decoder crashed' in text for text in errors)


def test_a_pipe_is_not_closed_under_a_thread_that_waits(settings):
  """That thread would not be woken, and would wait until its deadline."""
  with DecoderPool(settings, 16) as pool:
    pool.read(('good.mp4',))
    (decoder,) = pool._all
    with decoder._in_use:
      decoder.kill()
      assert not decoder.process.stdout.closed
    decoder.kill()
    assert decoder.process.stdout.closed
