"""Held-out pairs: how a state of training scores them, and what it needs to do so."""

import dataclasses
import json
import pathlib
import typing
from typing import Any

import numpy as np

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.data.pairs import PairSample
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.inference.features import VisualFeatures
from vlm_rlaif_jax.train import pair_controls, pairwise
from vlm_rlaif_jax.train.state import TrainState


@dataclasses.dataclass
class HeldOutPairs:
  """Pairs of held-out videos, and how a state of training scores them.

  Attributes:
    samples: the pairs.
    score: program that scores a batch, of `pairwise.programs`.
    frozen: weights below the adapter, on the devices.
    unnarrated: the same pairs without the narrative in their reward prompt; none where
      it has none.
    latest: margins of the last evaluation, by view.
  """

  samples: list[PairSample]
  features: VisualFeatures
  score: sharding.Program
  frozen: Any
  unnarrated: list[PairSample] = dataclasses.field(default_factory=list)
  latest: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def margins(self, state: TrainState, view: pairwise.View = 'own') -> np.ndarray:
    """Returns the score of the second answer less that of the first, of each pair."""
    return pairwise.pair_margins(
      self.score, state.trainable, self.frozen, self.samples, self.features, view
    )

  def evaluate(self, state: TrainState) -> dict[str, float]:
    """Returns how often the preferred answer wins, with the video and without."""
    self.latest.update({view: self.margins(state, view) for view in ('own', 'blank')})
    second = np.asarray([sample.pair.preferred == 1 for sample in self.samples])
    right = {
      v: float(np.mean(pair_controls.hits(m, second))) for v, m in self.latest.items()
    }
    return {
      'eval_accuracy': right['own'],
      'eval_accuracy_without_video': right['blank'],
    }

  def write(
    self, folder: pathlib.Path, state: TrainState, truth: Truth | None
  ) -> dict[str, Any]:
    """Writes the pairs and their margins; returns the accuracies of the summary.

    They are measured with the video, without, and with another one; and without the
    narrative, where the reward prompt has one. PPO measures the first again on its own
    base.
    """
    records = [sample.pair.example.record for sample in self.samples]
    hosts.write_atomically(folder / pairwise.HELD_OUT, json.dumps(records, indent=0))
    views = {view: self.margins(state, view) for view in typing.get_args(pairwise.View)}
    if self.unnarrated:
      views['no_narrative'] = pairwise.pair_margins(
        self.score, state.trainable, self.frozen, self.unnarrated, self.features
      )
    report = pair_controls.report(self.samples, views, truth) if self.samples else {}
    margins = pair_controls.margin_table(self.samples, views)
    hosts.write_atomically(folder / pairwise.MARGINS, json.dumps(margins))
    return report
