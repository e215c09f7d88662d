"""A client of OpenAI-compatible chat completions that expects the other side to fail.

A request has a deadline for all of its bytes. What may pass is sent again after a wait
that doubles, with jitter, or that the endpoint names (`Retry-After`, which all threads
keep to). The key is read from the environment, goes into one header, and is cut out of
whatever the endpoint writes back.
"""

import dataclasses
import datetime
import email.utils
import json
import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

from vlm_rlaif_jax.evals.judges.transport import Response, Transport, TransportError
from vlm_rlaif_jax.evals.judges.usage import Usage
from vlm_rlaif_jax.settings.build import UserError
from vlm_rlaif_jax.settings.judge import JudgeConfig

PASSING = (408, 409, 425, 429)  # and 500 to 599: worth sending again
LONGEST_WAIT_S = 300.0  # named by the endpoint; a longer one ends the run
_LONGEST_BACKOFF_S = 60.0
_SHORTEST_SECRET = 8  # characters of a key
_CHARACTERS_A_TOKEN = 4  # where a reply does not state its tokens
_OUT_OF_CREDIT = ('insufficient_quota', 'credit_balance_exhausted')

Messages = list[dict[str, str]]


class EndpointError(UserError):
  """The endpoint will answer no request: a wrong key, host, path or model."""


class RequestError(Exception):
  """The endpoint did not answer this request; it may answer others.

  Attributes:
    refused: it said that this request is wrong; else it failed, again and again.
  """

  def __init__(self, message: str, refused: bool = False):
    super().__init__(message)
    self.refused = refused


class StoppedError(Exception):
  """No more requests are sent: the budget is used up, or the run was stopped."""


@dataclasses.dataclass(frozen=True)
class Reply:
  """What the endpoint wrote.

  Attributes:
    text: of the first choice; '' if it has none.
    version: of the model, as the endpoint reports it.
    cut: whether the text was cut at the limit of tokens.
  """

  text: str
  version: str
  cut: bool


class ChatClient:
  """Sends requests; safe to use from several threads.

  Args:
    usage: where calls, tokens and retries are counted.
    environment: where the key is.
    backoff_s: the first wait.
  """

  def __init__(
    self,
    config: JudgeConfig,
    usage: Usage,
    environment: Mapping[str, str] = os.environ,
    backoff_s: float = 1.0,
  ):
    self.config, self.usage, self.backoff_s = config, usage, backoff_s
    self.url = config.base_url.rstrip('/') + '/chat/completions'
    self._key = environment.get(config.key_variable, '').strip()
    if not (self._key.isascii() and self._key.isprintable()):
      raise EndpointError(f'${config.key_variable}: no key: it has other characters')
    self._transport = Transport(self.url, config.timeout_s, config.concurrency)
    self._stop = threading.Event()
    self._lock = threading.Lock()
    self._stop_reason = ''
    self._resume_at = 0.0  # of the monotonic clock; before it nothing is sent
    self._calls = self._tokens = 0  # of this client, for the budget

  @property
  def stop_reason(self) -> str:
    """Why no more is sent; '' where it is."""
    return self._stop_reason

  def stop(self, reason: str) -> None:
    """Lets no further request be sent, and ends all waits; the first reason stays."""
    with self._lock:
      self._stop_reason = self._stop_reason or reason
    self._stop.set()

  def start(self) -> None:
    """Takes back `stop`."""
    self._stop_reason = ''
    self._stop.clear()

  def complete(self, messages: Messages, first: bool = False) -> Reply:
    """Returns the reply to a conversation.

    Args:
      first: nothing was answered before: a host that cannot be reached is not tried
        again.

    Raises:
      EndpointError: no request will be answered.
      RequestError: this one was not.
      StoppedError: it was not sent.
    """
    body = json.dumps(self._body(messages)).encode()
    problem = ''
    for attempt in range(self.config.retries + 1):
      self._wait_until_resumed()
      self._spend_call()
      if attempt:
        self.usage.add(retries=1)
      wait = self.backoff_s * 2**attempt * random.uniform(0.5, 1.0)
      try:
        response = self._transport.post(body, self._headers())
      except TransportError as error:
        if first and error.unreachable:
          raise EndpointError(f'{self.url}: {error}') from None
        problem = str(error)
      else:
        problem, named_wait = self._problem(response)
        if not problem:
          reply = self._reply(response, messages)
          if isinstance(reply, Reply):
            return reply
          problem = reply
        self._pause(named_wait)
        wait = 0.0 if named_wait else wait
      if attempt < self.config.retries:
        self._sleep(min(wait, _LONGEST_BACKOFF_S))
    tries = self.config.retries + 1
    raise RequestError(f'{problem} ({tries} {"try" if tries == 1 else "tries"})')

  # ------------------------------------------------------------------------ requests

  def _body(self, messages: Messages) -> dict[str, Any]:
    config = self.config
    body: dict[str, Any] = {'model': config.model, 'messages': messages}
    if config.temperature >= 0:
      body['temperature'] = config.temperature
    if config.reply_tokens:
      body[config.reply_tokens_field] = config.reply_tokens
    return body

  def _headers(self) -> dict[str, str]:
    bearer = {'Authorization': f'Bearer {self._key}'} if self._key else {}
    return {'Content-Type': 'application/json', 'Accept': 'application/json', **bearer}

  def _spend_call(self) -> None:
    """Counts a request; raises StoppedError where the budget allows none."""
    calls, tokens = self.config.budget_calls, self.config.budget_tokens
    with self._lock:
      if calls and self._calls >= calls:
        raise StoppedError(f'the budget of {calls} requests is used up (budget_calls)')
      if tokens and self._tokens >= tokens:
        raise StoppedError(f'the budget of {tokens} tokens is used up (budget_tokens)')
      self._calls += 1
    self.usage.add(calls=1)

  # ------------------------------------------------------------------------ waiting

  def _pause(self, seconds: float) -> None:
    """Lets all threads wait, where the endpoint named a time."""
    if seconds > LONGEST_WAIT_S:
      raise EndpointError(
        f'{self.url}: asks to wait {seconds:.0f} s; run the same command then'
      )
    with self._lock:
      self._resume_at = max(self._resume_at, time.monotonic() + seconds)

  def _wait_until_resumed(self) -> None:
    while True:
      with self._lock:
        wait = self._resume_at - time.monotonic()
      self._sleep(max(wait, 0.0))
      if wait <= 0:
        return

  def _sleep(self, seconds: float) -> None:
    if self._stop.wait(seconds) if seconds else self._stop.is_set():
      raise StoppedError(self._stop_reason)

  # ------------------------------------------------------------------------ replies

  def _problem(self, response: Response) -> tuple[str, float]:
    """Returns why a request should be sent again, and a wait that was named.

    Returns:
      '' for a request that was answered; 0.0 where no wait was named.

    Raises:
      EndpointError, RequestError: sending it again would not help.
    """
    status = response.status
    if status == 200:
      return '', 0.0
    message, code = self._error_text(response)
    detail = f'HTTP {status}{": " if message else ""}{message}'
    if status in (401, 403):
      name = self.config.key_variable
      state = f'the key in ${name}' if self._key else f'no key (${name} is not set)'
      raise EndpointError(f'{self.url}: HTTP {status}: {state} is not accepted')
    if 300 <= status < 400:
      place = self._redacted(response.headers.get('location', 'elsewhere'))
      raise EndpointError(f'{self.url}: moved to {place}; set base_url to it')
    if status in (404, 405) or code in _OUT_OF_CREDIT:
      raise EndpointError(f'{self.url}: {detail}; check base_url, model and credit')
    if status not in PASSING and status < 500:
      raise RequestError(detail, refused=True)
    return detail, retry_after(response.headers.get('retry-after', ''))

  def _reply(self, response: Response, messages: Messages) -> Reply | str:
    """Returns what a response says, or why it says nothing."""
    content = _json(response.body)
    if content is None:
      kind = response.headers.get('content-type', 'no type').split(';')[0]
      return f'the response is no JSON ({self._redacted(kind)})'
    choices = content.get('choices')
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get('message') if isinstance(choice, dict) else None
    if not isinstance(message, dict) or not isinstance(choice, dict):
      return 'the response has no choices[0].message'
    text = self._redacted(_text(message.get('content')))
    self._count_tokens(content.get('usage'), messages, text)
    version = content.get('model')
    return Reply(
      text,
      self._redacted(version) if isinstance(version, str) else '',
      choice.get('finish_reason') == 'length',
    )

  def _count_tokens(self, usage: Any, messages: Messages, text: str) -> None:
    """Counts the tokens that a response states, or an estimate."""
    stated = usage if isinstance(usage, dict) else {}
    counts = [stated.get(name) for name in ('prompt_tokens', 'completion_tokens')]
    tokens_in, tokens_out = (n if type(n) is int and n >= 0 else None for n in counts)
    estimated = 0
    if tokens_in is None or tokens_out is None:
      characters = sum(len(message['content']) for message in messages)
      tokens_in = -(-characters // _CHARACTERS_A_TOKEN)
      tokens_out = -(-len(text) // _CHARACTERS_A_TOKEN)
      estimated = tokens_in + tokens_out
    with self._lock:
      self._tokens += tokens_in + tokens_out
    self.usage.add(
      tokens_in=tokens_in, tokens_out=tokens_out, tokens_estimated=estimated
    )

  def _error_text(self, response: Response) -> tuple[str, str]:
    """Returns the message and the code of an error, shortened; '' where it has none."""
    content = _json(response.body) or {}
    error = content.get('error', content)
    if isinstance(error, str):
      return self._redacted(' '.join(error.split()))[:200], ''
    if not isinstance(error, dict):
      return '', ''
    message = self._redacted(' '.join(str(error.get('message') or '').split()))
    return message[:200], str(error.get('code') or error.get('type') or '')

  def _redacted(self, text: str) -> str:
    """Returns a text without the key, which an endpoint may repeat."""
    if len(self._key) < _SHORTEST_SECRET:  # 'none', as servers of one's own are given
      return text
    return text.replace(self._key, '***')


def retry_after(value: str, now: datetime.datetime | None = None) -> float:
  """Returns the seconds that a header names, as a number or as an HTTP date.

  Args:
    value: of `Retry-After`; anything else counts as 0.
  """
  value = value.strip()
  try:
    seconds = float(value)
    return seconds if 0 < seconds < float('inf') else 0.0
  except ValueError:
    pass
  try:
    date = email.utils.parsedate_to_datetime(value)
  except (TypeError, ValueError, IndexError, OverflowError):
    return 0.0
  if date.tzinfo is None:  # "-0000", which is UTC as well
    date = date.replace(tzinfo=datetime.UTC)
  now = now or datetime.datetime.now(datetime.UTC)
  return max((date - now).total_seconds(), 0.0)


def _json(body: bytes) -> dict[str, Any] | None:
  """Returns an object of JSON; None if a body is none."""
  try:
    content = json.loads(body)
  except (ValueError, RecursionError):
    return None
  return content if isinstance(content, dict) else None


def _text(content: Any) -> str:
  """Returns the text of a message, which may come in parts."""
  if isinstance(content, list):
    parts = [part.get('text') for part in content if isinstance(part, dict)]
    return ''.join(part for part in parts if isinstance(part, str))
  return content if isinstance(content, str) else ''
