import dataclasses

import numpy as np
import pytest

from tests.train.pair_samples import RIGHT, TRUTH, WRONG, sample
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import statistics
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.train import pair_controls, pairwise


def test_a_tie_is_half_a_hit_whatever_is_preferred():
  margins = np.array([1.0, -1.0, 0.0, 0.0])
  second = np.array([True, True, True, False])
  assert pair_controls.hits(margins, second).tolist() == [1, 0, 0.5, 0.5]


def test_other_videos_are_never_the_own_one_and_have_as_many_frames():
  answers = (RIGHT, WRONG)
  samples = [
    sample('a', answers, 0, 'one.mp4'),
    sample('b', answers, 0, 'one.mp4'),
    sample('c', answers, 0, 'long.mp4', frames=8),
    sample('d', answers, 0, 'two.mp4'),
  ]
  others = [o.pair.example.key for o in pairwise.other_videos(samples)]
  assert others == ['d', 'd', 'c', 'a']  # the long one has no other of its length


def test_parts_and_copies_of_a_video_are_no_other_one_and_count_as_one():
  """Of an interval, pairs about one video are no independent ones."""
  part = Video(('one.mp4',), (0, 4))
  samples = [
    sample('a', (RIGHT, WRONG), 0, 'one.mp4'),
    about(sample('b', (RIGHT, WRONG), 0, ''), video=part),
    about(sample('c', (RIGHT, WRONG), 0, 'copy.mp4'), place='one.mp4'),
    about(sample('d', (RIGHT, WRONG), 0, ''), video=None),
    sample('e', (RIGHT, WRONG), 0, 'two.mp4'),
  ]
  others = [o.pair.example.key for o in pairwise.other_videos(samples)]
  assert others == ['e', 'e', 'e', 'e', 'a']
  margins = np.array([-1.0, 1.0, -1.0])  # of three pairs about one video
  result = pair_controls.accuracy_of(samples[:3], margins)
  expected = statistics.share_interval([1.0, 0.0, 1.0], ['one'] * 3)
  assert result == {'accuracy': 2 / 3, 'accuracy_interval': expected}


def about(one, **change):
  example = dataclasses.replace(one.pair.example, **change)
  return dataclasses.replace(one, pair=dataclasses.replace(one.pair, example=example))


def test_report_measures_each_view_against_labels_and_against_the_truth():
  samples = [
    sample('a', (RIGHT, WRONG), 0, 'one.mp4', lengths=(4, 6)),  # right, and shorter
    sample('b', (RIGHT, WRONG), 1, 'two.mp4', lengths=(4, 6)),  # a wrong label
    sample('b', (WRONG, WRONG), 1, 'two.mp4'),  # the truth cannot tell
    sample('?', (RIGHT, WRONG), 0, 'two.mp4'),  # the truth is not known
  ]
  views = {
    'own': np.array([-1.0, -1.0, 1.0, -1.0]),
    'blank': np.array([1.0, 1.0, 1.0, 0.0]),
    'other': np.zeros(4),
  }
  report = pair_controls.report(samples, views, TRUTH)
  assert report['accuracy'] == 0.75
  assert report['accuracy_without_video'] == (0 + 1 + 1 + 0.5) / 4
  assert report['accuracy_other_video'] == 0.5
  assert report['accuracy_shorter'] == (1 + 0 + 0.5 + 0.5) / 4
  assert report['truth'] == {
    'n': 2, 'labels': 0.5, 'own': 1.0, 'blank': 0.0, 'other': 0.5, 'shorter': 1.0
  }  # fmt: skip
  assert 'truth' not in pair_controls.report(samples, views, None)
  assert 'accuracy_without_narrative' not in report  # the prompt has none
  views['no_narrative'] = np.array([1.0, -1.0, 1.0, -1.0])
  report = pair_controls.report(samples, views, TRUTH)
  assert report['accuracy_without_narrative'] == 0.5
  assert report['truth']['no_narrative'] == 0.5


def test_calibration_of_a_sure_model_that_is_right_half_of_the_time():
  margins = np.array([20.0, -20.0, 20.0, -20.0])
  second = np.array([True, True, False, False])
  result = pair_controls.calibration(margins, second)
  assert result['ece'] == pytest.approx(0.5, abs=1e-6)
  assert result['curve'] == [(pytest.approx(1), 0.5, 4)]


def test_calibration_of_a_model_that_knows_what_it_knows():
  margins = np.full(4, np.log(3.0))  # 75 %
  result = pair_controls.calibration(margins, np.array([True, True, True, False]))
  assert result['ece'] == pytest.approx(0, abs=1e-9)


def test_the_most_wrong_pairs_are_displayed(tmp_path):
  """Margins of the second answer; the preferred one of 'b' is the second."""
  samples = [
    sample('a', (RIGHT, WRONG), 0, 'gone.mp4'),
    sample('b', (WRONG, RIGHT), 1, 'gone.mp4'),
  ]
  views = {'own': np.array([-3.0, -2.0]), 'blank': np.array([1.0, 1.0])}
  displayed = pair_controls.media(samples, views, DataConfig(root=str(tmp_path)))
  rows = displayed.texts['held_out/worst_pairs'].splitlines()[2:]
  assert rows == [
    f'| What happens? | {RIGHT} | {WRONG} | -2.000 |',
    f'| What happens? | {RIGHT} | {WRONG} | 3.000 |',
  ]
  assert displayed.pictures == {}
  assert displayed.histograms['held_out/margin_own'].tolist() == [3, -2]
  assert displayed.histograms['held_out/margin_blank'].tolist() == [-1, 1]
  assert pair_controls.margin_table(samples, views) == {
    'id': ['a', 'b'], 'second_preferred': [False, True],
    'own': [-3.0, -2.0], 'blank': [1.0, 1.0],
  }  # fmt: skip
