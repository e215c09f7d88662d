"""The work of an optimizer step is what its traced program executes."""

import dataclasses
from typing import Literal

import jax
import pytest

from tests.tiny import CFG, LORA
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.nn.vlm import Vlm
from vlm_rlaif_jax.plan import count, training
from vlm_rlaif_jax.settings.models import VlmConfig
from vlm_rlaif_jax.settings.reward import RewardConfig, RewardRun
from vlm_rlaif_jax.settings.sections import DataConfig, MeshConfig, OptimConfig
from vlm_rlaif_jax.train import pairwise
from vlm_rlaif_jax.train.profiling import flops

PAIRS, TEXT, FRAMES = 8, 16, 2


pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1])


def step_of(
  mesh,
  cfg: VlmConfig = CFG,
  centering=0.1,
  accumulate=4,
  mean: Literal['step', 'micro_batch'] = 'step',
):
  settings = RewardRun(
    size='tiny', model=cfg, lora=LORA, reward=RewardConfig(centering=centering),
    data=DataConfig(frames=FRAMES, buckets=(TEXT,)),
    optim=OptimConfig(batch_size=PAIRS, accumulate=accumulate, loss_mean=mean),
  )  # fmt: skip
  return training.reward_phase(settings, mesh)


def executed(program, *arguments) -> float:
  return count.executed(program.trace(*arguments).jaxpr.jaxpr, 1, 'cpu')


def test_centering_over_a_step_costs_a_forward_pass_of_all_its_pairs(mesh):
  with_term, without = step_of(mesh), step_of(mesh, centering=0.0)
  state, frozen, batch = with_term.arguments
  scoring = pairwise.score_program(Vlm(CFG, LORA), mesh, state.trainable, frozen)
  once = executed(scoring, state.trainable, frozen, batch)
  more = executed(with_term.program, *with_term.arguments) - executed(
    without.program, *without.arguments
  )
  assert more == pytest.approx(once, rel=1e-6)

  # The plan has as much, but for the half of the square that attention masks.
  (work,), (bare,) = with_term.work, without.work
  positions = TEXT + FRAMES + CFG.vision.patches - 1
  forward = 2 * PAIRS * flops.forward(CFG.llama, LORA, positions)
  assert work.remat_flops - bare.remat_flops == forward
  assert 1 <= once / forward < 1.2
  assert work.flops == bare.flops
  # Two passes over the weights in each of four micro-batches become three.
  assert work.bytes_moved / bare.bytes_moved == pytest.approx(3 / 2)


@pytest.mark.parametrize(
  'other', [{'accumulate': 1}, {'mean': 'micro_batch'}, {'centering': 0.0}]
)
def test_centering_of_each_micro_batch_costs_nothing(mesh, other):
  (work,) = step_of(mesh, **other).work
  assert work.remat_flops == 0


def test_what_is_recomputed_follows_remat(mesh):
  """What a traced program executes more than without is what is planned.

  It also computes the half of the square that attention masks; of a whole forward pass,
  products that no gradient reads are left out.
  """
  none = step_of(mesh, accumulate=1)
  positions = TEXT + FRAMES + CFG.vision.patches - 1
  llama = CFG.llama
  masked = 2 * llama.layers * positions**2 * llama.heads * llama.head_dim
  counted = {
    'full': (flops.forward(llama, LORA, positions), 0.8),
    'names': (flops.recomputed_by_names(llama, LORA, positions), 1),
  }
  for remat, (each, least) in counted.items():
    phase = step_of(mesh, dataclasses.replace(CFG, remat=remat), accumulate=1)
    (work,) = phase.work
    assert work.remat_flops == 2 * PAIRS * each
    more = executed(phase.program, *phase.arguments) - executed(
      none.program, *none.arguments
    )
    assert least <= more / (2 * PAIRS * (each + masked)) <= 1
