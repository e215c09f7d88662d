"""Whether a run can be on its devices at all: arithmetic on shapes, before anything is
compiled or allocated."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import jax

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan import generation, phases, ppo
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.eval import EvalRun
from vlm_rlaif_jax.settings.init import InitRun
from vlm_rlaif_jax.settings.label import LabelRun
from vlm_rlaif_jax.settings.models import LoraConfig
from vlm_rlaif_jax.settings.ppo import PpoRun
from vlm_rlaif_jax.settings.pretrain import PretrainRun
from vlm_rlaif_jax.settings.reward import RewardRun
from vlm_rlaif_jax.settings.sections import MeshConfig
from vlm_rlaif_jax.settings.sft import SftRun
from vlm_rlaif_jax.settings.stage import Run
from vlm_rlaif_jax.train import shardings

GB = 1e9
ROOM = 0.7  # of a device's memory, for what an advised layout keeps there for good

Loras = tuple[LoraConfig, LoraConfig]


class FitError(UserError):
  """A run that cannot be on its devices, with the nearest settings that can."""


def check(settings: Run, devices, memory: float, loras: Loras) -> float:
  """Refuses a mesh, a batch or a model that these devices cannot take.

  Returns:
    `resident`.

  Args:
    memory: bytes of one device; 0: not known, nothing is refused for its size.
    loras: adapters of PPO's actor and critic, which earlier stages decide.
  """
  mesh = sharding.make_mesh(settings.mesh, devices)
  need = _on(settings, mesh, loras)
  if memory and need > memory:
    shape = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
    nearest = next(_nearest(settings, devices, memory, loras), None)
    raise FitError(
      f'{settings.stage}: weights, adapters and optimizer need {need / GB:.1f} GB a '
      f'device on config.mesh {shape}, a device has {memory / GB:.1f} GB; '
      + (nearest or 'no mesh of these devices, nor NF4, is enough: take more of them')
    )
  return need


def resident(settings: Run, mesh, loras: Loras) -> float:
  """Bytes on one device of what a stage keeps there from its first step to its last."""
  if isinstance(settings, PpoRun):
    networks, frozen, state, _ = ppo.ppo_trees(settings, mesh, *loras)
    leaves = jax.tree.leaves((networks, frozen, state))
    once = {id(leaf): leaf for leaf in leaves}  # both roles may have one base
    return sharding.bytes_per_device(list(once.values()))
  if isinstance(settings, SftRun | InitRun | RewardRun):
    phase = phases.of(settings, mesh, loras)[-1]
    return sharding.bytes_per_device(phase.arguments[:2])
  if isinstance(settings, PretrainRun):
    return 0.0  # the tiny size alone
  held = [shardings.abstract_base(settings.model, mesh, 'llama', held=settings.quant)]
  if isinstance(settings, EvalRun) and generation.has_adapter(settings):
    held.append(shardings.abstract_adapter(settings.model, loras[0], mesh))
  return sharding.bytes_per_device(held)


def check_heads(settings: Run, mesh) -> None:
  """Refuses to split the attention heads of a network unevenly."""
  shards = sharding.ways(mesh, sharding.RULES['kv_heads'])
  for name in ('model', 'critic'):
    cfg = getattr(settings, name, None)
    if cfg and cfg.llama.kv_heads % shards:
      heads = cfg.llama.kv_heads
      raise sharding.MeshError(
        f'config.mesh.tensor: the {heads} heads of config.{name} do not divide over '
        f'{shards} devices; the nearest that does is {math.gcd(heads, shards)}'
      )


def check_batches(settings: Run, mesh) -> None:
  """Refuses batches that the devices cannot share, with the nearest that they can."""
  if isinstance(settings, PpoRun):
    for name in ('rollout_batch', 'step_batch', 'micro_batch', 'sample_batch'):
      value = getattr(settings.ppo, name)
      sharding.check_batch(value, mesh, f'config.ppo.{name}')
  elif isinstance(settings, SftRun | InitRun | RewardRun):
    size, times = settings.optim.batch_size, settings.optim.accumulate
    label = f'config.optim.batch_size / accumulate (accumulate={times})'
    sharding.check_batch(size // times, mesh, label)
  elif isinstance(settings, LabelRun):
    sharding.check_batch(settings.label.batch, mesh, 'config.label.batch')
  elif isinstance(settings, EvalRun):
    sharding.check_batch(settings.eval.batch, mesh, 'config.eval.batch')


def _on(settings: Run, mesh, loras: Loras) -> float:
  """Bytes of one device, where heads and batches divide over the mesh."""
  check_heads(settings, mesh)
  check_batches(settings, mesh)
  return resident(settings, mesh, loras)


def _nearest(settings: Run, devices, memory: float, loras: Loras) -> Iterator[str]:
  """Flags that leave room for activations: 4 bits, another mesh, then both."""
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
  tried = [(settings.mesh, in_nf4)] if in_nf4 else []
  tried += [(mesh, {}) for mesh in meshes]
  tried += [(mesh, in_nf4) for mesh in meshes]
  for mesh, held in tried:
    changed = dataclasses.replace(settings, mesh=mesh, **held)
    try:
      need = _on(changed, sharding.make_mesh(mesh, devices), loras)
    except sharding.MeshError:  # too few devices, or something that does not divide
      continue
    if need < ROOM * memory:
      flags = [
        f'--config.mesh.{name}={getattr(mesh, name)}'
        for name in sharding.AXES
        if getattr(mesh, name) != getattr(settings.mesh, name)
      ] + [f'--config.{name}.residency=nf4' for name in held]
      yield f'{need / GB:.1f} GB with {" ".join(flags)}'
