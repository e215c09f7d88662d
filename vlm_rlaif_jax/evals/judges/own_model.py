"""A model of the run as judge, as the method's own judge works: by the next token.

By log-probabilities, the score is 5 times the probability of Yes against No after a
short prompt, and an answer is right where Yes is likelier. The prompt has {question},
{reference}, {prediction} and, where it is to name it, {criterion}. The score is not
calibrated: it can be compared with those of the same judge, not of another. By
generation, the model is asked what an endpoint is asked, and its reply is read alike.

The model itself is behind two functions, so that nothing here knows about devices.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlm_rlaif_jax.data import prompts as texts
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

_CRITERIA = {
  'answer': 'Does the answer say the same as the right answer?',
  'correctness': 'Does everything in the answer agree with the right answer?',
  'detail': 'Does the answer cover everything in the right answer, as concretely?',
  'context': 'Does the answer fit the situation that the right answer describes?',
  'temporal': 'Does the answer have the events in the order of the right answer?',
  'consistency': 'Do the two answers agree with each other and with the right answer?',
}
_BATCH = 256  # cases after which verdicts are kept


class OwnModelJudge:
  """Gives the verdicts of a model of the run.

  Args:
    config: of kind model.
    fingerprint: of its weights; another model has other verdicts in the cache.
    cache: of verdicts.
    log_odds: needed where `config.own_model_by` is 'logprobs'.
    generate: needed where it is 'generation'.
  """

  def __init__(
    self,
    config: JudgeConfig,
    fingerprint: str,
    cache: VerdictCache,
    log_odds: LogOdds | None = None,
    generate: Generate | None = None,
  ):
    self.config, self.fingerprint, self.cache = config, fingerprint, cache
    self.usage = Usage()
    self._log_odds, self._generate = log_odds, generate
    self.template = texts.load(config.own_model_prompt)
    by = config.own_model_by
    if (log_odds if by == 'logprobs' else generate) is None:
      raise UserError(
        f'judge.own_model_by={by}: this judge was opened without the function for it'
      )

  @property
  def identity(self) -> Mapping[str, str]:
    """Name, weights and wording."""
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
    }

  def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
    """Returns a verdict for each case; equal cases are judged once."""
    by_logprobs = self.config.own_model_by == 'logprobs'
    prompt_of = self._short_prompt if by_logprobs else self._full_prompt
    judge = self._by_log_odds if by_logprobs else self._by_generation
    questions = [prompt_of(case) for case in cases]
    identity = [self.fingerprint, self.config.own_model, self.config.own_model_by]
    keys = [
      # The key of the item stands for the video that the model may see.
      prompts.digest([*identity, case.key, question], digits=32)
      for case, question in zip(cases, questions, strict=True)
    ]
    self.cache.refresh()
    todo = {
      key: (case, question)
      for key, case, question in zip(keys, cases, questions, strict=True)
      if self.cache.get(key) is None
    }
    cached = len(set(keys)) - len(todo)
    self.usage.add(cached=cached, calls=len(todo))
    waiting = list(todo)
    for start in range(0, len(waiting), _BATCH):
      batch = waiting[start : start + _BATCH]
      results = judge([todo[key][0] for key in batch], [todo[key][1] for key in batch])
      for key, verdict in zip(batch, results, strict=True):
        self.usage.add(malformed=int(bool(verdict.error)))
        self.cache.put(key, Entry(verdict, self.fingerprint, today()))
    return [self._counted(key) for key in keys]

  def _counted(self, key: str) -> Verdict:
    entry = self.cache.get(key)
    assert entry is not None
    self.usage.note(entry.version, entry.date)
    return rounded(entry.verdict, self.config.rounding)

  def _short_prompt(self, case: Case) -> str:
    prompts.check(case)
    words = self.config.answer_words
    predictions = [prompts.cut_words(p, words) for p in case.predictions]
    return texts.fill(
      self.template,
      question='\n'.join(case.questions),
      reference=case.reference,
      prediction='\n'.join(predictions),
      criterion=_CRITERIA[case.criterion],
    )

  def _full_prompt(self, case: Case) -> str:
    return prompts.request(case, self.config.answer_words).text

  def _by_log_odds(
    self, cases: Sequence[Case], questions: Sequence[str]
  ) -> list[Verdict]:
    """Returns verdicts by the probability of Yes."""
    assert self._log_odds is not None
    odds = np.asarray(self._log_odds(cases, questions), np.float64)
    return [
      _from_log_odds(case, float(value))
      for case, value in zip(cases, odds, strict=True)
    ]

  def _by_generation(
    self, cases: Sequence[Case], questions: Sequence[str]
  ) -> list[Verdict]:
    """Returns verdicts by what the model writes."""
    assert self._generate is not None
    replies = self._generate(cases, questions)
    return [
      verdict_text.read(
        reply, case.criterion, (*case.questions, case.reference, *case.predictions, q)
      )
      for case, q, reply in zip(cases, questions, replies, strict=True)
    ]


def _from_log_odds(case: Case, odds: float) -> Verdict:
  if np.isnan(odds):
    return Verdict(error='the prompt is too long for the model')
  likelihood = 0.5 * (1 + np.tanh(odds / 2))  # of Yes; no overflow for large odds
  score = verdict_text.HIGHEST * float(likelihood)
  right = odds > 0 if case.criterion == 'answer' else None
  return Verdict(score, right, f'log-odds of Yes {odds:.3f}')
