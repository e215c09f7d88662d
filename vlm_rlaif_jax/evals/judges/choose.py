"""Opens the judge that settings name."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from vlm_rlaif_jax.evals.judges.cache import VerdictCache
from vlm_rlaif_jax.evals.judges.endpoint import EndpointJudge, Progress, say
from vlm_rlaif_jax.evals.judges.exact import MatchJudge
from vlm_rlaif_jax.evals.judges.own_model import (
  Contents,
  Generate,
  LogOdds,
  OwnModelJudge,
  no_contents,
)
from vlm_rlaif_jax.evals.judges.world import WorldJudge
from vlm_rlaif_jax.evals.records import Judge
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.judge import JudgeConfig

CACHE = 'verdict_cache.jsonl'  # in the folder of the evaluation


@dataclasses.dataclass(frozen=True)
class OwnModel:
  """A model of the run, as a judge needs it.

  Attributes:
    fingerprint: of its weights.
    log_odds, generate: as in `own_model`; one of them may be None.
    contents, settings: as in `OwnModelJudge`.
  """

  fingerprint: str
  log_odds: LogOdds | None = None
  generate: Generate | None = None
  contents: Contents = no_contents
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict)


def open_judge(
  config: JudgeConfig,
  folder: pathlib.Path | None,
  *,
  records: Mapping[str, Mapping[str, Any]] | None = None,
  own_model: OwnModel | None = None,
  environment: Mapping[str, str] = os.environ,
  report: Callable[[str], None] = say,
  progress: Progress = lambda items, total: items,
  keep_unscored: bool = True,
) -> Judge:
  """Returns the judge that settings name.

  Args:
    folder: of the evaluation, where verdicts are kept unless `config.cache` names a
      file; None: nowhere, as where several hosts share a model of the run.
    records: facts of the clips, for kind world.
    own_model: for kind model.
    environment: where the key of an endpoint is.
    report: prints a line.
    progress: wraps what is waited for; the second argument is how many.
    keep_unscored: whether malformed verdicts of earlier runs are kept, too.

  Raises:
    UserError: what the judge needs is not there.
  """
  if config.kind in ('exact', 'normalized'):
    return MatchJudge(config.kind == 'normalized', config.answer_words)
  if config.kind == 'world':
    if not records:
      raise UserError(
        'config.judge.kind=world: no facts are known of these videos; expected the '
        'truth.json of the built-in world'
      )
    return WorldJudge(records, config.answer_words)
  path = pathlib.Path(config.cache) if config.cache else None
  if path is None and folder is not None:
    path = folder / CACHE
  if config.kind == 'endpoint':
    cache = VerdictCache(path, keep_unscored)
    return EndpointJudge(config, cache, environment, report, progress)
  if own_model is None:
    raise UserError(
      f'config.judge.kind=model: the model {config.own_model} has to be loaded, with '
      'its videos, and stage eval does that: run the command of the evaluation again '
      f'with --config.judge.kind=model --config.judge.model={config.own_model}. '
      'Answers that are there are not generated again, and the verdicts and numbers '
      'of other judges stay beside its own'
    )
  return OwnModelJudge(
    config,
    own_model.fingerprint,
    VerdictCache(path, keep_unscored),
    own_model.log_odds,
    own_model.generate,
    own_model.contents,
    own_model.settings,
  )
