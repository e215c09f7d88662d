"""Multiple choice: four published formats, letters, and what they are worth."""

import json
import sys

import numpy as np
import pytest

from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.video import Video
from vlm_rlaif_jax.evals import summaries
from vlm_rlaif_jax.evals.benchmarks import choice, choice_files, registry, sources
from vlm_rlaif_jax.evals.benchmarks.benchmark import Outputs, Tools
from vlm_rlaif_jax.settings.eval import EvalRun

RUN = EvalRun(size='7b')
TABLE = (
  'video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n'
  '42,300,640,480,"why, then",3,0,CW,run,jump,sit,eat,sleep\n'
  '42,300,640,480,how,0,1,CH,run,jump,sit,eat,sleep\n'
)


def read(name, *paths):
  locate = lambda video: Video((video,))
  return registry.named(name).read(paths, locate, RUN)


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


def mme(**more):
  return {
    'video_id': '001', 'videoID': 'fFjv', 'question_id': '001-1', 'duration': 'short',
    'question': 'Which?', 'options': ['A. Red.', 'B. Blue.', 'C. Green.', 'D. Gray.'],
    'answer': 'C', **more,
  }  # fmt: skip


def test_video_mme_as_a_table_and_by_video(tmp_path):
  (item,) = read('video_mme', write(tmp_path / 'video_mme.json', [mme()]))
  assert (item.key, item.video_name, item.reference) == ('001-1', 'fFjv', 'C')
  assert item.fields['options'] == ['Red.', 'Blue.', 'Green.', 'Gray.']
  assert item.fields['kind'] == 'short'
  assert 'Question: Which?\nA. Red.\nB. Blue.\nC. Green.\nD. Gray.' in item.prompts[0]
  fields = ('question_id', 'question', 'options', 'answer')
  inner = {name: mme()[name] for name in fields}
  nested = {'video_id': '001', 'videoID': 'fFjv', 'duration': 'short'}
  rows = [{**nested, 'questions': [inner, {**inner, 'question_id': '001-2'}]}]
  first, second = read('video_mme', write(tmp_path / 'video_mme.json', rows))
  assert (first.prompts, first.reference) == (item.prompts, 'C')
  assert second.key == '001-2'


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'answer': 'E'}, r"row 1: answer must be one of A, B, C, D, got 'E'"),
    ({'options': 'A. Red.'}, r"row 1: options must be a list of texts, got 'A. Red.'"),
    ({'options': ['A. Red.']}, r"row 1: answer must be one of A, got 'C'"),
    ({'question_id': '001-1'}, r"row 1: question_id '001-1' is also that of .* row 0"),
    ({'videoID': None, 'video_id': None}, r'row 1: missing field videoID or video_id;'),
  ],
)
def test_wrong_rows_of_video_mme(tmp_path, change, message):
  rows = [mme(), mme(question_id='001-2', **change) if 'question_id' not in change
          else mme(**change)]  # fmt: skip
  path = write(tmp_path / 'video_mme.json', rows)
  with pytest.raises(DataError, match=message) as error:
    read('video_mme', path)
  assert '\n' not in str(error.value)


def parquet(path, rows):
  """Writes rows as mirrors of test sets have them."""
  pyarrow = pytest.importorskip('pyarrow', reason='needs the extra [parquet]')
  from pyarrow import parquet as files

  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_table(pyarrow.Table.from_pylist(rows), path)
  return path


def found(name, folder):
  """The items of the annotation files that are found in a folder."""
  record = registry.named(name)
  return read(name, *sources.find(record, folder))


def test_mirrors_in_parquet_are_read_as_the_releases_are(tmp_path):
  rows = [mme(), mme(question_id='001-2', answer='D')]
  expected = read('video_mme', write(tmp_path / 'video_mme.json', rows))
  for number, row in enumerate(rows):  # in two parts, with the video beside
    place = f'a/videomme/test-0000{number}-of-00002.parquet'
    parquet(tmp_path / place, [{**row, 'video': b'mp4', 'url': None}])
  items = found('video_mme', tmp_path / 'a')
  assert [item.prompts for item in items] == [item.prompts for item in expected]
  assert [item.reference for item in items] == ['C', 'D']
  assert items[1].location.endswith('test-00001-of-00002.parquet row 0')

  row = {'video': 'ZS9.mp4', 'question': 'What?', 'candidates': ['sat', 'ran'],
         'answer': 'ran', 'start': None, 'end': None}  # fmt: skip
  parquet(tmp_path / 'b' / 'action_antonym.parquet', [row])
  (item,) = found('mvbench', tmp_path / 'b')
  assert (item.key, item.fields['kind']) == ('action_antonym_0', 'action antonym')
  parquet(tmp_path / 'c' / 'state_change' / 'train-0.parquet', [row, row])
  assert [i.key for i in found('mvbench', tmp_path / 'c')] == [
    'state_change_0', 'state_change_1',
  ]  # fmt: skip

  row = {'video': 42, 'question': 'how', 'answer': 0, 'qid': 1, 'type': 'CH',
         **{f'a{i}': f'option {i}' for i in range(5)}}  # fmt: skip
  parquet(tmp_path / 'd' / 'MC' / 'test-00000-of-00001.parquet', [row])
  (item,) = found('next_qa', tmp_path / 'd')
  assert (item.key, item.video_name, item.reference) == ('42_1', '42', 'A')

  row = {'video_id': '7', 'dim': 'order', 'question': 'Which?\nA. x\nB. y',
         'answer': 'B. y'}  # fmt: skip
  parquet(tmp_path / 'e' / 'multi-choice' / 'test-0.parquet', [row, row])
  assert [i.key for i in found('tempcompass', tmp_path / 'e')] == [
    '7_order_0', '7_order_1',
  ]  # fmt: skip
  row = {'video_name': 'v', 'question_id': 'v_0', 'question': 'who', 'answer': 'man',
         'type': '8'}  # fmt: skip
  parquet(tmp_path / 'f' / 'data' / 'test-0.parquet', [row])
  (item,) = found('activitynet_qa', tmp_path / 'f')
  assert (item.key, item.reference, item.fields['kind']) == ('v_0', 'man', '8')


def test_parquet_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
  path = tmp_path / 'test-00000-of-00001.parquet'
  path.write_bytes(b'PAR1....')
  pytest.importorskip('pyarrow', reason='needs the extra [parquet]')
  with pytest.raises(DataError, match='cannot be read as Parquet') as error:
    read('video_mme', path)
  assert '\n' not in str(error.value)
  with pytest.raises(DataError, match='row 0: missing field videoID or video_id; it'):
    read('video_mme', parquet(path, [{'name': 'x'}]))
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(DataError, match=r"pip install -e '\.\[parquet\]'"):
    read('video_mme', path)


def test_the_first_release_of_video_mme_names_its_fields_otherwise(tmp_path):
  row = mme()
  inner = {'question_id': 'q', 'question': 'Which?', 'choices': row['options'],
           'answer': 'C'}  # fmt: skip
  first = {'video_id': '001', 'duration_category': 'long', 'questions': [inner]}
  (item,) = read('video_mme', write(tmp_path / 'video_mme.json', [first]))
  assert (item.video_name, item.fields['kind'], item.reference) == ('001', 'long', 'C')
  assert item.fields['options'] == ['Red.', 'Blue.', 'Green.', 'Gray.']


def test_mvbench_has_a_folder_and_a_span_by_task(tmp_path):
  row = {'video': 'ZS9.mp4', 'question': 'What first?', 'candidates': ['sat', 'ran'],
         'answer': 'ran', 'start': 2.0, 'end': 5}  # fmt: skip
  paths = [
    write(tmp_path / 'json' / f'{task}.json', [row])
    for task in ('action_sequence', 'action_antonym')
  ]
  first, second = read('mvbench', *paths)
  assert first.video_name == 'star/Charades_v1_480/ZS9.mp4'
  assert (first.key, first.reference) == ('action_sequence_0', 'B')
  assert first.fields['span'] == [2.0, 5.0] and 'span' not in second.fields
  assert second.fields['kind'] == 'action antonym'
  write(paths[0], [{**row, 'answer': 'flew'}])
  with pytest.raises(DataError, match="row 0: answer 'flew' is none of candidates"):
    read('mvbench', *paths)
  write(paths[0], [{**row, 'end': 1}])
  with pytest.raises(DataError, match=r'start and end must be seconds, got 2\.0, 1'):
    read('mvbench', *paths)
  assert len(choice_files.MVBENCH_FOLDERS) == 20


def test_next_qa_has_folders_in_another_file(tmp_path):
  table = write(tmp_path / 'test.csv', TABLE)
  first, second = read('next_qa', table)
  assert (first.key, first.reference, first.video_name) == ('42_0', 'D', '42')
  assert first.fields['options'] == ['run', 'jump', 'sit', 'eat', 'sleep']
  assert (second.key, second.fields['kind']) == ('42_1', 'CH')
  folders = write(tmp_path / 'map_vid_vidorID.json', {'42': '1164/42'})
  assert read('next_qa', table, folders)[0].video_name == '1164/42'
  for old, new, message in (
    (',3,0,CW', ',5,0,CW', "line 2: answer must be 0 to 4, got '5'"),
    ('0,CW', '1,CW', r"line 3: video and qid '42_1' is also that of .* line 2"),
    ('a4', 'a5', 'line 2: missing field a4; it has'),
  ):
    write(table, TABLE.replace(old, new))
    with pytest.raises(DataError, match=message):
      read('next_qa', table)


def test_tempcompass_has_options_in_its_questions(tmp_path):
  row = {'question': 'What is the man doing?\nA. dunking\nB. passing',
         'answer': 'B. passing'}  # fmt: skip
  content = {'10_reverse': {'action': [row, row], 'speed': [row]}}
  items = read('tempcompass', write(tmp_path / 'multi-choice.json', content))
  assert [item.key for item in items] == [
    '10_reverse_action_0', '10_reverse_action_1', '10_reverse_speed_0',
  ]  # fmt: skip
  assert items[0].reference == 'B' and items[0].fields['options'] == [
    'dunking', 'passing',
  ]  # fmt: skip
  assert items[0].fields['question'] == 'What is the man doing?'
  twice = {'question': 'Which?\nA. x\nB. y\nB. z\nC. w', 'answer': 'C. w'}
  path = write(tmp_path / 'multi-choice.json', {'10': {'action': [twice]}})
  (item,) = read('tempcompass', path)
  assert (item.reference, item.fields['options']) == ('D', ['x', 'y', 'z', 'w'])
  write(tmp_path / 'multi-choice.json', {'10': {'action': row}})
  with pytest.raises(DataError, match="'10': action must be a list of objects"):
    read('tempcompass', tmp_path / 'multi-choice.json')


@pytest.mark.parametrize(
  ('answer', 'letter'),
  [
    ('B', 'B'), (' B.', 'B'), ('(B) a blue car', 'B'), ('B) blue', 'B'),
    ('The answer is B', 'B'), ('Answer: (C)', 'C'), ('option A.', 'A'),
    ('The blue car is first.', 'B'), ('A man drives a red car.', 'A'),
    ('A man drives.', ''), ('red or blue', ''), ('', ''), ('E', ''), ('b', 'B'),
    ('(b)', 'B'), ('b. blue', 'B'), ('**B**', 'B'), ('[B]', 'B'), ('"B."', 'B'),
    ('B - blue', 'B'), ('B blue', 'B'), ('A blue', 'B'), ('B, because it is', 'B'),
    ('The answer is B because it is bright.', 'B'), ('The answer is A man.', ''),
    ('The correct option is **B**.', 'B'), ('Option A is wrong; answer: C', 'C'),
    ('A, B and C', ''), ('A or B', ''), ('The answer is B or C', ''), ('A/B', ''),
    ('e.g. a car', ''), ('a car', ''), ('The answer is not B', ''),
  ],
)  # fmt: skip
def test_letters_of_answers(answer, letter):
  assert choice.chosen_letter(answer, ['red', 'blue', 'gray']) == letter


@pytest.mark.parametrize(
  ('answer', 'letter'),
  [
    ('A black cat.', 'B'), ('black cat', 'B'), ('It is a cat.', 'A'),
    ('A black cat, not a cat', ''), ('-5', 'C'), ('5', 'D'), ('3.5', ''),
  ],
)  # fmt: skip
def test_an_option_inside_a_longer_one(answer, letter):
  options = ['cat', 'black cat', '-5', '5']
  assert choice.chosen_letter(answer, options) == letter
  assert choice.chosen_letter(answer, ['a dog', 'A dog']) == ''


@pytest.mark.parametrize(
  ('answer', 'letter'), [('A', 'A'), ('(B)', 'B'), ('a', 'B'), ('b', 'C')]
)
def test_options_that_are_letters_as_of_character_order(answer, letter):
  assert choice.chosen_letter(answer, ['c', 'a', 'b']) == letter


@pytest.mark.parametrize(
  ('options', 'texts'),
  [
    (['A. x', 'B. y'], ['x', 'y']),
    (
      ['Washington D.C. in 1990', 'Plan B: run'],
      ['Washington D.C. in 1990', 'Plan B: run'],
    ),
    (['Vitamin C', 'A. Lincoln'], ['Vitamin C', 'A. Lincoln']),
  ],
)
def test_options_lose_their_own_letters_alone(tmp_path, options, texts):
  row = mme(options=options, answer='B')
  (item,) = read('video_mme', write(tmp_path / 'video_mme.json', [row]))
  assert item.fields['options'] == texts


def test_options_with_the_letters_of_other_places_are_refused(tmp_path):
  path = write(tmp_path / 'video_mme.json', [mme(options=['B. x', 'A. y'], answer='B')])
  with pytest.raises(
    DataError, match='row 0: options have the letters B, A; list them'
  ):
    read('video_mme', path)


def test_braces_in_an_option_are_text(tmp_path):
  row = mme(options=['A. {question}', 'B. {options}'], answer='B')
  (item,) = read('video_mme', write(tmp_path / 'video_mme.json', [row]))
  assert 'Question: Which?\nA. {question}\nB. {options}\n' in item.prompts[0]


def items_of(tmp_path, count, rng):
  rows = [mme(question_id=str(i), answer='ABCD'[rng.integers(4)]) for i in range(count)]
  return read('video_mme', write(tmp_path / 'video_mme.json', rows))


def values_of(items, letters):
  odds = [[float(one == letter) for one in 'ABCD'] for letter in letters]
  outputs = Outputs(predictions=[(letter,) for letter in letters], options=odds)
  return choice.score(items, outputs, Tools(settings=RUN))


def test_references_are_right_and_shuffled_ones_at_chance(tmp_path, rng):
  items = items_of(tmp_path, 800, rng)
  letters = [item.reference for item in items]
  values = values_of(items, letters)
  for metric in ('accuracy', 'generated_accuracy', 'parsed'):
    assert np.mean(values[metric]) == 1
  shuffled = values_of(items, [str(one) for one in rng.permutation(letters)])
  for metric in ('accuracy', 'generated_accuracy'):
    assert np.mean(shuffled[metric]) == pytest.approx(0.25, abs=0.05)
  assert np.mean(shuffled['chance']) == 0.25


def test_a_tie_of_letters_is_not_right(tmp_path, rng):
  items = items_of(tmp_path, 1, rng)
  outputs = Outputs(predictions=[('none',)], options=[[-1.0] * 4])
  values = choice.score(items, outputs, Tools(settings=RUN))
  assert values['accuracy'] == [0] and values['parsed'] == [0]


def test_the_headline_of_mvbench_is_the_mean_over_tasks(tmp_path):
  row = {'video': 'v.mp4', 'question': 'W?', 'candidates': ['x', 'y'], 'answer': 'x'}
  counts = {'action_count': 1, 'object_shuffle': 3}
  paths = [write(tmp_path / f'{task}.json', [row] * n) for task, n in counts.items()]
  items = read('mvbench', *paths)
  odds = [[0.0, -1.0], [-1.0, 0.0], [-1.0, 0.0], [0.0, -1.0]]
  outputs = Outputs(predictions=[('A',)] * 4, options=odds)
  values = choice.score_mvbench(items, outputs, Tools(settings=RUN))
  assert np.mean(values['task_mean']) == pytest.approx((1 + 1 / 3) / 2)
  assert np.mean(values['generated_task_mean']) == pytest.approx(1)
  assert np.mean(values['accuracy']) == 0.5


def test_next_qa_has_the_groups_of_types_that_papers_print(tmp_path):
  kinds = {'CW': 'A', 'CH': 'B', 'TN': 'A', 'TP': 'A', 'TC': 'B', 'DL': 'A'}
  head, row, _ = TABLE.splitlines()
  rows = [row.replace(',3,0,CW,', f',0,{i},{kind},') for i, kind in enumerate(kinds)]
  items = read('next_qa', write(tmp_path / 'test.csv', '\n'.join([head, *rows]) + '\n'))
  outputs = Outputs(
    predictions=[(letter,) for letter in kinds.values()],
    options=[[0.0, -1.0, -2.0, -3.0, -4.0]] * len(kinds),
  )
  (benchmark,) = (one for one in choice.ALL if one.name == 'next_qa')
  values = benchmark.score(items, outputs, Tools(settings=RUN))
  metrics = summaries.metrics(benchmark, items, values)
  means = {name: (one['value'], one['n']) for name, one in metrics.items()}
  assert means['generated_accuracy_causal'] == (1 / 2, 2)
  assert means['generated_accuracy_temporal'] == (pytest.approx(2 / 3), 3)
  assert means['generated_accuracy_descriptive'] == (1.0, 1)
  assert means['accuracy_temporal'] == (1.0, 3)
  assert means['generated_accuracy'] == (pytest.approx(4 / 6), 6)
