"""A model of the run as judge, as the method's own judge works: by the next token.

By log-probabilities, the score is 5 times the probability of Yes against No after a
short prompt, and an answer is right where Yes is likelier. The prompt has {question},
{reference}, {prediction} and, where it is to name it, {criterion}. The score is not
calibrated: it can be compared with those of the same judge, not of another. By
generation, the model is asked what an endpoint is asked, and its reply is read alike.

The model itself is behind two functions, so that nothing here knows about devices.
"""

import types
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlm_rlaif_jax.data import prompts as data_prompts
from vlm_rlaif_jax.evals.judges import prompts, verdict_text
from vlm_rlaif_jax.evals.judges.cache import Entry, VerdictCache
from vlm_rlaif_jax.evals.judges.rounding import rounded
from vlm_rlaif_jax.evals.judges.usage import Usage, today
from vlm_rlaif_jax.evals.records import Case, Verdict
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.judge import JudgeConfig

LogOdds = Callable[[Sequence[Case], Sequence[str]], Sequence[float] | np.ndarray]
"""(cases, prompts) -> log p(Yes) - log p(No) of the next token after each prompt.

The case says by its key which video the model may see beside the prompt. NaN: the
prompt is too long for the model.
"""

Generate = Callable[[Sequence[Case], Sequence[str]], Sequence[str]]
"""(cases, prompts) -> what the model writes after each; '' if it is too long for it."""

Contents = Callable[[Case], str]
"""Returns what stands for the files that the model reads of a case; '': not known.
"""

_CRITERIA = {
  'answer': 'Does the answer say the same as the right answer?',
  'correctness': 'Does everything in the answer agree with the right answer?',
  'detail': 'Does the answer cover everything in the right answer, as concretely?',
  'context': 'Does the answer fit the situation that the right answer describes?',
  'temporal': 'Does the answer have the events in the order of the right answer?',
  'consistency': 'Do the two answers agree with each other and with the right answer?',
  # Of one answer and then of the other, so that their order does not matter.
  'preference': 'Is the answer true of the video, complete and clear?',
}
CasePrompts = tuple[Case, tuple[str, ...]]  # with its prompts
_BATCH = 256  # cases after which verdicts are kept


def no_contents(case: Case) -> str:
  """Returns that nothing is known of the files of a case."""
  del case
  return ''


class OwnModelJudge:
  """Gives the verdicts of a model of the run.

  Args:
    config: of kind model.
    fingerprint: of its weights; another model has other verdicts in the cache.
    cache: of verdicts; without a file where several hosts share the model, since they
      must all find the same to do.
    log_odds: needed where `config.own_model_by` is 'logprobs'.
    generate: needed where it is 'generation'.
    contents: verdicts on a video that was replaced are not used again.
    settings: by name, what else its verdicts depend on: how it is held on the device,
      and what it sees of a video.
  """

  def __init__(
    self,
    config: JudgeConfig,
    fingerprint: str,
    cache: VerdictCache,
    log_odds: LogOdds | None = None,
    generate: Generate | None = None,
    contents: Contents = no_contents,
    settings: Mapping[str, str] = types.MappingProxyType({}),
  ):
    self.config, self.fingerprint, self.cache = config, fingerprint, cache
    self.settings, self.usage = settings, Usage()
    self._log_odds, self._generate, self._contents = log_odds, generate, contents
    self.template = data_prompts.load(config.own_model_prompt)
    by = config.own_model_by
    if (log_odds if by == 'logprobs' else generate) is None:
      raise UserError(
        f'config.judge.own_model_by={by}: the judge was opened without what it needs'
      )

  @property
  def identity(self) -> Mapping[str, str]:
    """Name, weights, wording, and the settings of the run that count."""
    config = self.config
    if config.own_model_by == 'logprobs':
      wording = prompts.digest([self.template, _CRITERIA, config.answer_words])
    else:
      wording = prompts.prompt_hash(config.answer_words)
    return {
      'name': f'model-{config.own_model}',
      'kind': 'model',
      'version': self.fingerprint,
      'prompt': wording,
      'by': config.own_model_by,
      'rounding': config.rounding,
      'answer_words': str(config.answer_words),
      **self.settings,
    }

  def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
    """Returns a verdict for each case; equal cases are judged once."""
    by = self.config.own_model_by
    by_logprobs = by == 'logprobs'
    prompts_of = self._short_prompts if by_logprobs else self._full_prompt
    judge = self._by_log_odds if by_logprobs else self._by_generation
    identity = [self.fingerprint, self.config.own_model, by, dict(self.settings)]
    pairs: list[CasePrompts] = [(case, prompts_of(case)) for case in cases]
    keys = []
    for case, texts in pairs:
      # Key and contents stand for the video that the model may see.
      contents = [x for x in (self._contents(case),) if x]
      key = [*identity, case.key, *contents, case.criterion, texts]
      keys.append(prompts.digest(key, digits=32))
    self.cache.refresh()
    by_key = dict(zip(keys, pairs, strict=True))
    todo = [key for key in by_key if self.cache.get(key) is None]
    self.usage.add(cached=len(by_key) - len(todo), calls=len(todo))
    for start in range(0, len(todo), _BATCH):
      batch = todo[start : start + _BATCH]
      results = judge([by_key[key] for key in batch])
      for key, verdict in zip(batch, results, strict=True):
        self.usage.add(malformed=int(bool(verdict.error)))
        self.cache.put(key, Entry(verdict, self.fingerprint, today()))
    return [self._counted(key) for key in keys]

  def _counted(self, key: str) -> Verdict:
    entry = self.cache.get(key)
    assert entry is not None
    self.usage.note(entry.version, entry.date)
    return rounded(entry.verdict, self.config.rounding)

  def _short_prompts(self, case: Case) -> tuple[str, ...]:
    """Returns the prompt of a case; of 'preference', one for each answer."""
    prompts.check(case)
    words = self.config.answer_words
    predictions = [prompts.cut_words(p, words) for p in case.predictions]
    if case.criterion != 'preference':
      predictions = ['\n'.join(predictions)]
    return tuple(
      data_prompts.fill(
        self.template,
        question='\n'.join(case.questions),
        reference=case.reference,
        prediction=prediction,
        criterion=_CRITERIA[case.criterion],
      )
      for prediction in predictions
    )

  def _full_prompt(self, case: Case) -> tuple[str, ...]:
    return (prompts.request(case, self.config.answer_words).text,)

  def _by_log_odds(self, pairs: Sequence[CasePrompts]) -> list[Verdict]:
    """Returns verdicts by the probability of Yes."""
    assert self._log_odds is not None
    cases = [case for case, texts in pairs for _ in texts]
    odds = iter(self._log_odds(cases, [text for _, texts in pairs for text in texts]))
    return [
      _from_log_odds(case, [float(next(odds)) for _ in texts]) for case, texts in pairs
    ]

  def _by_generation(self, pairs: Sequence[CasePrompts]) -> list[Verdict]:
    """Returns verdicts by what the model writes."""
    assert self._generate is not None
    requests = [texts[0] for _, texts in pairs]
    replies = self._generate([case for case, _ in pairs], requests)
    return [
      verdict_text.read(
        reply,
        case.criterion,
        (*case.questions, case.reference, *case.predictions, request),
      )
      for (case, _), request, reply in zip(pairs, requests, replies, strict=True)
    ]


def _from_log_odds(case: Case, odds: Sequence[float]) -> Verdict:
  """Returns the verdict of the odds of Yes; of two answers, of their difference."""
  if np.isnan(odds).any():
    return Verdict(error='the prompt is too long for the model')
  margin = odds[0] - odds[1] if case.criterion == 'preference' else odds[0]
  likelihood = 0.5 * (1 + np.tanh(margin / 2))  # of Yes; no overflow for large odds
  right: bool | None = None
  if case.criterion == 'answer' or (case.criterion == 'preference' and margin):
    right = margin > 0
  raw = 'log-odds of Yes ' + ', '.join(f'{value:.3f}' for value in odds)
  return Verdict(verdict_text.HIGHEST * float(likelihood), right, raw)
