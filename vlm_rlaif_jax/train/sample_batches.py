"""Batches of the supervised stages: texts, and the features of their videos."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data import batches, readers
from vlm_rlaif_jax.inference.features import VisualFeatures


@dataclasses.dataclass(frozen=True)
class SampleBatches:
  """Makes the batch of a step, on the devices, or what its shapes are.

  Attributes:
    kind: of the features: 'patches', which are `patches [B, F, P, C]` of the batch, or
      'tokens', which are `visual [B, N, D]`.
  """

  samples: list[readers.Sample]
  features: VisualFeatures
  kind: str

  @property
  def field(self) -> str:
    """Returns the name of the features in a batch."""
    return {'patches': 'patches', 'tokens': 'visual'}[self.kind]

  def __call__(self, step: batches.Step) -> dict:
    """Returns a batch; each host reads the rows of its own devices."""
    mesh = self.features.mesh
    rows = sharding.rows_of_this_host(len(step.indices), mesh)
    indices = step.indices[rows]
    picked = [None if i == batches.BLANK else self.samples[i] for i in indices]
    frames, length = step.shape  # type: ignore[misc]
    arrays = [
      self.features.read(self.kind, sample.example.video)
      if sample and sample.example.video
      else self.features.blank(self.kind, frames)
      for sample in picked
    ]
    batch = {**readers.collate(picked, length), self.field: np.stack(arrays)}
    return sharding.put_batch(batch, mesh)

  def shapes(self, step: batches.Step) -> dict:
    """Returns the shapes of a batch; nothing is read."""
    frames, length = step.shape  # type: ignore[misc]
    blank = self.features.blank(self.kind, frames)
    row = {**readers.collate([None], length), self.field: blank[None]}
    return shapes_of_rows(row, len(step.indices), self.features.mesh)


def shapes_of_rows(row: dict, count: int, mesh: Mesh) -> dict:
  """Returns the shapes of a batch of so many rows like one on the host."""
  layout = sharding.by_batch(mesh)
  return {
    name: jax.ShapeDtypeStruct((count, *value.shape[1:]), value.dtype, sharding=layout)
    for name, value in row.items()
  }
