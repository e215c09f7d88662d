"""The counterparts of public benchmarks: read by the readers of the public files."""

import json

import numpy as np
import pytest

from tests.evals import text_vectors
from vlm_rlaif_jax.data.world import benchmarks, clips
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.evals import judging
from vlm_rlaif_jax.evals.benchmarks import registry, sources
from vlm_rlaif_jax.evals.benchmarks.benchmark import Outputs
from vlm_rlaif_jax.evals.judges.world import WorldJudge
from vlm_rlaif_jax.settings.sections import WorldConfig

pytestmark = pytest.mark.slow
WORLD = WorldConfig(sft=1, preference=1, rl=1, test=70)
NAMES = (
  *('msvd_qa', 'msrvtt_qa', 'activitynet_qa', 'generic', 'temporal', 'consistency'),
  *('msvd_retrieval', 'msrvtt_retrieval', 'ucf101', 'hmdb51', 'mvbench', 'next_qa'),
)


@pytest.fixture(scope='module')
def scenes():
  return [clips.scene_of(WORLD, 'test', number) for number in range(WORLD.test)]


@pytest.fixture(scope='module')
def world(scenes, tmp_path_factory):
  """The folder of the files and what is true of their records."""
  folder = tmp_path_factory.mktemp('world')
  texts, truth = benchmarks.files(scenes, WORLD.seed)
  for path, text in texts.items():
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text)
  return folder, truth


def read(world, name):
  folder, _ = world
  benchmark = registry.named(name)
  locate = sources.Locator(folder, 'videos/test/{stem}.mp4', name, benchmark.dataset)
  files = sources.find(benchmark, folder / 'eval')
  return benchmark, benchmark.read(files, locate, text_vectors.tools().settings)


def means(benchmark, items, answers, options=()):
  outputs = Outputs(predictions=answers, options=options)
  values = benchmark.score(items, outputs, text_vectors.tools())
  return {name: float(np.mean(part)) for name, part in values.items()}


@pytest.mark.parametrize('name', NAMES)
def test_every_file_is_read_and_names_test_clips(world, name):
  _, items = read(world, name)
  paths = {f'videos/test/{number:05d}.mp4' for number in range(WORLD.test)}
  assert 10 <= len(items) <= benchmarks.ITEMS
  assert {item.video.paths[0] for item in items} <= paths
  assert len({item.key for item in items}) == len(items)


@pytest.mark.parametrize('name', NAMES[:6])
def test_what_is_true_of_a_question_is_known_by_its_key(world, scenes, name):
  """The reference states all facts that it is asked for, and no other."""
  _, truth = world
  facts = Truth(json.loads(json.dumps(truth)))
  _, items = read(world, name)
  for item in items:
    assert item.key in facts
    number = int(item.video.paths[0][-9:-4])
    expected = [list(fact) for fact in scenes[number].facts()]
    assert facts.records[item.key]['facts'] == expected
    if facts.is_long(item.key):
      score = facts.score(item.key, item.reference)
      assert score.invented == 0 and score.recalled == score.required > 0


def test_no_key_is_shared(world):
  _, truth = world
  names = NAMES[:6]
  assert len(truth) == sum(len(read(world, name)[1]) for name in names)


@pytest.mark.parametrize('name', NAMES[:3])
def test_answers_that_are_references_are_right_and_others_are_chance(world, name, rng):
  benchmark, items = read(world, name)
  answers = [item.reference for item in items]
  assert means(benchmark, items, [(a,) for a in answers])['exact_match'] == 1
  shuffled = [answers[i] for i in rng.permutation(len(items))]
  # What guessing by the frequencies of the answers gives.
  shares = [answers.count(a) / len(answers) for a in answers]
  found = means(benchmark, items, [(a,) for a in shuffled])['exact_match']
  assert abs(found - np.mean(shares)) < 4 * np.sqrt(np.mean(shares) / len(items))


def test_a_question_of_consistency_has_two_wordings(world):
  _, items = read(world, 'consistency')
  assert {item.prompts for item in items} == {benchmarks.WORDINGS}


@pytest.mark.parametrize('name', ['msvd_retrieval', 'msrvtt_retrieval'])
def test_references_are_found_and_those_of_others_are_not(world, name):
  benchmark, items = read(world, name)
  answers = [(item.reference,) for item in items]
  own = means(benchmark, items, answers)
  assert own['v2t_r1'] == 1
  if name == 'msrvtt_retrieval':  # one caption a clip
    assert own['t2v_r1'] == 1
  else:
    assert own['hard_r1'] == 1
  other = means(benchmark, items, answers[1:] + answers[:1])
  assert other['t2v_r1'] < 0.1 and other['v2t_r1'] < 0.1


@pytest.mark.parametrize('name', ['ucf101', 'hmdb51'])
def test_names_of_classes_are_recognized_and_shuffled_ones_are_chance(world, name, rng):
  benchmark, items = read(world, name)
  answers = [(item.reference,) for item in items]
  found = means(benchmark, items, answers)
  assert (found['top1'], found['macro']) == pytest.approx((1, 1))
  shuffled = [answers[i] for i in rng.permutation(len(items))]
  assert means(benchmark, items, shuffled)['top1'] < 0.5
  assert len(items[0].fields['classes']) >= 5


@pytest.mark.parametrize('name', ['mvbench', 'next_qa'])
def test_right_options_are_right_and_first_ones_are_chance(world, name):
  benchmark, items = read(world, name)
  letters = [(item.reference,) for item in items]
  assert means(benchmark, items, letters)['generated_accuracy'] == 1
  found = means(benchmark, items, [('A',)] * len(items))
  bound = 4 * np.sqrt(found['chance'] / len(items))
  assert abs(found['generated_accuracy'] - found['chance']) < bound
  for item in items:
    assert len(set(item.fields['options'])) == len(item.fields['options'])


def test_everything_is_a_function_of_the_seed(scenes):
  assert benchmarks.files(scenes, 0) == benchmarks.files(scenes, 0)
  assert benchmarks.files(scenes, 0)[0] != benchmarks.files(scenes, 1)[0]


@pytest.mark.parametrize('count', [1, 2, 6])
def test_a_world_of_few_clips_has_all_files(count, tmp_path):
  scenes = [clips.scene_of(WORLD, 'test', number) for number in range(count)]
  texts, truth = benchmarks.files(scenes, 0)
  for path, text in texts.items():
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
  keys = []
  for name in NAMES:
    _, items = read((tmp_path, truth), name)
    assert items, name
    keys += [item.key for item in items] if name in NAMES[:6] else []
  assert sorted(keys) == sorted(truth)


@pytest.mark.parametrize('name', NAMES[:6])
def test_the_judge_of_the_world_gives_references_full_marks(world, name, rng):
  benchmark, items = read(world, name)
  judge = WorldJudge(json.loads(json.dumps(world[1])))

  def verdicts(references):
    rows = [
      {'answers': [text] * len(i.prompts), 'ended': [True] * len(i.prompts)}
      for text, i in zip(references, items, strict=True)
    ]
    settings = text_vectors.tools().settings
    return judge.verdicts(judging.cases_of(benchmark, items, rows, settings))

  references = [item.reference for item in items]
  own = verdicts(references)
  assert {one.score for one in own} == {5.0}
  assert {one.correct for one in own} <= {True, None}
  other = verdicts([references[i] for i in rng.permutation(len(items))])
  assert np.mean([one.score for one in other]) < 3.5
