import pytest

from vlm_rlaif_jax.labeling import costs
from vlm_rlaif_jax.train.profiling.flops import Meter


def test_a_question_costs_what_its_parts_cost(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(costs.time, 'perf_counter', lambda: now[0])
  meter = Meter()
  found = costs.Costs(meter)
  assert found.each() == {}
  for _ in range(2):  # two chunks
    with found.part('answers'):
      now[0] += 3.0
      meter.add(400, 0.0, 0.0)
    now[0] += 100.0  # the audit, counted nowhere
    with found.part('judgments'):
      now[0] += 1.0
      meter.add(100, 0.0, 0.0)
    found.questions += 4
  assert found.each() == {
    'questions': 8,
    'answers': {'seconds': 0.75, 'tokens': 100.0},
    'judgments': {'seconds': 0.25, 'tokens': 25.0},
    'total': {'seconds': pytest.approx(1.0), 'tokens': 125.0},
  }
