"""All benchmarks, by name."""

from collections.abc import Mapping

from vlm_rlaif_jax.evals.benchmarks import action, choice, generative, qa, retrieval
from vlm_rlaif_jax.evals.benchmarks.benchmark import Benchmark
from vlm_rlaif_jax.settings.build import UserError

_ALL: tuple[Benchmark, ...] = (
  *qa.ALL,
  *generative.ALL,
  *retrieval.ALL,
  *action.ALL,
  *choice.ALL,
)

BENCHMARKS: Mapping[str, Benchmark] = {one.name: one for one in _ALL}


def named(name: str) -> Benchmark:
  """Returns a benchmark; raises UserError for a name that none has."""
  if name not in BENCHMARKS:
    raise UserError(
      f'config.eval.benchmarks: no benchmark {name!r}; choose some of '
      f'{", ".join(BENCHMARKS)}'
    )
  return BENCHMARKS[name]
