"""The page of fixture runs: everything is there, escaped, in order, and small."""

import html.parser
import json
import re
import shutil

import pytest

from tests.reports.page import run_fixture
from vlm_rlaif_jax.data.video import Video, read_frames
from vlm_rlaif_jax.reports.page import answers, curves, page, pictures, run_files
from vlm_rlaif_jax.reports.page.run_files import ReportError


class Reader(html.parser.HTMLParser):
  """Collects what the checks below are about."""

  def __init__(self, text: str):
    super().__init__()
    self.headings, self.images, self.addresses, self.scripts = [], [], [], 0
    self.ids, self.open, self.labels = [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    values = dict(attrs)
    if re.fullmatch('h[1-6]', tag):
      self.headings.append(int(tag[1]))
    if tag in ('img', 'svg') and values.get('aria-hidden') != 'true':
      self.images.append(values.get('alt') or values.get('aria-label'))
    self.addresses += [v for k, v in attrs if k in ('src', 'href', 'action', 'data')]
    self.scripts += tag == 'script'
    self.ids += [values['id']] if 'id' in values else []
    if tag not in ('img', 'br', 'meta', 'input'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, f'</{tag}> does not end what is open'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return run_fixture.run(tmp_path_factory.mktemp('runs') / 'a' / 'tiny')


@pytest.fixture(scope='module')
def text(folder):
  runs = run_files.find([folder])
  written = page.page(runs)
  assert runs[0].problems == []
  return written


def plain(text: str) -> str:
  """Returns what is displayed, in one line."""
  without = re.sub(r'<style>.*?</style>|<script>.*?</script>', '', text, flags=re.S)
  words = html.unescape(re.sub(r'<[^>]+>', ' ', without))
  return ' '.join(words.split())


def test_every_part_is_there(text):
  displayed = plain(text)
  for part in (
    'seed 42', '+50.0 points', '2026-01-02 03:04 UTC', '8 x TPU v5e', 'jax 0.11.0',
    'Loss of SFT', 'Loss of the initial policy', 'Accuracy on held-out pairs',
    'KL from the reference', 'Length of answers', 'Entropy', 'Value loss',
    'Explained variance', 'Held-out reward', 'Held-out truth', 'Margins of the judge',
    'Margins of the reward model', 'Calibration', 'Both orders agree, %',
    'Log-odds that the first place is worth', 'Two judges on the same answers',
    'Narrative', 'preferred', 'reward 2.5', 'repaired by RLAIF', 'label wrong',
    'wrong, rewarded', 'None.',
  ):  # fmt: skip
    assert part in displayed, part


def test_the_papers_tables_have_its_numbers_and_ours(text):
  displayed = plain(text)
  tables = re.findall(r'<table class="compact paper-table">.*?</table>', text, re.S)
  assert len(tables) == 4
  assert 'VLM-RLAIF (paper) 3.63 3.25 4.00 3.23 3.32 3.49' in displayed
  assert 'VLM-RLAIF (paper) 76.4 63.0 57.3' in displayed
  assert 'VLM-SFT (paper) 26.65 ~13.1' in displayed
  assert 'VLM-RLAIF (paper) 62.83 ~44.8' in displayed
  ours = re.search(r'ours</span> RLAIF</th>(.*?)</tr>', tables[1], re.S)
  assert ours is not None
  cells = [plain(cell) for cell in re.findall('<td>(.*?)</td>', ours[1], re.S)]
  assert cells[0].startswith('78.9 [68.9, 88.9]') and cells[0].endswith('n 2')
  assert cells[1].startswith('3.21') and cells[2:] == [''] * 4  # not run: blank
  assert ' world ' not in plain(tables[1])
  assert '2 of 3 rows scored' in displayed and 'judge: name exact' in displayed


def test_rows_of_the_built_in_world_say_so(folder, tmp_path):
  """Its benchmarks have the names of those whose file format they have."""
  run = tmp_path / 'tiny'
  shutil.copytree(folder, run)
  for path in run.glob('*/summary.json'):
    summary = json.loads(path.read_text())
    summary['lineage'] = {'seed': 1, 'data.root': '', 'world.seed': 0}
    path.write_text(json.dumps(summary))
  text = page.page(run_files.find([run]))
  tables = re.findall(r'<table class="compact paper-table">.*?</table>', text, re.S)
  assert 'RLAIF world 78.9' in plain(tables[1])


def test_what_comes_from_data_is_text(text):
  read = Reader(text)
  assert read.scripts == 1  # that of the page itself
  assert text.count('&lt;script&gt;alert(&quot;&amp;1&quot;)&lt;/script&gt;') >= 3
  assert run_fixture.ATTACK not in text


def test_the_page_loads_nothing(text):
  addresses = Reader(text).addresses
  assert any(one.startswith('data:image/jpeg;base64,') for one in addresses)
  assert all(one.startswith(('#', 'data:')) for one in addresses)
  assert not re.search(r'@import|url\(|https?://', text)


def test_headings_are_in_order_and_pictures_have_texts(text):
  read = Reader(text)
  assert read.open == []
  assert read.headings[0] == 1 and read.headings.count(1) == 1
  pairs = zip(read.headings, read.headings[1:], strict=False)
  assert all(after <= before + 1 for before, after in pairs)
  assert len(read.images) > 20 and all(read.images)
  assert len(read.ids) == len(set(read.ids))
  assert all(name[1:] in read.ids for name in re.findall(r'href="(#\w+)"', text))


def test_wrong_claims_and_changed_words_are_marked(text):
  """Of SFT the first claim is wrong; of RLAIF none is, and one word is another."""
  wrong = '<span class="wrong">First the red circle moves</span>'
  removed = '<span class="wrong"><del>right,</del></span> then it stays.'
  assert f'{wrong} {removed}' in text
  assert 'First the red circle moves <ins>left,</ins> then it stays.' in text


def test_runs_are_side_by_side_with_what_differs(folder, tmp_path):
  other = run_fixture.run(tmp_path / 'b' / 'tiny', seed=7, answer=run_fixture.WRONG)
  text = page.page(run_files.find([folder, other]))
  displayed = plain(text)
  assert 'Where the runs differ' in displayed
  row = re.search(r'<th scope="row">seed</th>.*?</tr>', text, re.S)
  assert row is not None and plain(row[0]).split()[-2:] == ['42', '7']
  assert 'optim.learning_rate' not in text.split('All settings')[0]
  assert 'value="wrong in both"' in text  # of the second run
  Reader(text)


@pytest.mark.slow
def test_a_page_has_a_limit(folder):
  runs = run_files.find([folder])
  whole = page.page(runs)
  assert whole.count('src="data:') > 20 and runs[0].problems == []
  limit = len(whole) - 20_000
  text = page.page(runs, limit)
  assert 0 < text.count('src="data:') < whole.count('src="data:')
  assert len(text.encode()) <= limit + 200  # the line that says so
  assert 'src="data:' not in page.page(run_files.find([folder]), limit=1000)
  assert any('without pictures' in line for line in runs[0].problems)
  assert len(whole.encode()) < page.LIMIT


@pytest.mark.parametrize(
  ('file', 'content', 'line'),
  [
    ('eval/summary.json', '{"sft": ', 'eval/summary.json: cannot be read'),
    ('eval/summary.json', '[1]', 'contains a list, expected a dict'),
    ('sft/metrics.jsonl', '{"step": 1, "loss": 2}\nnot json\n', 'line 2: not a JSON'),
    ('label/audit.jsonl', None, 'label/audit.jsonl: no such file'),
    ('ppo/samples.jsonl', None, 'ppo/samples.jsonl: no such file'),
    ('reward/margins.json', '{"own": 3}', 'margins of its reward model is left out'),
    ('reward/summary.json', '{"calibration": [1]}', 'calibration of its reward model'),
    ('eval/qa_rlaif.jsonl', '\x00\n', 'line 1: not a JSON object'),
    ('ppo/summary.json', None, 'the stage is not done'),
  ],
)  # fmt: skip
def test_a_missing_or_broken_file_is_one_line(folder, tmp_path, file, content, line):
  run = tmp_path / 'tiny'
  shutil.copytree(folder, run)
  if content is None:
    (run / file).unlink()
  else:
    (run / file).write_text(content)
  path, problems = page.write([run])
  assert [problem for problem in problems if line in problem], problems
  assert all('\n' not in problem for problem in problems)
  text = path.read_text()
  Reader(text)
  assert all(problem in plain(text) for problem in problems)


def test_videos_that_are_gone_are_counted(folder, tmp_path):
  root = tmp_path / 'runs'
  shutil.copytree(folder.parent, root / 'a')
  run = root / 'a' / 'tiny'
  for path in run.glob('*/summary.json'):
    summary = json.loads(path.read_text())
    summary['lineage']['data.root'] = str(root / 'a' / 'data')
    path.write_text(json.dumps(summary))
  (root / 'a' / 'data' / 'videos' / 'a.mp4').unlink()
  _, problems = page.write([run])
  assert len(problems) == 1 and problems[0].startswith('1 videos without pictures')


def test_a_run_of_before_is_read(folder, tmp_path):
  """Without environment, benchmarks, curriculum, margins, or frames of responses."""
  run = tmp_path / 'tiny'
  shutil.copytree(folder, run)
  for path in run.glob('*/summary.json'):
    summary = json.loads(path.read_text())
    for name in ('environment', 'benchmarks', 'curriculum', 'questions', 'held_out'):
      summary.pop(name, None)
    path.write_text(json.dumps(summary))
  shutil.rmtree(run / 'eval' / 'msvd_qa')
  (run / 'reward' / 'margins.json').unlink()
  path, problems = page.write([run])
  assert problems == []
  assert 'the summary is that of another version' in plain(path.read_text())


def test_no_run_is_an_error(tmp_path, folder):
  with pytest.raises(ReportError, match='no such folder'):
    page.write([tmp_path / 'absent'])
  with pytest.raises(ReportError, match='has none of sft, label'):
    page.write([tmp_path])
  with pytest.raises(ReportError, match=f'did you mean {folder}'):
    page.write([folder / 'ppo'])
  with pytest.raises(ReportError, match=r'cannot be written \(Is a directory\)'):
    page.write([folder], tmp_path)


def without_intervals(value):
  """The same content with every interval of a mean or of a change not known."""
  if isinstance(value, list):
    return [without_intervals(one) for one in value]
  if not isinstance(value, dict):
    return value
  return {
    key: None if key in ('interval', 'qa_change_interval') else without_intervals(one)
    for key, one in value.items()
  }


def test_a_run_about_one_video_has_a_page_without_intervals(tmp_path):
  folder = run_fixture.run(tmp_path / 'a' / 'tiny')
  for path in (folder / 'eval').glob('*.json'):
    path.write_text(json.dumps(without_intervals(json.loads(path.read_text()))))
  runs = run_files.find([folder])
  words = plain(page.page(runs))
  assert runs[0].problems == []
  assert '95 % interval of the change [not known]: not decided' in words


def test_pictures_of_a_part_are_of_that_part(folder, tmp_path):
  """As of a question of MVBench about some seconds; those of all were printed."""
  (run,) = run_files.find([shutil.copytree(folder, tmp_path / 'tiny')])
  root = run.data_root()
  assert root is not None and run.frames == 10
  frames = read_frames(Video(('videos/a.mp4',)), root, 10)
  shown = pictures.Pictures(10**7)

  def sources(clip, sampled):
    strip = shown.strip(root, Video(('videos/a.mp4',), clip), sampled)
    return strip and re.findall(r'src="(.*?)"', strip)

  assert sources((6, 9), 10) == [pictures.data_uri(frame) for frame in frames[6:9]]
  numbers = [1, 3, 5, 7, 9]
  assert sources((1, 10), 10) == [pictures.data_uri(frames[n]) for n in numbers]
  assert len(sources(None, None)) == pictures.FRAMES
  assert sources((6, 9), None) is None  # of how many frames is not known
  place = run.folder / 'eval' / 'msvd_qa' / 'answers_rlaif.jsonl'
  rows = [
    json.loads(line) | {'clip': [6, 9]} for line in place.read_text().splitlines()
  ]
  run_fixture.lines(place, rows)
  clips = {one.video.clip for one in answers.read(run, None) if one.key in ('k0', 'k1')}
  assert clips == {(6, 9)}


def test_long_answers_without_facts_are_not_graded(folder, tmp_path):
  """Where the world of a run is gone; by their words most would be wrong in both."""
  (run,) = run_files.find([shutil.copytree(folder, tmp_path / 'tiny')])
  graded = [one for one in answers.read(run, None) if one.benchmark == 'qa']
  assert {one.grades['rlaif'].text for one in graded} == {'exact match'}  # own data
  for summary in run.summaries.values():
    summary['lineage'] = {'world.seed': 0}
  assert run.truth() is None
  items = [one for one in answers.read(run, None) if one.benchmark == 'qa']
  assert items and {one.grades['rlaif'].correct for one in items} == {None}


def test_stages_that_were_trained_anew_are_named(folder, tmp_path):
  """The page has curves of the one and numbers of the other."""
  place = shutil.copytree(folder, tmp_path / 'tiny')

  def problems(**changes):
    for stage, change in changes.items():
      path = place / stage / 'summary.json'
      path.write_text(json.dumps(json.loads(path.read_text()) | change))
    (run,) = run_files.find([place])
    return run.problems

  weights = {'rlaif': {'base': 'b', 'adapter': 'p1'}, 'sft': {'base': 'b'}}
  ppo = {'fingerprint': 'p1', 'inputs': {'weights of reward': 'r1'}}
  assert (
    problems(reward={'fingerprint': 'r1'}, ppo=ppo, eval={'weights': weights}) == []
  )
  (line,) = problems(ppo={'fingerprint': 'p2'})
  assert 'eval: is of another ppo than' in line and '(weights p1, now p2)' in line
  lines = problems(reward={'fingerprint': 'r2'})
  assert len(lines) == 2 and 'ppo: is of another reward than' in lines[0]
  identity = place / 'ppo' / 'checkpoints' / 'identity.json'
  identity.write_text(json.dumps({'inputs.reward': 'elsewhere/reward'}))
  assert len(problems()) == 1


def test_the_curriculum_of_one_run_is_not_drawn_over_another(folder, tmp_path):
  other = shutil.copytree(folder, tmp_path / 'mixed' / 'tiny')
  (first, second) = run_files.find([folder, other])
  (both,) = map(str, curves._sft([first, second]))
  assert 'short' in both
  second.summaries['sft'] |= {'order': 'mixed', 'curriculum': [['all', 500]]}
  own, mixed = map(str, curves._sft([first, second]))
  assert 'short' in own and 'short' not in mixed and 'mark' not in mixed
