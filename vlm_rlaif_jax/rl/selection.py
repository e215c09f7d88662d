"""Which policy of a run is kept, by a held-out score that is not the trained reward.

The reward is what PPO optimizes, so past some point it rises while answers get worse
(Gao et al. 2023). The score is the judge's, who reads the narrative of the clips, or
the truth where a data set has one; both are of the same held-out questions, answered
with the same key at every evaluation.
"""

import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from vlm_rlaif_jax.core import hosts, sharding
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.rl.prompts import PromptDataset
from vlm_rlaif_jax.train import console
from vlm_rlaif_jax.train.state import TrainState
from vlm_rlaif_jax.weights import artifacts
from vlm_rlaif_jax.weights.artifact_paths import artifact_json

# Below the folder of the stage, by iteration: the adapters of the best evaluation. A
# checkpoint names the best of its own time, and a run that goes on from there has to
# find it, whatever was best until it was killed.
FOLDER = 'best'
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
    self.saved_best: int | None = None  # of the newest checkpoint

  def resume(self) -> None:
    """Finds the best policy that the checkpoint names, and drops all others.

    Raises:
      ArtifactError: it is not there.
    """
    best = self.saved_best = self._best()
    if best is not None:
      path = artifact_json(self._place(best))
      former = self.folder / 'artifact'  # of an earlier version, which had only one
      if hosts.is_first() and former.is_dir() and not path.is_file():
        self._place(best).mkdir(exist_ok=True)
        former.rename(path.parent)
      hosts.barrier(f'best of {self.folder}')
      if self.score and not path.is_file():
        raise artifacts.ArtifactError(
          f'{self._place(best)}: the checkpoint says that this policy is the best so '
          'far, and it is not there; --config.checkpoint.on_change=restart starts anew'
        )
    self._keep_only(best)

  def saved(self) -> None:
    """Drops policies that no checkpoint names, when a newer one has been written.

    That one may not be on disk yet, the one before it is.
    """
    best = self._best()
    self._keep_only(self.saved_best, best)
    self.saved_best = best

  def _best(self) -> int | None:
    """Returns the iteration of the best evaluation so far; None before the first."""
    return self.history['best']['iteration'] if 'best' in self.history else None

  def _place(self, iteration: int) -> pathlib.Path:
    """Returns the folder of the policy of an iteration."""
    return self.folder / str(iteration)

  def _keep_only(self, *iterations: int | None) -> None:
    if not hosts.is_first() or not self.folder.is_dir():
      return
    names = {str(iteration) for iteration in iterations}
    for path in self.folder.iterdir():
      if path.name not in names:
        shutil.rmtree(path, ignore_errors=True)

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
    step = int(state.step)
    artifacts.save(self._place(step) / 'artifact', artifact)
    self.history['best'] = {'iteration': step, 'score': row[self.score]}
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
    """Returns the `parts_of` the policy that the run leaves.

    Raises:
      ArtifactError: none was selected, as in a run that had ended with select=last.
    """
    if not self.score:
      return parts_of(state)
    best = self._best()
    if best is None:
      raise artifacts.ArtifactError(
        f'{self.folder}: has no policy selected by {self.score}, which no evaluation '
        'of this run measured; use config.ppo.select=last, or '
        '--config.checkpoint.on_change=restart to start anew'
      )
    return artifacts.load(self._place(best), STAGE).parts


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
