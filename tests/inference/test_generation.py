"""Answers and judgments of lists of prompts."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny import CFG, random_params
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference import sampler
from vlm_rlaif_jax.inference.generation import GenerationError, Generator
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.settings.constants import VIDEO
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig


@pytest.mark.slow
def test_what_is_no_number_is_refused():
  """NaN is neither above nor below a margin, so its judge would prefer one side."""
  mesh = sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  features = types.SimpleNamespace(
    mesh=mesh,
    data=DataConfig(frames=2),
    read=lambda kind, video: np.zeros((6, CFG.llama.width), np.float32),
  )
  llama = random_params()['llama']
  llama['final_norm']['scale'] = jnp.full_like(llama['final_norm']['scale'], jnp.nan)
  variables = {'params': {'llama': llama}}
  generator = Generator(Vlm(CFG), variables, None, features, (8,), 2)  # type: ignore
  prompts = [np.asarray([1, VIDEO, 5, 6], np.int32)] * 2
  videos = [Video(('a.mp4',)), Video(('b.mp4',))]
  with pytest.raises(GenerationError, match='log-odds of a judgment are NaN'):
    generator.log_odds(prompts, videos, (7, 9))
  settings = sampler.Sampling(2, eos=2)
  with pytest.raises(GenerationError, match='log-probabilities of answers are NaN'):
    generator.generate(prompts, videos, range(2), settings, jax.random.key(0))
