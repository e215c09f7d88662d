"""Targets by name: chips, their memory and rates, and devices to compile for.

`a100x8` is eight GPUs of one host (`a100-40x8`: those with 40 GB), `v5e:4x4` a TPU
slice, `cpux8` the simulated devices of this machine. The facts of each chip are in
`core/chips/<chip>.json`, beside the description that XLA compiles GPUs from.
"""

import contextlib
import ctypes.util
import dataclasses
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from vlm_rlaif_jax.core import chips
from vlm_rlaif_jax.settings.build import UserError

SLICES = {
  'v4': ('2x2x1', '2x2x2', '2x2x4', '4x4x4'),
  'v5e': ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
  'v5p': ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8'),
  'v6e': ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16'),
}
GPUS_A_HOST = 8
COMPILERS = {
  'cpu': (),
  'cuda': ('jax_cuda12_plugin', 'jax_cuda13_plugin'),
  'tpu': ('libtpu',),
}


class TargetError(UserError):
  """A target that is not known, or that this machine cannot compile for."""


@dataclasses.dataclass(frozen=True)
class Target:
  """Some chips of one kind. Bytes, operations a second in bf16, bytes a second.

  Attributes:
    link: what a chip can send to the others, in one direction.
  """

  name: str
  chip: str
  platform: str
  extra: str
  shape: tuple[int, ...]
  memory: int
  flops: float
  bandwidth: float
  link: float
  config: str = ''
  note: str = ''

  @property
  def count(self) -> int:
    return math.prod(self.shape)


def parse(name: str) -> Target:
  """Returns the target of a name like 'a100x8' or 'v5p:2x2x2'."""
  kinds = chips.table()
  gpu = re.fullmatch(r'([a-z]+\d*(?:-\d+)?)x(\d+)', name)
  tpu = re.fullmatch(r'(v\d\w*):(\d+(?:x\d+)+)', name)
  kind = (gpu or tpu or [None, None])[1]
  if kind not in kinds or (kind in SLICES) != bool(tpu):
    examples = [f'{k}:{SLICES[k][-1]}' if k in SLICES else f'{k}x8' for k in kinds]
    raise TargetError(f'--target {name}: choose one like {", ".join(examples)}')
  shape = tuple(int(n) for n in (gpu or tpu)[2].split('x'))  # type: ignore[index]
  if not math.prod(shape):
    raise TargetError(f'--target {name}: no devices; choose one like {kind}x8')
  if tpu and tpu[2] not in SLICES[kind]:
    near = min(
      SLICES[kind],
      key=lambda s: abs(math.prod(map(int, s.split('x'))) - math.prod(shape)),
    )
    raise TargetError(
      f'--target {name}: no such slice of {kind}; the nearest is {kind}:{near}, known '
      f'are {", ".join(SLICES[kind])}'
    )
  if gpu and shape[0] > GPUS_A_HOST and shape[0] % GPUS_A_HOST:
    near = max(1, round(shape[0] / GPUS_A_HOST)) * GPUS_A_HOST
    raise TargetError(
      f'--target {name}: hosts have {GPUS_A_HOST} GPUs; the nearest is {kind}x{near}'
    )
  return _target(name, kind, shape)


def here(devices: Sequence[Any]) -> Target:
  """Returns the devices of this process as a target; unknown chips have rates of 0."""
  kind = chips.name_of(devices[0].device_kind)
  target = _target(f'{len(devices)} device(s) here', kind or 'cpu', (len(devices),))
  if kind:
    return target
  platform = devices[0].platform
  return dataclasses.replace(target, platform='cuda' if platform == 'gpu' else platform)


def _target(name: str, kind: str, shape: tuple[int, ...]) -> Target:
  names = ('kinds', 'unlike')
  facts = {k: v for k, v in chips.table()[kind].items() if k not in names}
  return Target(name=name, shape=shape, **facts)


def devices(target: Target) -> list:
  """Returns devices that programs can be compiled for, and not run on."""
  compilers = COMPILERS[target.platform]
  absent = ''
  if compilers and not any(importlib.util.find_spec(name) for name in compilers):
    absent = 'its compiler'
  elif target.platform == 'cuda' and not _has_cudnn():
    absent = 'cuDNN, whose attention its programs call,'
  if absent:
    raise TargetError(
      f'--target {target.name}: {absent} is not installed: '
      f"pip install 'vlm-rlaif-jax[{target.extra}]'"
    )
  try:
    return list(_describe(target).devices)
  except (NotImplementedError, RuntimeError, ValueError) as error:
    message = str(error).splitlines()[0]
    raise TargetError(f'--target {target.name}: the compiler says: {message}') from None


def _has_cudnn() -> bool:
  """Whether cuDNN can be loaded, from its package or from the system."""
  with contextlib.suppress(ModuleNotFoundError):
    if importlib.util.find_spec('nvidia.cudnn'):
      return True
  return ctypes.util.find_library('cudnn') is not None


def _describe(target: Target):
  if target.platform == 'cpu':
    return topologies.TopologyDescription(jax.devices('cpu')[: target.count])
  if target.platform == 'cuda':
    hosts = max(1, target.count // GPUS_A_HOST)
    config = (chips.FOLDER / f'{target.name.partition("x")[0]}.txtpb').read_text()
    return topologies.get_topology_desc(
      platform='cuda',
      target_config=config,
      topology=f'1x{hosts}x{target.count // hosts}',
    )
  more = {'chip_config_name': target.config} if target.config else {}
  return topologies.get_topology_desc(platform='tpu', topology_name=target.name, **more)
