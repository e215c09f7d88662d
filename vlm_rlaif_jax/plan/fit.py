"""Whether a run can be on its devices at all: arithmetic on shapes, before anything is
compiled or allocated."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan import phases
from vlm_rlaif_jax.plan.phases import Loras
from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.sections import MeshConfig
from vlm_rlaif_jax.settings.stage import Run

GB = 1e9
ROOM = 0.7  # of a device's memory, for what an advised layout keeps there for good


class FitError(UserError):
  """A run that cannot be on its devices, with the nearest settings that can."""


def check(settings: Run, devices: Sequence[Any], memory: float, loras: Loras) -> float:
  """Raises an error for a mesh, a batch or a model that these devices cannot take.

  Returns:
    `resident`.

  Args:
    memory: bytes of one device; 0: not known, nothing is refused for its size.
    loras: adapters of PPO's actor and critic, which earlier stages decide.
  """
  mesh = sharding.make_mesh(settings.mesh, devices)
  need = _resident_checked(settings, mesh, loras)
  if memory and need > memory:
    shape = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
    nearest = next(_nearest(settings, devices, memory, loras), None)
    raise FitError(
      f'{settings.stage}: weights, adapters and optimizer need {need / GB:.1f} GB a '
      f'device on config.mesh {shape}, a device has {memory / GB:.1f} GB; '
      + (nearest or 'no mesh of these devices, nor NF4, is enough: take more of them')
    )
  return need


def resident(settings: Run, mesh: Mesh, loras: Loras) -> float:
  """Returns bytes on one device of what a stage keeps there until its last step."""
  leaves = jax.tree.leaves(phases.resident(settings, mesh, loras))
  unique = {id(leaf): leaf for leaf in leaves}  # both roles of PPO may have one base
  return sharding.bytes_per_device(list(unique.values()))


def check_heads(settings: Run, mesh: Mesh) -> None:
  """Raises MeshError where the heads of a network would be split unevenly."""
  shards = sharding.ways(mesh, sharding.RULES['kv_heads'])
  for name in ('model', 'critic'):
    cfg = getattr(settings, name, None)
    if cfg and cfg.llama.kv_heads % shards:
      heads = cfg.llama.kv_heads
      raise sharding.MeshError(
        f'config.mesh.tensor: the {heads} heads of config.{name} do not divide over '
        f'{shards} devices; the nearest that does is {math.gcd(heads, shards)}'
      )


def check_batches(settings: Run, mesh: Mesh) -> None:
  """Raises MeshError for batches that the devices cannot share; names the nearest."""
  for name, rows in stages.of(settings).batches(settings):
    sharding.check_batch(rows, mesh, name)


def _resident_checked(settings: Run, mesh: Mesh, loras: Loras) -> float:
  """Returns bytes of one device, after checking that heads and batches divide."""
  check_heads(settings, mesh)
  check_batches(settings, mesh)
  return resident(settings, mesh, loras)


def _nearest(
  settings: Run, devices: Sequence[Any], memory: float, loras: Loras
) -> Iterator[str]:
  """Yields flags that leave room for activations: 4 bits, another mesh, then both."""
  quants = [name for name in ('quant', 'critic_quant') if hasattr(settings, name)]
  in_nf4 = {
    name: dataclasses.replace(getattr(settings, name), residency='nf4')
    for name in quants
    if getattr(settings, name).residency in ('native', 'nf4_bf16')
  }
  sizes = [2**i for i in range(9)]
  meshes = sorted(  # the least spread; decoding reads shards of tensor, gathers fsdp's
    (MeshConfig(data=-1, fsdp=f, tensor=t) for f, t in itertools.product(sizes, sizes)),
    key=lambda mesh: (mesh.fsdp * mesh.tensor, mesh.fsdp),
  )
  candidates = [(settings.mesh, in_nf4)] if in_nf4 else []
  candidates += [(mesh, {}) for mesh in meshes]
  candidates += [(mesh, in_nf4) for mesh in meshes]
  for mesh, quants_in_nf4 in candidates:
    changed = dataclasses.replace(settings, mesh=mesh, **quants_in_nf4)
    try:
      need = _resident_checked(changed, sharding.make_mesh(mesh, devices), loras)
    except sharding.MeshError:  # too few devices, or something that does not divide
      continue
    if need < ROOM * memory:
      flags = [
        f'--config.mesh.{name}={getattr(mesh, name)}'
        for name in sharding.AXES
        if getattr(mesh, name) != getattr(settings.mesh, name)
      ] + [f'--config.{name}.residency=nf4' for name in quants_in_nf4]
      yield f'{need / GB:.1f} GB with {" ".join(flags)}'
