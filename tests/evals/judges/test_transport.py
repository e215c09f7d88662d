"""Which proxy a request goes through."""

import pytest

from vlm_rlaif_jax.evals.judges.transport import proxy_of


@pytest.mark.parametrize(
  ('url', 'proxy'),
  [
    ('https://judge.example/v1', 'http://proxy.example:3128'),
    ('http://judge.example/v1', ''),
    ('https://inside.example/v1', ''),
    ('https://localhost:8000/v1', ''),
    ('https://127.0.0.1:8000/v1', ''),
  ],
)
def test_proxies_are_those_of_the_environment(url, proxy, monkeypatch):
  for name in ('http_proxy', 'all_proxy', 'HTTP_PROXY', 'ALL_PROXY', 'NO_PROXY'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('https_proxy', 'http://proxy.example:3128')
  monkeypatch.setenv('no_proxy', 'inside.example')
  assert proxy_of(url) == proxy
