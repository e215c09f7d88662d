"""Settings of whoever gives verdicts on answers."""

import dataclasses
import re
import urllib.parse
from typing import Literal

from vlm_rlaif_jax.settings.checks import within

KINDS = ('exact', 'normalized', 'world', 'model', 'endpoint')
OWN_MODELS = ('base', 'sft', 'init', 'rlaif')


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
  """Who gives verdicts on answers, and how it is asked."""

  # exact and normalized compare texts; world knows the facts of the built-in clips;
  # model is one of the run's own; endpoint is any server of chat completions
  kind: Literal['exact', 'normalized', 'world', 'model', 'endpoint'] = 'normalized'
  # name that the endpoint has for its model, dated where it can be; for kind model:
  # base, sft, init or rlaif
  model: str = ''
  base_url: str = ''  # of the endpoint, for instance http://localhost:8000/v1
  # name of the environment variable with the endpoint's key; the key is no setting
  key_variable: str = 'OPENAI_API_KEY'
  concurrency: int = 8  # requests at a time
  timeout_s: float = 60.0  # longest time for one request, seconds
  retries: int = 5  # times that a request is sent again after it failed
  malformed_retries: int = 2  # times that a verdict is requested again if malformed
  budget_calls: int = 0  # requests after which a run stops asking; 0: no limit
  budget_tokens: int = 0  # tokens, in and out, after which it stops asking; 0: no limit
  temperature: float = 0.0  # of the endpoint; negative: its default, as in the release
  reply_tokens: int = 256  # longest reply; 0: the limit of the endpoint
  # name of that limit in a request; some models accept the newer one only
  reply_tokens_field: Literal['max_tokens', 'max_completion_tokens'] = 'max_tokens'
  # how a model of the run judges: by log p(Yes) - log p(No), or by what it writes
  own_model_by: Literal['logprobs', 'generation'] = 'logprobs'
  # text for own_model_by=logprobs: a name in data/prompts, or a path
  own_model_prompt: str = 'judge_answer'
  # truncate: a score of 4.8 counts as 4, as in the release
  rounding: Literal['truncate', 'none'] = 'none'
  answer_words: int = 0  # words of an answer that the judge reads; 0: all
  # file of verdicts that are not requested again; '': in the folder of the evaluation
  cache: str = ''

  def __post_init__(self):
    within(self, '> 0', 'timeout_s')
    within(self, '>= 1', 'concurrency')
    within(self, '>= 0', 'retries', 'malformed_retries', 'budget_calls')
    within(self, '>= 0', 'budget_tokens', 'reply_tokens', 'answer_words')
    within(self, 'finite', 'temperature')
    if not re.fullmatch(r'[A-Z_][A-Z0-9_]*', self.key_variable):
      # Whoever put the key itself here must not read it in a log.
      raise ValueError(
        'key_variable: must be the name of an environment variable, in capitals, not '
        'the key itself'
      )
    if self.kind == 'endpoint':
      _check_url(self.base_url)
      if not self.model:
        raise ValueError('model: kind endpoint needs the name of a model')
    if self.kind == 'model' and self.model and self.model not in OWN_MODELS:
      raise ValueError(
        f'model: kind model is one of {", ".join(OWN_MODELS)}; got {self.model!r}'
      )

  @property
  def own_model(self) -> str:
    """The model of the run that judges; the one of SFT where none is named."""
    return self.model or 'sft'


def as_released(judge: JudgeConfig) -> JudgeConfig:
  """Returns the settings with the choices of the release that move scores.

  The release names `gpt-3.5-turbo` without a date; model and address stay the user's.
  What a judge reads beside the answers (placeholder, end marker, which questions) is
  chosen where cases are made.
  """
  return dataclasses.replace(judge, temperature=-1.0, rounding='truncate')


def _check_url(url: str) -> None:
  """Raises ValueError for an address that is none, or that holds a secret."""
  parts = urllib.parse.urlsplit(url)
  if parts.username or parts.password or parts.query or parts.fragment:
    raise ValueError(
      'base_url: must hold no user, password or query; the key goes into the '
      'environment variable that key_variable names'
    )
  if parts.scheme not in ('http', 'https') or not parts.hostname:
    raise ValueError(
      'base_url: kind endpoint needs an address like http://localhost:8000/v1, '
      f'got {url!r}'
    )
  if parts.path.rstrip('/').endswith('/chat/completions'):
    raise ValueError(f'base_url: leave out /chat/completions, got {url!r}')
