"""The commands of the README on a world of a few clips, as separate processes.

Far too small to learn anything: what is tested is that every stage runs on what the one
before left, that a killed run goes on bit by bit, and that a user's own videos work.
"""

import importlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import safetensors.numpy

from launch import jobs
from tests import xla
from vlm_rlaif_jax.core import sharding
from vlm_rlaif_jax.plan import fit
from vlm_rlaif_jax.settings import stages
from vlm_rlaif_jax.settings.build import from_config_dict
from vlm_rlaif_jax.weights import artifacts

pytestmark = pytest.mark.pipeline
ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
  '--config.world.sft=8', '--config.world.preference=3', '--config.world.rl=20',
  '--config.world.test=4', '--config.log.progress=False', '--config.log.every=1',
  '--config.data.buckets=(192, 384)',  # each length is compiled anew
]  # fmt: skip
PPO = [
  '--config.gate.override=True', '--config.ppo.iterations=3',
  '--config.ppo.rollout_batch=8', '--config.ppo.step_batch=8',
  '--config.ppo.micro_batch=4', '--config.ppo.response_tokens=16',
  '--config.ppo.eval_prompts=4', '--config.ppo.eval_every=1',
  # Three iterations make no better policy, and the judge would leave the first.
  '--config.checkpoint.every=1', '--config.ppo.select=last',
]  # fmt: skip


def command(stage, workdir, *more):
  config = f'--config=configs/{stage}.py'
  return [
    sys.executable, '-m', 'launch.train', config, f'--workdir={workdir}', *more
  ]  # fmt: skip


def environment():
  env = {**os.environ, 'XLA_FLAGS': xla.FLAGS}  # one device, as for a user
  return {**env, 'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'ignore'}


def train(stage, workdir, *more, fails=False):
  done = subprocess.run(
    command(stage, workdir, *more),
    cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900,
  )  # fmt: skip
  assert (done.returncode != 0) == fails, done.stdout[-3000:] + done.stderr[-3000:]
  return done


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A whole run: `configs/ppo.py` with nothing made before."""
  folder = tmp_path_factory.mktemp('pipeline')
  said = train('ppo', folder, *SMALL, *PPO).stdout
  (folder / 'said.txt').write_text(said)
  return folder


def summary(workdir, stage):
  return json.loads((workdir / 'tiny' / stage / 'summary.json').read_text())


def rows(workdir, stage):
  text = (workdir / 'tiny' / stage / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def weights(workdir, stage):
  folder = workdir / 'tiny' / stage / 'artifact'
  return {
    f'{file.stem}/{name}': value
    for file in sorted(folder.glob('*.safetensors'))
    for name, value in safetensors.numpy.load_file(file).items()
  }


def test_every_stage_says_what_it_made(workdir):
  said = (workdir / 'said.txt').read_text()
  for number, stage in enumerate(
    ('sft', 'label', 'reward', 'init', 'ppo', 'eval'), start=1
  ):
    assert f'[{number}/6] {stage}:' in said
    assert summary(workdir, stage)['stage'] == stage
    assert summary(workdir, stage)['lineage'] == summary(workdir, 'sft')['lineage']
    assert str(workdir / 'tiny' / stage) in said


def test_the_pipeline_ends_in_a_page(workdir):
  path = workdir / 'tiny' / 'report.html'
  assert f'Report: {path}' in (workdir / 'said.txt').read_text()
  assert path.stat().st_size < 10_000_000
  assert '  report: ' not in (workdir / 'said.txt').read_text()  # nothing is missing


def test_labels_say_which_answers_were_cut(workdir):
  counts = summary(workdir, 'label')['cut_answers']
  pairs = json.loads((workdir / 'tiny' / 'label' / 'pairs.json').read_text())
  ends = [
    [pair[name]['stopped'] for name in ('output_1', 'output_2')] for pair in pairs
  ]
  assert counts['pairs'] == sum(not all(end) for end in ends)
  assert len(counts['ids']) == counts['questions']
  assert counts['pairs'] <= 6 * counts['questions']  # of four answers


def test_evaluation_has_both_models(workdir):
  found = summary(workdir, 'eval')
  assert found['meters']['rlaif']['tokens_per_second'] > 0
  label = summary(workdir, 'label')
  assert label['meter']['tokens_per_second'] > 0
  cost = label['each_question']
  assert cost['questions'] == label['questions']
  assert set(cost) == {
    'questions', 'answers', 'narratives', 'judgments', 'comparison', 'total'
  }  # fmt: skip
  assert all(part['tokens'] > 0 for name, part in cost.items() if name != 'questions')
  for model in ('sft', 'rlaif'):
    assert {'qa_accuracy', 'hallucination_rate', 'fact_recall', 'n'} <= set(
      found[model]
    )
    assert 0 <= found[model]['qa_accuracy'] <= 1
    assert found[model]['n'] > 0


def test_ppo_compiles_nothing_after_its_first_iteration(workdir):
  counts = [
    row['compilations'] for row in rows(workdir, 'ppo') if 'compilations' in row
  ]
  assert len(counts) == 3
  assert counts[0] == counts[-1]


@pytest.mark.parametrize('stage', ['sft', 'reward', 'init'])
def test_training_compiles_nothing_after_its_first_step(workdir, stage):
  """What the batches need was compiled before it."""
  counts = [r['compilations'] for r in rows(workdir, stage) if 'compilations' in r]
  assert len(counts) > 1 and counts[0] == counts[-1]


@pytest.mark.parametrize('stage', ['sft', 'reward', 'init', 'ppo'])
def test_what_lay_on_the_device_is_what_was_planned(workdir, stage):
  table = (workdir / 'tiny' / stage / 'layout.txt').read_text().splitlines()
  lay = sum(int(line.split()[-1].replace(',', '')) for line in table[1:])
  config = importlib.import_module(f'configs.{stage}').get_config('tiny')
  settings = from_config_dict(stages.every()[stage].settings, config)
  mesh = sharding.make_mesh(settings.mesh, jax.devices()[:1])
  planned = fit.resident(settings, mesh, jobs.loras(settings))
  assert planned == pytest.approx(lay, rel=1e-4)


def test_ppo_moves_only_its_own_adapters(workdir):
  before, after = weights(workdir, 'init'), weights(workdir, 'ppo')
  shared = [name for name in before if name.startswith('lora/')]
  assert shared and any(np.any(before[n] != after[n]) for n in shared)
  gaps = [r['sampler/logprob_gap'] for r in rows(workdir, 'ppo') if 'loss/policy' in r]
  assert max(gaps) < 1e-3


def test_a_killed_run_goes_on_to_the_same_bits(workdir, tmp_path):
  """kill -9 as soon as the first checkpoint is there, likely during the next save.

  The evaluation of the whole run lies there, too: it keeps answers of the same weights.
  """
  for path in (workdir / 'tiny').iterdir():
    if path.name != 'ppo':
      (tmp_path / 'tiny').mkdir(exist_ok=True)
      copy = shutil.copytree if path.is_dir() else shutil.copy
      copy(path, tmp_path / 'tiny' / path.name)
  run = subprocess.Popen(
    command('ppo', tmp_path, *SMALL, *PPO),
    cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
  )  # fmt: skip
  saved = tmp_path / 'tiny' / 'ppo' / 'checkpoints' / '1'
  deadline = time.monotonic() + 600
  while not saved.exists() and time.monotonic() < deadline and run.poll() is None:
    time.sleep(0.01)
  run.send_signal(signal.SIGKILL)
  run.wait()
  assert saved.exists()
  assert not (tmp_path / 'tiny' / 'ppo' / 'summary.json').exists()
  train('ppo', tmp_path, *SMALL, *PPO)
  expected, found = weights(workdir, 'ppo'), weights(tmp_path, 'ppo')
  assert expected.keys() == found.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(value, found[name], err_msg=name)
  assert not [*(tmp_path / 'tiny' / 'eval').glob('former_*')]
  steps = [row['step'] for row in rows(tmp_path, 'ppo') if 'loss/policy' in row]
  assert steps == [1, 2, 3]
  samples = (tmp_path / 'tiny' / 'ppo' / 'samples.jsonl').read_text().splitlines()
  assert [json.loads(row)['iteration'] for row in samples] == 8 * [1] + 8 * [2] + 8 * [
    3
  ]


def test_changed_settings_do_not_resume(workdir):
  refused = train('ppo', workdir, *SMALL, *PPO, '--config.ppo.kl_coef=0.3', fails=True)
  assert 'ppo.kl_coef: 0.2' in refused.stderr.replace("'", '')
  assert 'on_change=restart' in refused.stderr
  assert 'Traceback' not in refused.stderr


def test_another_reward_model_does_not_report_the_old_result(workdir, tmp_path):
  """Its head negated and saved: refused, and learned from after a restart."""
  shutil.copytree(workdir / 'tiny', tmp_path / 'tiny')
  place = tmp_path / 'tiny' / 'reward'
  reward = artifacts.load(place, 'reward')
  parts = {**reward.parts, 'head': {k: -v for k, v in reward.parts['head'].items()}}
  artifacts.save(place / 'artifact', artifacts.Artifact(parts, reward.info))
  refused = train('ppo', tmp_path, *SMALL, *PPO, fails=True)
  assert 'was made with other settings: weights of reward: ' in refused.stderr
  again = ('--config.checkpoint.on_change=restart', '--config.ppo.iterations=1')
  done = train('ppo', tmp_path, *SMALL, *PPO, *again)
  assert 'ppo/checkpoints (step 3) is dropped' in done.stdout
  before, after = summary(workdir, 'ppo'), summary(tmp_path, 'ppo')
  assert after['reward_before'] == pytest.approx(-before['reward_before'], abs=1e-3)
  assert after['inputs'] != before['inputs']


def test_artifacts_of_another_seed_are_not_reused(workdir):
  refused = train('label', workdir, *SMALL, '--config.seed=43', fails=True)
  assert refused.stderr.startswith(f'error: {workdir}/tiny/sft: made with other')
  assert 'seed: 42 -> 43. Give another --workdir' in refused.stderr


def test_the_gate_refuses(workdir):
  asked = ('--config.gate.judge_agreement=1', '--config.gate.reward_accuracy=1')
  refused = train('ppo', workdir, *SMALL, *asked, fails=True)
  assert 'asks for 100.0%; PPO would learn noise' in refused.stderr
  assert 'config.gate.override=True' in refused.stderr


def test_another_reward_prompt_than_the_reward_models_is_refused(workdir):
  """Register B02."""
  other = '--config.scoring.placeholder=literal'
  refused = train('ppo', workdir, *SMALL, *PPO, other, fails=True)
  assert 'config.scoring: the reward model was trained with' in refused.stderr


# ---------------------------------------------------------------- one's own videos


@pytest.fixture
def own(tmp_path):
  """Three clips made by another tool (PyAV's MPEG-4 encoder), and a JSON of them."""
  import av

  videos = tmp_path / 'data'
  videos.mkdir()
  rng = np.random.default_rng(0)
  records = []
  for index, length in enumerate((17, 40, 64)):
    with av.open(str(videos / f'{index}.mp4'), 'w') as out:
      stream = out.add_stream('mpeg4', rate=25)
      stream.width, stream.height, stream.pix_fmt = 160, 96, 'yuv420p'
      shade = rng.integers(0, 255, 3)
      for number in range(length):
        picture = np.empty((96, 160, 3), np.uint8)
        picture[:] = (shade + number) % 255
        for packet in stream.encode(av.VideoFrame.from_ndarray(picture)):
          out.mux(packet)
      for packet in stream.encode():
        out.mux(packet)
    messages = [
      {'from': 'human', 'value': '<video>\nWhat happens in the video?'},
      {'from': 'gpt', 'value': 'The red circle moves left.'},
    ]
    record = {'id': f'own{index}', 'video': f'{index}.mp4', 'conversations': messages}
    records.append(record)
  (videos / 'my.json').write_text(json.dumps(records))
  return videos


def test_own_videos_train_the_same_way(own, tmp_path):
  said = train(
    'sft', tmp_path / 'runs', f'--config.data.root={own}',
    '--config.data.train=my.json', '--config.optim.batch_size=2',
    '--config.log.progress=False',
  ).stdout  # fmt: skip
  assert 'sft:' in said
  assert sum(summary(tmp_path / 'runs', 'sft')['samples'].values()) > 0


def test_the_example_of_the_readme_trains(own, tmp_path):
  """It is one video, which its name alone would hold out."""
  rows = re.search(r'```json\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)[1]
  (own / 'readme.json').write_text(rows)
  video = own / json.loads(rows)[0]['video']
  video.parent.mkdir()
  shutil.copy(own / '0.mp4', video)
  done = train(
    'sft', tmp_path / 'runs', f'--config.data.root={own}',
    '--config.data.train=readme.json', '--config.log.progress=False',
  )  # fmt: skip
  assert 'readme.json: 1 rows; none held out: data.holdout=0.1' in done.stdout
  made = summary(tmp_path / 'runs', 'sft')
  assert sum(made['samples'].values()) == 1
  assert made['rows'] == {'readme.json': {'rows': 1, 'held_out': 0, 'bad': 0}}


def test_a_broken_video_is_named_or_skipped(own, tmp_path):
  data = (own / '1.mp4').read_bytes()
  (own / '1.mp4').write_bytes(data[: len(data) // 3])
  options = (
    f'--config.data.root={own}', '--config.data.train=my.json',
    '--config.optim.batch_size=2', '--config.log.progress=False',
  )  # fmt: skip
  refused = train('sft', tmp_path / 'runs', *options, fails=True)
  assert 'my.json row 1' in refused.stderr and '1.mp4' in refused.stderr
  assert 'Traceback' not in refused.stderr
  skip = '--config.data.on_bad_sample=skip'
  train(
    'sft', tmp_path / 'runs', *options, skip, '--config.checkpoint.on_change=ignore'
  )
  assert len(summary(tmp_path / 'runs', 'sft')['skipped']) == 1
