"""What a stage ran on."""

import json
import re

import jax

from vlm_rlaif_jax.core import environment


def test_it_says_when_where_and_with_what():
  record = json.loads(json.dumps(environment.record()))
  assert re.fullmatch(r'\d{4}-\d\d-\d\d \d\d:\d\d UTC', record['date'])
  assert record['devices'].startswith(f'{jax.device_count()} x ')
  assert record['processes'] == 1
  assert record['versions']['jax'] == jax.__version__
