"""Which policy of a run is kept, by a held-out score that is not the trained reward.

The reward is what PPO optimizes, so past some point it rises while answers get worse
(Gao et al. 2023). The score is the judge's, who reads the narrative of the clips, or
the truth where a data set has one; both are of the same held-out questions, answered
with the same key at every evaluation.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.rl.prompts import PromptDataset
from vlm_rlaif_jax.train import console
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.weights import artifacts

FOLDER = 'best'  # below that of the stage: the adapters of the best evaluation
STAGE = 'ppo-best'
REWARD = 'held_out/reward'  # metric: the mean reward of held-out answers
PATIENCE = 2  # evaluations in a row that raise the alarm


class Selection:
  """Keeps the trainable weights of the best evaluation on disk.

  Args:
    folder: of the stage.
    score: metric of an evaluation that decides; '' keeps the last state.
    history: of `rl.loop.Iterations`; this adds `best`, `selected_by` (its metric) and
      `over_optimized`, saved with every checkpoint.
  """

  def __init__(self, folder: pathlib.Path, score: str, history: dict[str, Any]):
    self.folder, self.score, self.history = folder / FOLDER, score, history

  def offer(self, state: TrainState, row: dict[str, float]) -> None:
    """Keeps a state if its evaluation is the best so far; of equals, the first."""
    if not self.score:
      return
    best = self.history.get('best')
    # A run that goes on may select by another metric: those do not compare.
    comparable = self.history.get('selected_by', self.score) == self.score
    if best is not None and comparable and row[self.score] <= best['score']:
      return
    artifact = artifacts.Artifact(parts_of(state), {'stage': STAGE})
    artifacts.save(self.folder / 'artifact', artifact)
    self.history['best'] = {'iteration': int(state.step), 'score': row[self.score]}
    self.history['selected_by'] = self.score

  def check_optimization(self) -> None:
    """Says once that the reward rises while the held-out score falls."""
    if not self.score or 'over_optimized' in self.history:
      return
    rewards, scores = (self.history[name] for name in (REWARD, self.score))
    both = [step for step in rewards if step in scores]
    if is_over_optimized(
      [rewards[step] for step in both], [scores[step] for step in both]
    ):
      step = self.history['over_optimized'] = int(list(self.history[self.score])[-1])
      console.say(
        f'  iteration {step}: the reward rises while {self.score} falls, twice in a '
        f'row; the policy of iteration {self.history["best"]["iteration"]} is the best'
      )

  def parts(self, state: TrainState) -> dict[str, Any]:
    """Returns the `parts_of` the policy that the run leaves."""
    if self.score:
      return artifacts.load(self.folder, STAGE).parts
    return parts_of(state)


def check(select: str, dataset: PromptDataset) -> None:
  """Raises DataError where the score that selects a policy cannot be measured."""
  if select != 'last' and not dataset.eval:
    raise DataError(
      f'config.ppo.select={select}: no prompt is held out to compare policies by; '
      'raise config.data.holdout, or use last'
    )
  if select != 'truth':
    return
  if dataset.truth is None:
    raise DataError(
      'config.ppo.select=truth: the data have no truth.json; use judge or last'
    )
  truth = dataset.truth
  if not any(prompt.example.key in truth for prompt in dataset.eval):
    raise DataError(
      f'config.ppo.select=truth: truth.json has the id of none of {len(dataset.eval)} '
      'held-out prompts; use judge or last'
    )


def parts_of(state: TrainState) -> dict[str, Any]:
  """Returns policy, value and value head of a state, on the host.

  The last two are there where the algorithm trains a value function.
  """
  parts = dict(sharding.to_host(state.trainable))
  if 'head' in parts:
    head = parts.pop('head')
    parts['value_head'] = {'w': head.w, 'b': head.b}
  return parts


def is_over_optimized(rewards: Sequence[float], scores: Sequence[float]) -> bool:
  """Returns whether the reward rose while the score fell in the last evaluations.

  Args:
    rewards, scores: of all evaluations so far, in order.
  """
  if len(rewards) <= PATIENCE:
    return False
  recent = range(len(rewards) - PATIENCE, len(rewards))
  return all(rewards[i] > rewards[i - 1] and scores[i] < scores[i - 1] for i in recent)
