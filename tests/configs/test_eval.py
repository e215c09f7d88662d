"""What the presets of evaluation choose."""

import dataclasses

import pytest

from configs import eval as config
from vlm_rlaif_jax.settings.build import ConfigError, from_config_dict
from vlm_rlaif_jax.settings.eval import IN_WORLD, EvalConfig, EvalRun, summary_line
from vlm_rlaif_jax.settings.judge import JudgeConfig


def settings(arg):
  return from_config_dict(EvalRun, config.get_config(arg))


def test_the_paper_is_evaluated_as_its_release_does():
  paper, fair = settings('7b,preset=paper'), settings('7b')
  changed = {
    name: (getattr(paper.eval, name), value)
    for name, value in dataclasses.asdict(fair.eval).items()
    if getattr(paper.eval, name) != value
  }
  assert changed == {
    'template': ('llava_v0', 'vicuna_v1'),
    'temperature': (0.2, 0.0),
    'answer_tokens': (512, 64),
    'keep_special_tokens': (True, False),
    'keep_placeholder': (True, False),
    'consistency': ('first_twice', 'both'),
  }
  assert paper.eval.open_ended_tokens == fair.eval.open_ended_tokens == 512
  assert (paper.judge.rounding, fair.judge.rounding) == ('truncate', 'none')
  assert paper.judge.temperature < 0 == fair.judge.temperature
  assert fair == settings('7b,preset=corrected')
  with pytest.raises(ConfigError, match='choose one of corrected, paper'):
    config.get_config('7b,preset=parity')


def test_what_is_evaluated_follows_from_the_data():
  tiny = settings('tiny')
  assert tiny.benchmarks == ('qa', 'describe', *IN_WORLD)
  assert tiny.judge.kind == 'world' and '{stem}' in tiny.videos
  rooted = dataclasses.replace(tiny.data, root='data')
  assert dataclasses.replace(tiny, data=rooted).benchmarks == ('qa', 'describe')
  own = dataclasses.replace(tiny.data, root='data', train='my.json')
  assert dataclasses.replace(tiny, data=own).benchmarks == ('qa', 'own')
  chosen = EvalRun(size='7b', eval=EvalConfig(benchmarks=('ucf101', 'ucf101')))
  assert chosen.benchmarks == ('ucf101',) and chosen.judge == JudgeConfig()
  with pytest.raises(ValueError, match=r'benchmarks: choose some of qa, .* got'):
    EvalConfig(benchmarks=('msvd',))


def test_the_terminal_says_what_the_benchmarks_took():
  summary = {
    'questions': {'qa': 0},
    'split': 'test',
    'benchmarks': {'ucf101': {'items': 3}},
  }
  assert summary_line(summary) == 'benchmarks of split test: ucf101'  # of before
  summary['seconds'] = {'load': 9.0, 'tasks': 40.0, 'benchmarks': 51.2, 'scores': 12.0}
  assert summary_line(summary) == 'benchmarks of split test (63 s): ucf101'
