"""Action recognition: split files as published, class names, and hand counts."""

import numpy as np
import pytest

from tests.evals import text_vectors
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals.benchmarks import action, sources
from vlm_rlaif_jax.settings.eval import EvalRun
from vlm_rlaif_jax.settings.text_scores import TextScoresConfig

CLASSES = '1 ApplyEyeMakeup\n2 YoYo\n3 HandstandPushups\n'
UCF = {
  'classInd.txt': CLASSES,
  'testlist01.txt': (
    'ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\nYoYo/v_YoYo_g01_c01.avi\n'
  ),
  'testlist02.txt': (
    'HandstandPushups/v_HandStandPushups_g08_c01.avi\nYoYo/v_YoYo_g01_c01.avi\n'
  ),
}
HMDB = {
  'brush_hair_test_split1.txt': 'a_(x)#1.avi 2 \nb.avi 1 \nc.avi 0 \n',
  'brush_hair_test_split2.txt': 'a_(x)#1.avi 1 \nb.avi 2 \nc.avi 2 \n',
  'wave_test_split1.txt': 'd.avi 2 \ne.avi 2 \n',
  'wave_test_split2.txt': 'd.avi 2 \ne.avi 0 \n',
}
BY_NAME = {one.name: one for one in action.ALL}


def read(name, folder, *splits):
  settings = EvalRun(text_scores=TextScoresConfig(splits=splits or (1,)))
  files = sources.find(BY_NAME[name], folder)
  return action_items(name, files, settings)


def action_items(name, files, settings):
  return BY_NAME[name].read(files, lambda name: Video((name,)), settings)


def write(folder, files):
  folder.mkdir(exist_ok=True)
  for name, text in files.items():
    (folder / name).write_text(text)
  return folder


@pytest.mark.parametrize(
  ('name', 'text'),
  [
    ('ApplyEyeMakeup', 'apply eye makeup'), ('YoYo', 'yo yo'), ('TaiChi', 'tai chi'),
    ('CleanAndJerk', 'clean and jerk'), ('brush_hair', 'brush hair'), ('golf', 'golf'),
    ('flic_flac', 'flic flac'), ('BMXRacing', 'bmx racing'),
  ],
)  # fmt: skip
def test_class_names_become_words(name, text):
  assert action.class_text(name) == text


def test_ucf101(tmp_path):
  first, second = read('ucf101', write(tmp_path, UCF))
  assert first.key == 'ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi'
  assert first.reference == 'apply eye makeup' and second.fields['class'] == 'YoYo'
  assert first.fields['classes'] == ['ApplyEyeMakeup', 'YoYo', 'HandstandPushups']
  both = read('ucf101', write(tmp_path / 'ucfTrainTestlist', UCF).parent, 1, 2)
  assert [item.fields['splits'] for item in both] == [[1], [1, 2], [2]]


def test_hmdb51_tests_what_is_marked_2(tmp_path):
  items = read('hmdb51', write(tmp_path, HMDB))
  names = ['brush_hair/a_(x)#1.avi', 'wave/d.avi', 'wave/e.avi']
  assert [item.video_name for item in items] == names
  assert items[0].reference == 'brush hair'
  both = read('hmdb51', tmp_path, 1, 2)
  assert [item.fields['splits'] for item in both] == [[1], [1, 2], [1], [2], [2]]


@pytest.mark.parametrize(
  ('name', 'files', 'splits', 'message'),
  [
    ('ucf101', {**UCF, 'testlist01.txt': 'No/v.avi\n'}, (1,), "line 1: the class 'No'"),
    ('ucf101', {**UCF, 'testlist01.txt': 'v.avi\n'}, (1,), 'must be class/video.avi'),
    ('ucf101', {**UCF, 'classInd.txt': '2 A\n'}, (1,), 'must be 1 and the name'),
    ('ucf101', UCF, (1, 3), 'no test videos of split 3'),
    ('hmdb51', {**HMDB, 'wave_test_split1.txt': 'd.avi 3\n'}, (1,), 'and 0, 1 or 2'),
    ('hmdb51', {**HMDB, 'wave_test_split1.txt': 'd.avi\n'}, (1,), 'a video and 0,'),
    ('hmdb51', {'wave_test_split1.txt': 'd.avi 2\nd.avi 2\n'}, (1,), 'is also that of'),
  ],
)  # fmt: skip
def test_wrong_files_are_named(tmp_path, name, files, splits, message):
  with pytest.raises(DataError, match=message):
    read(name, write(tmp_path, files), *splits)


def test_one_file_of_several_says_to_name_their_folder(tmp_path):
  write(tmp_path, UCF)
  with pytest.raises(DataError, match=r'expected classInd.txt beside it'):
    read('ucf101', tmp_path / 'testlist01.txt')
  with pytest.raises(DataError, match='no test videos of split 1'):
    read('ucf101', tmp_path / 'classInd.txt')


def test_splits_are_1_to_3():
  with pytest.raises(ValueError, match='splits: choose some of 1, 2, 3'):
    TextScoresConfig(splits=(1, 4))


# --------------------------------------------------------------------------- scores


def score(items, answers, **settings):
  text_scores = TextScoresConfig(**settings)
  tools = text_vectors.tools(text_scores=text_scores)
  values = action.score(items, text_vectors.outputs(answers), tools)
  return {name: float(np.mean(part)) for name, part in values.items()}


def test_accuracy_by_hand_over_one_split_and_over_two(tmp_path):
  write(tmp_path, HMDB)
  items = read('hmdb51', tmp_path)  # brush hair once, wave twice
  answers = ['brush hair', 'wave', 'brush hair']
  found = score(items, answers, action_templates='name')
  assert found['top1'] == pytest.approx(2 / 3)
  assert found['macro'] == pytest.approx((1 + 1 / 2) / 2)
  assert found['top5'] == 1 and found['chance'] == 1 / 2
  both = read('hmdb51', tmp_path, 1, 2)  # a, d, e; b, c, d: videos a, d, e, b, c
  answers = ['brush hair', 'wave', 'brush hair', 'wave', 'brush hair']
  found = score(both, answers, splits=(1, 2), action_templates='name')
  assert found['top1'] == pytest.approx((2 / 3 + 2 / 3) / 2)
  assert found['macro'] == pytest.approx(((1 + 1 / 2) / 2 + (1 / 2 + 1) / 2) / 2)


def test_ranks_count_ties_as_nearer():
  similarity = np.asarray([[0.3, 0.3, 0.1], [0.2, 0.9, 0.9 - 1e-8]], np.float32)
  assert action.class_ranks(similarity, np.asarray([0, 2])).tolist() == [2, 2]


def test_what_is_no_number_is_never_first():
  similarity = np.asarray([[np.nan, 0.2, 0.1], [0.3, np.nan, 0.1]])
  assert action.class_ranks(similarity, np.asarray([0, 0])).tolist() == [3, 2]


def test_top5_against_brute_force(rng):
  similarity = rng.normal(size=(40, 12))
  labels = rng.integers(12, size=40)
  ranks = action.class_ranks(similarity, labels)
  best = np.argsort(-similarity, axis=1)[:, :5]
  expected = [label in row for label, row in zip(labels, best, strict=True)]
  assert (ranks <= 5).tolist() == expected


@pytest.mark.parametrize('templates', ['name', 'single', 'ensemble'])
def test_the_right_class_is_nearest_to_its_own_name(tmp_path, templates):
  items = read('ucf101', write(tmp_path, UCF), 1, 2)
  answers = [item.reference for item in items]
  own = score(items, answers, splits=(1, 2), action_templates=templates)
  assert own['top1'] == own['macro'] == 1
  other = score(items, answers[1:] + answers[:1], splits=(1, 2))
  assert other['top1'] == 0


def test_an_ensemble_is_the_unit_mean_of_its_texts():
  tools = text_vectors.tools(text_scores=TextScoresConfig(action_templates='ensemble'))
  (vector,) = action.class_vectors(['GolfSwing'], tools)
  texts = [t.format('golf swing') for t in action.TEMPLATES['ensemble']]
  mean = text_vectors.encode(texts).vectors.mean(axis=0)
  np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
