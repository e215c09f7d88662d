"""What an output depends on beside weights and prompts: files that may be replaced."""

import hashlib
import json

from vlm_rlaif_jax.data.tokens import Tokenizer
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.inference.features import VisualFeatures


def digest(features: VisualFeatures, tokenizer: Tokenizer, item: Video) -> str:
  """Returns what stands for the contents of a video, a tokenizer and a `model.json`.

  Args:
    features: of the network, which have read the video.
  """
  contents = [
    features.key(item),
    tokenizer.fingerprint,
    list(tokenizer.ends),
    features.model.cfg.identity,
  ]
  text = json.dumps(contents, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
