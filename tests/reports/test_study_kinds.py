"""What each stage does to each kind of question, and which loses too much."""

import json

import numpy as np
import pytest

from vlm_rlaif_jax.reports import study_kinds

RIGHT = {  # of 40 questions about as many clips, by kind and model
  'course': {'base': 4, 'sft': 8, 'rlaif': 30},
  'color': {'base': 20, 'sft': 19, 'rlaif': 10},
  'order': {'base': 20, 'sft': 10, 'rlaif': 9},
}


def answer(root, seed, models=study_kinds.MODELS):
  folder = root / f'default-{seed}' / 'tiny' / 'eval'
  folder.mkdir(parents=True)
  for model in models:
    lines = [
      json.dumps(
        {
          'question_id': f'{kind}_{i}',
          'video_name': f'{i}.mp4',
          'kind': kind,
          'answer': 'Red.',
          'prediction': 'Red.' if i < right[model] else 'Blue.',
        }
      )
      for kind, right in RIGHT.items()
      for i in range(40)
    ]
    (folder / 'summary.json').write_text('{}')
    (folder / f'qa_{model}.jsonl').write_text('\n'.join(lines))


def test_a_stage_is_compared_with_the_one_before_it(tmp_path):
  answer(tmp_path, 42)
  kinds = study_kinds.by_kind(tmp_path, 'default', (42,))
  assert list(kinds) == ['color', 'order', 'course']  # long answers come last
  course = kinds['course']
  assert course['questions'] == 40
  assert course['accuracy'] == {'base': 0.1, 'sft': 0.2, 'rlaif': 0.75}
  error = np.r_[np.ones(22), np.zeros(18)].std(ddof=1) / 40**0.5
  assert course['changes']['rlaif']['change'] == pytest.approx(0.55)
  expected = (0.55 - 1.96 * error, 0.55 + 1.96 * error)
  assert course['changes']['rlaif']['interval'] == pytest.approx(expected)


def test_a_loss_is_named_with_its_stage(tmp_path):
  answer(tmp_path, 42)
  color, order, course = study_kinds.table(
    study_kinds.by_kind(tmp_path, 'default', (42,))
  )[2:]
  assert color.endswith('-22.5 [-35.6, -9.4] | SFT, within chance; RLAIF |')
  assert order.endswith('| SFT; RLAIF, within chance |')
  assert course.startswith('| course (long) | 40 |') and course.endswith('|  |')


def test_a_run_without_all_models_is_left_out(tmp_path):
  answer(tmp_path, 42, ('sft', 'rlaif'))
  assert study_kinds.by_kind(tmp_path, 'default', (42, 43)) == {}
