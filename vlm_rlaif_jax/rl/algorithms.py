"""The algorithms that `ppo.algorithm` chooses from."""

from vlm_rlaif_jax.rl.algorithm import Algorithm
from vlm_rlaif_jax.rl.grpo import GrpoLearner
from vlm_rlaif_jax.rl.ppo import PpoLearner

LEARNERS: dict[str, type[Algorithm]] = {'ppo': PpoLearner, 'grpo': GrpoLearner}
