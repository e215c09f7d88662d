"""Posts bytes to one address, within a deadline, without following redirects."""

import dataclasses
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping

from vlm_rlaif_jax.settings.build import UserError

LARGEST_BODY = 4_000_000  # bytes of a response; what is longer is no verdict


class TransportError(Exception):
  """A request without a response.

  Attributes:
    unreachable: there was no connection; else it was lost, or nothing came in time.
  """

  def __init__(self, message: str, unreachable: bool = False):
    super().__init__(message)
    self.unreachable = unreachable


@dataclasses.dataclass(frozen=True)
class Response:
  """Status, headers by lower-case name, and the whole body."""

  status: int
  headers: Mapping[str, str]
  body: bytes


class Transport:
  """Keeps connections to one address open; safe to use from several threads.

  Proxies are those of the environment, but for the machine itself.

  Args:
    timeout_s: for the whole of a request.
    connections: that are kept open.
  """

  def __init__(self, url: str, timeout_s: float, connections: int):
    try:
      import urllib3
    except ModuleNotFoundError:
      raise UserError(
        "config.judge.kind=endpoint needs urllib3: pip install 'vlm-rlaif-jax[judge]'"
      ) from None
    self._urllib3 = urllib3
    self.url, self.timeout_s = url, timeout_s
    proxy = proxy_of(url)
    if proxy:
      parts = urllib.parse.urlsplit(proxy)
      headers = None
      if parts.username:
        user, password = (
          urllib.parse.unquote(part or '') for part in (parts.username, parts.password)
        )
        headers = urllib3.make_headers(proxy_basic_auth=f'{user}:{password}')
      self._pool = urllib3.ProxyManager(
        proxy, proxy_headers=headers, maxsize=connections
      )
    else:
      self._pool = urllib3.PoolManager(maxsize=connections)

  def post(self, body: bytes, headers: Mapping[str, str]) -> Response:
    """Returns the response to a request.

    Raises:
      TransportError: there is none, or not in time.
    """
    errors = self._urllib3.exceptions
    deadline = time.monotonic() + self.timeout_s
    try:
      response = self._pool.request(
        'POST',
        self.url,
        body=body,
        headers=dict(headers),
        timeout=self._urllib3.Timeout(total=self.timeout_s),
        retries=False,
        redirect=False,
        preload_content=False,
      )
      try:
        content = self._read(response, deadline)
      except BaseException:
        response.close()  # a connection with a rest in it serves no other request
        raise
      response.release_conn()
    except (
      errors.NewConnectionError,
      errors.ConnectTimeoutError,
      errors.ProxyError,
      errors.SSLError,
      errors.LocationParseError,
    ) as error:
      raise TransportError(
        f'cannot be reached ({_reason(error)})', unreachable=True
      ) from None
    except errors.TimeoutError:
      raise TransportError(f'no response within {self.timeout_s:g} s') from None
    except (errors.HTTPError, OSError) as error:
      raise TransportError(f'the connection was lost ({_reason(error)})') from None
    names = {name.lower(): value for name, value in response.headers.items()}
    return Response(response.status, names, content)

  def _read(self, response, deadline: float) -> bytes:
    """Returns the whole body; a byte now and then does not move the deadline."""
    content = bytearray()
    while chunk := response.read1(65536, decode_content=True):
      content += chunk
      if len(content) > LARGEST_BODY:
        raise self._urllib3.exceptions.HTTPError(f'over {LARGEST_BODY} bytes')
      if time.monotonic() > deadline:
        raise self._urllib3.exceptions.TimeoutError
    return bytes(content)


def proxy_of(url: str) -> str:
  """Returns the proxy of the environment for an address; '' if there is none."""
  parts = urllib.parse.urlsplit(url)
  host = parts.hostname or ''
  if host in ('localhost', '127.0.0.1', '::1') or urllib.request.proxy_bypass(host):
    return ''
  return urllib.request.getproxies().get(parts.scheme, '')


def _reason(error: BaseException) -> str:
  """Returns the innermost reason of an error, on one line."""
  reason = getattr(error, 'reason', None) or getattr(error, 'original_error', None)
  if isinstance(reason, BaseException):
    return _reason(reason)
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  cause = error.__cause__ or error.__context__
  if isinstance(cause, OSError) and cause.strerror:
    return cause.strerror
  text = ' '.join(str(error).split()) or type(error).__name__
  return text.rpartition('>: ')[2] or text
