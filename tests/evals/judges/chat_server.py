"""A local server of chat completions that misbehaves as a test says."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from vlm_rlaif_jax.evals.records import Case
from vlm_rlaif_jax.settings.judge import JudgeConfig

YES = '{"pred": "yes", "score": 4}'


class ChatServer:
  """What was requested, and what is replied.

  Attributes:
    requests: the bodies, in their order.
    headers: of each request.
    replies: by number of a request, what it gets; `default` where there is none. A
      text is the message of a completion, a function writes what it likes.
  """

  def __init__(self, default: Any = YES, replies: dict[int, Any] | None = None):
    self.default, self.replies = default, replies or {}
    self.requests: list[dict] = []
    self.headers: list[dict] = []
    self.times: list[float] = []
    self.url = ''
    self.lock = threading.Lock()

  def reply_to(self, handler: http.server.BaseHTTPRequestHandler) -> None:
    body = json.loads(handler.rfile.read(int(handler.headers['Content-Length'])))
    with self.lock:
      number = len(self.requests)
      self.requests.append(body)
      self.headers.append(dict(handler.headers))
      self.times.append(time.monotonic())
    reply = self.replies.get(number, self.default)
    if callable(reply):
      reply = reply(handler, body)
    if isinstance(reply, str):
      send(handler, 200, completion(reply))


def completion(text: Any, **more: Any) -> dict:
  """Returns the JSON of a completion."""
  return {
    'model': 'judge-2024-01-02',
    'choices': [{'message': {'role': 'assistant', 'content': text}}],
    'usage': {'prompt_tokens': 100, 'completion_tokens': 10},
    **more,
  }


def send(handler, status: int, content: Any, **headers: str) -> None:
  """Sends a response; content that is no text becomes JSON."""
  kind = 'text/html' if isinstance(content, str) else 'application/json'
  data = (content if isinstance(content, str) else json.dumps(content)).encode()
  handler.send_response(status)
  for name, value in {
    'Content-Type': kind,
    'Content-Length': str(len(data)),
    **{name.replace('_', '-'): value for name, value in headers.items()},
  }.items():
    handler.send_header(name, value)
  handler.end_headers()
  handler.wfile.write(data)


def status(code: int, content: Any = None, **headers: str) -> Callable:
  """Returns a reply with a status."""
  body = {'error': {'message': f'made up {code}'}} if content is None else content
  return lambda handler, request: send(handler, code, body, **headers)


@contextlib.contextmanager
def served(server: ChatServer) -> Iterator[ChatServer]:
  """Runs a server in a thread."""

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        server.reply_to(self)

    def log_message(self, *arguments):
      pass

  class Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
      pass

  httpd = Quiet(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
  thread.start()
  server.url = f'http://127.0.0.1:{httpd.server_port}/v1'
  try:
    yield server
  finally:
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def config(server: ChatServer, **changes: Any) -> JudgeConfig:
  """Returns settings for a server."""
  values: dict[str, Any] = {
    'kind': 'endpoint', 'model': 'judge', 'base_url': server.url,
    'key_variable': 'JUDGE_KEY', 'timeout_s': 5.0, 'concurrency': 4,
  }  # fmt: skip
  return JudgeConfig(**{**values, **changes})


def case(number: int = 0, prediction: str = 'a hat', criterion: str = 'answer') -> Case:
  """Returns a case; those with other numbers are other cases."""
  return Case(
    key=f'q{number}',
    criterion=criterion,
    questions=(f'What is held in clip {number}?',),
    reference='an umbrella',
    predictions=(prediction,),
  )
