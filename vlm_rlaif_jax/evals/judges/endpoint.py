"""A judge behind an OpenAI-compatible endpoint, whose verdicts are kept.

Cases that were judged before come from the cache. The first of the others is sent
alone, so that a wrong key or host is one line after one request; the rest are sent
together. Where the budget ends, or the endpoint fails ten cases in a row, no more is
sent: what was scored counts, and the rest is unscored, with the reason.
"""

import concurrent.futures
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlm_rlaif_jax.evals.judges import prompts, verdict_text
from vlm_rlaif_jax.evals.judges.cache import Entry, VerdictCache
from vlm_rlaif_jax.evals.judges.chat import (
  ChatClient,
  EndpointError,
  Messages,
  RequestError,
  StoppedError,
)
from vlm_rlaif_jax.evals.judges.rounding import rounded
from vlm_rlaif_jax.evals.judges.usage import Usage, today
from vlm_rlaif_jax.evals.records import Case, Verdict
from vlm_rlaif_jax.settings.judge import JudgeConfig

FAILURES = 10  # in a row, after which the endpoint counts as gone
_REFUSALS = 3  # of the first cases, after which the fault is not theirs

CaseRequest = tuple[Case, prompts.Request]
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


def say(text: str) -> None:
  """Prints a line where it does not mix with results."""
  print(text, file=sys.stderr, flush=True)


class EndpointJudge:
  """Gives the verdicts of a model behind an endpoint.

  Args:
    config: of kind endpoint.
    cache: of verdicts.
    environment: where the key is.
    report: prints a line.
    progress: wraps what is waited for; the second argument is how many.
    backoff_s: the first wait after a failure.
  """

  def __init__(
    self,
    config: JudgeConfig,
    cache: VerdictCache,
    environment: Mapping[str, str] = os.environ,
    report: Callable[[str], None] = say,
    progress: Progress = lambda items, total: items,
    backoff_s: float = 1.0,
  ):
    self.config, self.cache = config, cache
    self.report, self.progress = report, progress
    self.usage = Usage()
    self.client = ChatClient(config, self.usage, environment, backoff_s)
    self._failures = 0  # cases in a row
    self._reported = ''
    self._lock = threading.Lock()

  @property
  def identity(self) -> Mapping[str, str]:
    """Name and address, the version that was reported, and how it was asked."""
    config = self.config
    reported = ', '.join(sorted(self.usage.versions))
    sent = config.temperature >= 0
    return {
      'name': config.model,
      'kind': 'endpoint',
      'version': reported or 'not reported',
      'prompt': prompts.prompt_hash(config.answer_words),
      'base_url': config.base_url,
      'temperature': f'{config.temperature:g}' if sent else 'default',
      'reply_tokens': str(config.reply_tokens),
      'rounding': config.rounding,
      'answer_words': str(config.answer_words),
    }

  def verdicts(self, cases: Sequence[Case]) -> list[Verdict]:
    """Returns a verdict for each case; equal cases are requested once.

    Raises:
      EndpointError: the first request shows that no other will be answered.
    """
    requests = [prompts.request(case, self.config.answer_words) for case in cases]
    keys = [self._key(request.messages) for request in requests]
    by_key = {
      key: (case, request)
      for key, case, request in zip(keys, cases, requests, strict=True)
    }
    self.cache.refresh()
    pending = [key for key in by_key if self.cache.get(key) is None]
    unscored = self._request({key: by_key[key] for key in pending})

    verdicts = []
    for key in keys:
      entry = self.cache.get(key)
      if entry is None:
        verdicts.append(Verdict(error=unscored[key]))
        continue
      self.usage.note(entry.version, entry.date)
      verdicts.append(rounded(entry.verdict, self.config.rounding))
    fresh = set(pending)
    self.usage.add(cached=sum(key not in fresh for key in by_key))
    return verdicts

  def _key(self, messages: Messages) -> str:
    """Returns what names a verdict: who is asked, how, and every word of it."""
    config = self.config
    judge = ['endpoint', config.base_url.rstrip('/'), config.model]
    limits = [config.temperature, config.reply_tokens]
    return prompts.digest([*judge, *limits, messages], digits=32)

  def _request(self, pending: Mapping[str, CaseRequest]) -> dict[str, str]:
    """Requests verdicts into the cache; returns why the others have none, by key."""
    reasons: dict[str, str] = {}
    self.client.start()
    self._failures = 0
    rest = self._lead(pending, reasons)
    if rest and not self.client.stop_reason:
      self._request_all(rest, pending, reasons)
    stopped = self.client.stop_reason
    if stopped:
      left = [key for key in pending if self.cache.get(key) is None]
      for key in left:
        reasons.setdefault(key, f'not requested: {stopped}')
      if stopped != self._reported:  # once, however many models are judged
        self._reported = stopped
        self.report(
          f'judge {self.config.model}: {stopped}; {len(left)} of {len(pending)} cases '
          'are unscored, the same command goes on there'
        )
    return reasons

  def _lead(
    self, pending: Mapping[str, CaseRequest], reasons: dict[str, str]
  ) -> list[str]:
    """Requests one case after the other until one is answered; returns the rest.

    Raises:
      EndpointError: none will be.
    """
    keys = list(pending)
    for number, key in enumerate(keys):
      try:
        self._judge(key, *pending[key], first=True)
        return keys[number + 1 :]
      except StoppedError as error:
        self.client.stop(str(error))
        return []
      except RequestError as error:
        reasons[key] = str(error)
        if not error.refused or len(reasons) == _REFUSALS:
          raise EndpointError(f'{self.client.url}: {error}') from None
    return []

  def _request_all(
    self,
    keys: Sequence[str],
    pending: Mapping[str, CaseRequest],
    reasons: dict[str, str],
  ) -> None:
    """Requests cases together; what stops one stops those after it."""

    def judge(key: str) -> None:
      try:
        self._judge(key, *pending[key])
      except RequestError as error:
        reasons[key] = str(error)
        if self._failures >= FAILURES:
          self.client.stop(str(error))
      except (EndpointError, StoppedError) as error:
        self.client.stop(str(error))

    pool = concurrent.futures.ThreadPoolExecutor(self.config.concurrency)
    try:
      futures = [pool.submit(judge, key) for key in keys]
      finished = concurrent.futures.as_completed(futures)
      for future in self.progress(finished, len(futures)):
        future.result()
    except BaseException:
      self.client.stop('interrupted')  # nobody sits out a wait
      raise
    finally:
      pool.shutdown(cancel_futures=True)

  def _judge(
    self, key: str, case: Case, request: prompts.Request, first: bool = False
  ) -> None:
    """Requests the verdict on a case, again if it is malformed, and keeps it."""
    messages: Messages = request.messages
    request_texts = (*request.texts, conversation_text(messages))
    verdict, version = Verdict(), ''
    for attempt in range(self.config.malformed_retries + 1):
      try:
        reply = self.client.complete(messages, first and not attempt)
      except RequestError as error:
        with self._lock:
          self._failures += not error.refused
        raise
      with self._lock:
        self._failures = 0
      version = reply.version
      verdict = verdict_text.read(reply.text, case.criterion, request_texts, reply.cut)
      if not verdict.error:
        break
      self.usage.add(malformed=1)
      if reply.cut:
        verdict = dataclasses.replace(verdict, error=f'{verdict.error}; cut')
      messages = [
        *request.messages,
        {'role': 'assistant', 'content': verdict.raw},
        {'role': 'user', 'content': prompts.reminder(case.criterion)},
      ]
    self.cache.put(key, Entry(verdict, version, today()))


def conversation_text(messages: Messages) -> str:
  """Returns all that the judge is shown."""
  return '\n'.join(message['content'] for message in messages)
