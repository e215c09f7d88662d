from vlm_rlaif_jax.data.tokens import load_tokenizer
from vlm_rlaif_jax.stages import ppo as stage
from vlm_rlaif_jax.weights import bases


def test_stop_ids():
  tokenizer = load_tokenizer(bases.TINY)
  spaced, glued = stage.stop_ids(tokenizer, (' ?', '?'))
  assert tokenizer.pieces('it ?')[-1] == spaced
  assert tokenizer.pieces('it?')[-1] == glued
