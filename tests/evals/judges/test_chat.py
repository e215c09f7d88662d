"""Waits that an endpoint names, and keys that cannot be sent."""

import datetime

import pytest

from tests.evals.judges.chat_server import ChatServer, config
from vlm_rlaif_jax.evals.judges.chat import ChatClient, EndpointError, retry_after
from vlm_rlaif_jax.evals.judges.usage import Usage

pytest.importorskip('urllib3', reason='needs the extra [judge]')

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
  ('value', 'seconds'),
  [
    ('7', 7.0),
    (' 0.5 ', 0.5),
    ('Fri, 02 Jan 2026 03:04:35 GMT', 30.0),
    ('Fri, 02 Jan 2026 04:04:05 +0100', 0.0),
    ('Fri, 02 Jan 2026 03:04:15 -0000', 10.0),
    ('Thu, 01 Jan 2026 00:00:00 GMT', 0.0),
    *((text, 0.0) for text in ('', 'soon', '-3', 'nan', 'inf', '1e999', '\x00')),
  ],
)
def test_retry_after_is_seconds_or_a_date(value, seconds):
  assert retry_after(value, NOW) == seconds


@pytest.mark.parametrize('key', ['sk-a\nb', 'schlüssel', 'a\x00b'])
def test_a_key_that_no_header_can_hold_is_refused_without_being_printed(key):
  server = ChatServer()
  server.url = 'http://127.0.0.1:1/v1'
  with pytest.raises(EndpointError) as error:
    ChatClient(config(server), Usage(), {'JUDGE_KEY': key})
  assert 'JUDGE_KEY' in str(error.value) and key not in str(error.value)
