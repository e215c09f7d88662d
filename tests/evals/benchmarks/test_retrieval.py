"""Annotation files of retrieval as published, and what is wrong with others."""

import json
import pickle

import pytest

from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals.benchmarks import retrieval, sources
from vlm_rlaif_jax.settings.eval import EvalRun

TABLE = (
  'key,vid_key,video_id,sentence\n'
  'ret0,msr9770,video9770,a person is connecting something\n'
  'ret1,msr9771,video9771,"a little girl, who reads"\n'
)
LIST = 'abc_1_5\n-x_y_10_20\n'
CAPTIONS = (
  '# Microsoft Research Video Description Corpus\n#\n\n'
  'abc_1_5 a squirrel eats a peanut\n'
  'abc_1_5 an animal is eating\n'
  'train_1_2 a man sings\n'
  '-x_y_10_20 a man plays a guitar\n'
)
BY_NAME = {one.name: one for one in retrieval.ALL}


def read(name, folder):
  benchmark = BY_NAME[name]
  files = sources.find(benchmark, folder)
  return benchmark.read(files, lambda name: Video((f'{name}.avi',)), EvalRun())


def write(folder, **files):
  for name, text in files.items():
    (folder / name.replace('__', '.')).write_text(text)
  return folder


def test_msrvtt(tmp_path):
  write(tmp_path, MSRVTT_JSFUSION_test__csv=TABLE)
  first, second = read('msrvtt_retrieval', tmp_path)
  assert (first.key, first.video.paths) == ('video9770', ('video9770.avi',))
  assert second.fields['captions'] == ['a little girl, who reads']
  assert second.reference == 'a little girl, who reads'
  assert first.fields['others'] == [] and 'Describe' in first.prompts[0]


def test_further_captions_of_msrvtt_are_no_queries(tmp_path):
  query = 'a person is connecting something'
  captions = (('video9770', 'wires'), ('video1', 'other'), ('video9770', query))
  sentences = [
    {'caption': text, 'video_id': name, 'sen_id': i}
    for i, (name, text) in enumerate(captions)
  ]
  data = json.dumps({'info': {}, 'videos': [], 'sentences': sentences})
  write(tmp_path, MSRVTT_JSFUSION_test__csv=TABLE, MSRVTT_data__json=data)
  first, second = read('msrvtt_retrieval', tmp_path)
  assert first.fields['others'] == ['wires'] and second.fields['others'] == []


def test_msvd_has_several_captions_a_video(tmp_path):
  write(tmp_path, test_list__txt=LIST, AllVideoDescriptions__txt=CAPTIONS)
  first, second = read('msvd_retrieval', tmp_path)
  assert first.fields['captions'] == ['a squirrel eats a peanut', 'an animal is eating']
  assert second.key == '-x_y_10_20' and len(second.fields['captions']) == 1


def test_captions_in_a_pickle_are_the_same(tmp_path):
  write(tmp_path, test_list__txt=LIST, AllVideoDescriptions__txt=CAPTIONS)
  expected = [item.fields['captions'] for item in read('msvd_retrieval', tmp_path)]
  (tmp_path / 'AllVideoDescriptions.txt').unlink()
  names = ('abc_1_5', '-x_y_10_20')
  split = {
    name: [text.split() for text in texts]
    for name, texts in zip(names, expected, strict=True)
  }
  (tmp_path / 'raw-captions.pkl').write_bytes(pickle.dumps(split))
  items = read('msvd_retrieval', tmp_path)
  assert [item.fields['captions'] for item in items] == expected


class Evil:
  """What a pickle could do if it were trusted."""

  def __reduce__(self):
    return (print, ('code of the file ran',))


def test_a_pickle_that_names_code_is_refused_and_does_not_run(tmp_path, capsys):
  write(tmp_path, test_list__txt=LIST)
  (tmp_path / 'raw-captions.pkl').write_bytes(pickle.dumps({'abc_1_5': Evil()}))
  with pytest.raises(DataError, match=r'raw-captions.pkl: cannot be read .*print'):
    read('msvd_retrieval', tmp_path)
  assert 'ran' not in capsys.readouterr().out


def test_hard_negatives_are_read_where_they_are(tmp_path):
  write(tmp_path, test_list__txt=LIST, AllVideoDescriptions__txt=CAPTIONS)
  wrong = {'abc_1_5': ['a squirrel eats an apple'], '-x_y_10_20': ['a man plays drums']}
  write(tmp_path, hard_negatives__json=json.dumps(wrong))
  items = read('msvd_retrieval', tmp_path)
  assert items[0].fields['negatives'] == ['a squirrel eats an apple']
  write(tmp_path, hard_negatives__json=json.dumps({'abc_1_5': ['x']}))
  with pytest.raises(DataError, match=r"hard_negatives.json: '-x_y_10_20' must have"):
    read('msvd_retrieval', tmp_path)


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    (
      {'MSRVTT_JSFUSION_test__csv': 'key,video,sentence\na,b,c\n'},
      'line 2: .*video_id',
    ),
    (
      {'MSRVTT_JSFUSION_test__csv': TABLE + 'ret1,m,v,x\n'},
      "line 4: key 'ret1' is also",
    ),
    (
      {'MSRVTT_JSFUSION_test__csv': TABLE + 'ret2,m,v, \n'},
      'line 4: sentence is blank',
    ),
    (
      {'MSRVTT_JSFUSION_test__csv': TABLE, 'MSRVTT_data__json': '{"a": 1}'},
      'MSRVTT_data.json: must have `sentences`',
    ),
  ],
)
def test_wrong_fields_of_msrvtt_are_named(tmp_path, files, message):
  with pytest.raises(DataError, match=message):
    read('msrvtt_retrieval', write(tmp_path, **files))


def test_one_file_of_several_says_to_name_their_folder(tmp_path):
  write(tmp_path, test_list__txt=LIST)
  with pytest.raises(DataError, match=r'test_list.txt with .* give their folder'):
    read('msvd_retrieval', tmp_path / 'test_list.txt')


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (LIST + 'none_1_2\n', "line 3: the video 'none_1_2' has no caption"),
    (LIST + 'abc_1_5\n', "line 3: video 'abc_1_5' is also that of .* line 1"),
    ('\n', 'test_list.txt: empty; expected the name of a video a line'),
  ],
)
def test_wrong_lists_of_msvd_are_named(tmp_path, names, message):
  write(tmp_path, test_list__txt=names, AllVideoDescriptions__txt=CAPTIONS)
  with pytest.raises(DataError, match=message):
    read('msvd_retrieval', tmp_path)
