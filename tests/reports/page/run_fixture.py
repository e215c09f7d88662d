"""A run folder with every file that a page reads, written by hand."""

import json
import pathlib

import av
import numpy as np

from vlm_rlaif_jax.evals.judges.wins import EQUAL, ORDERS

STAGES = ('sft', 'label', 'reward', 'init', 'ppo', 'eval')
ATTACK = '<script>alert("&1")</script>'
FACTS = [['red circle', 0, 'moves left'], ['red circle', 1, 'stays']]
RIGHT = 'First the red circle moves left, then it stays.'
WRONG = 'First the red circle moves right, then it stays.'


def lines(path: pathlib.Path, rows: list[dict]) -> None:
  """Writes JSON lines."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def dump(path: pathlib.Path, value) -> None:
  """Writes a JSON file."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def video(path: pathlib.Path, size: int = 32) -> None:
  """Writes a film of ten frames."""
  path.parent.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(0)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('libx264', rate=10)
    stream.width = stream.height = size
    stream.pix_fmt = 'yuv420p'
    for _ in range(10):
      frame = rng.integers(0, 255, (size, size, 3), np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format='rgb24')))
    container.mux(stream.encode())


def run(folder: pathlib.Path, seed: int = 42, *, answer: str = RIGHT) -> pathlib.Path:
  """Writes a run; returns its folder.

  Args:
    answer: what RLAIF answers.
  """
  data = folder.parent / 'data'
  video(data / 'videos' / 'a.mp4')
  keys = [f'q{i}' for i in range(4)]
  record = {'facts': FACTS, 'span': [['red circle', 0], ['red circle', 1]], 'phase': -1}
  dump(data / 'truth.json', dict.fromkeys([*keys, 'p0', 'p1', 'r0'], record))
  lineage = {'seed': seed, 'data.root': str(data), 'data.frames': 10}
  for stage in STAGES:
    environment = {'date': '2026-01-02 03:04 UTC', 'devices': '8 x TPU v5e'}
    environment['versions'] = {'jax': '0.11.0'}
    summary = {'stage': stage, 'lineage': lineage, 'environment': environment}
    dump(folder / stage / 'summary.json', {**summary, **SUMMARIES[stage]})
    if stage in ('sft', 'reward', 'init', 'ppo'):
      identity = {'seed': seed, 'optim.learning_rate': 1e-4, 'weights': f'w{seed}'}
      dump(folder / stage / 'checkpoints' / 'identity.json', identity)
  lines(folder / 'sft' / 'metrics.jsonl', _rows('loss', 50))
  lines(folder / 'init' / 'metrics.jsonl', _rows('loss', 3))
  accuracy = [
    {'step': 5 * i, 'eval_accuracy': 0.6, 'eval_accuracy_without_video': 0.5}
    for i in range(1, 4)
  ]
  lines(folder / 'reward' / 'metrics.jsonl', [*_rows('loss', 3), *accuracy])
  margins = {'own': [1.0, -0.5], 'blank': [0.1, 0.1], 'second_preferred': [True, True]}
  dump(folder / 'reward' / 'margins.json', margins)
  lines(folder / 'ppo' / 'metrics.jsonl', [PPO_ROW | {'step': i} for i in range(5)])
  sample = {'iteration': 3, 'id': 'r0', 'question': 'What?', 'answer': WRONG}
  sample |= {'reward': 2.5, 'paths': ['videos/a.mp4']}
  lines(folder / 'ppo' / 'samples.jsonl', [sample])
  lines(folder / 'label' / 'audit.jsonl', [{'identity': {'seed': seed}}, *AUDIT])
  _answers(folder / 'eval', keys, answer)
  return folder


def _rows(name: str, count: int) -> list[dict]:
  """Returns rows of a metric that falls."""
  return [{'step': 10 * i, name: 1 / i} for i in range(1, count + 1)]


def _answers(folder: pathlib.Path, keys: list[str], answer: str) -> None:
  """Writes answers in the form of today and of before, and verdicts of two judges."""
  for name, text in (('sft', WRONG), ('rlaif', answer), ('base', ATTACK)):
    rows = [
      {
        'video_name': 'videos/a.mp4', 'question_id': key, 'question': 'What happens?',
        'answer': RIGHT, 'kind': 'course', 'prediction': text,
      }
      for key in keys
    ]  # fmt: skip
    lines(folder / f'qa_{name}.jsonl', rows)
    rows = [
      {
        'key': f'k{i}', 'video_name': 'a', 'paths': ['videos/a.mp4'],
        'prompts': [f'{ATTACK} what?'], 'reference': 'umbrella', 'answers': [word],
        'fields': {},
      }
      for i, word in enumerate(('umbrella', 'hat'))
    ]  # fmt: skip
    lines(folder / 'msvd_qa' / f'answers_{name}.jsonl', rows)
    for judge, scores in (('exact', (5, 0)), ('other', (5, 4))):
      verdicts = [
        {'key': f'k{i}', 'criterion': 'answer', 'score': s, 'correct': s > 2}
        for i, s in enumerate(scores)
      ]
      lines(folder / 'msvd_qa' / f'verdicts_{name}_{judge}.jsonl', verdicts)
  # Of two items RLAIF wins one in both orders; of the other, the first place does.
  wins = [
    {'key': key, 'order': order, 'score': score, 'raw': '', 'error': ''}
    for key, scores in (('k0', (0, 5)), ('k1', (5, 5)))
    for order, score in zip(ORDERS, scores, strict=True)
  ]
  tie = {'key': 'k2', 'score': 2.5, 'raw': EQUAL, 'error': ''}
  wins += [{**tie, 'order': order} for order in ORDERS]
  lines(folder / 'msvd_qa' / 'wins_sft_other.jsonl', wins)
  other = {'name': 'other', 'kind': 'endpoint', 'base_url': 'h:80/v1'}
  lines(folder / 'judges.jsonl', [{'file': 'other', **other}])
  dump(folder / 'agreement_exact_other.json', AGREEMENT)
  dump(folder / 'audit_other.json', AUDIT_OF_JUDGE)


PPO_ROW = {
  'objective/reward': 0.5, 'objective/kl': 0.1, 'objective/tokens': 12.0,
  'objective/entropy': 0.3, 'loss/value': 0.2, 'explained_variance': 0.4,
  'held_out/reward': 0.6, 'held_out/true_quality': -0.1,
}  # fmt: skip

AGREEMENT = {
  'judges': ['exact', 'other'],
  'benchmarks': {
    'msvd_qa': {
      'criteria': {
        'answer': {
          'cases': 4, 'n': 4, 'unscored': [0, 0], 'kappa': 0.4321, 'equal': 0.75,
          'weighted_kappa': 0.55, 'spearman': 0.66, 'means': [2.5, 4.5],
        },
      },
      'conclusions': {
        'sft': {
          'accuracy': {
            'n': 2, 'difference': -0.1, 'interval': [-0.2, 0.05], 'same': False,
            'changes': [
              {'change': 0.25, 'interval': [0.1, 0.4], 'direction': 'up'},
              {'change': 0.15, 'interval': [-0.1, 0.3], 'direction': 'undecided'},
            ],
          },
        },
      },
    },
  },
}  # fmt: skip

AUDIT_OF_JUDGE = {
  'judge': {'name': 'other', 'version': 'v-2'}, 'repeated': {'calls': 0},
  'criteria': {
    'answer': {
      'reference': {'score': 4.97, 'right': 1.0, 'n': 7, 'unscored': 0},
      'shuffled': {'score': 0.25, 'right': 0.0, 'n': 6, 'unscored': 1},
      'self_agreement': {'cases': 9, 'n': 9, 'unscored': [0, 0], 'equal': 0.96,
                         'kappa': 0.91},
    },
  },
}  # fmt: skip

AUDIT = [
  {
    'id': f'p{i}', 'question': ATTACK, 'answers': [RIGHT, WRONG], 'margin': margin,
    'forward': margin + 0.5, 'swapped': 0.5 - margin, 'orders_agree': True,
    'truth': [1.0, 0.0], 'narrative': f'Clip 1: {ATTACK}\nThe red circle stays.',
    'record': {'id': f'p{i}', 'video': 'videos/a.mp4', 'conversations': []},
  }
  for i, margin in enumerate((1.5, -2.0))
]  # fmt: skip


def _metric(value: float) -> dict:
  return {'value': value, 'interval': [value - 0.1, value + 0.1], 'n': 2, 'unscored': 1}


def _model(accuracy: float) -> dict:
  return {'n': 4, 'qa_accuracy': accuracy, 'qa_interval': [accuracy, accuracy + 0.1]}


SUMMARIES = {
  'sft': {
    'samples': {'short': 10, 'long': 10}, 'steps': 500, 'trainable': 7,
    'order': 'short_long', 'curriculum': [['short', 200], ['long', 300]],
    'fingerprint': 'abc',
  },
  'label': {
    'questions': 2, 'pairs': 2, 'agreement': 0.5, 'agreement_kept': 0.5,
    'order_agreement': 1.0,
  },
  'reward': {
    'pairs': 2, 'steps': 3, 'held_out': 2, 'accuracy': 0.75,
    'accuracy_interval': [0.5, 0.9], 'accuracy_without_video': 0.5,
    'accuracy_other_video': 0.5, 'accuracy_shorter': 0.4,
    'calibration': {'ece': 0.1, 'curve': [[0.6, 0.5, 1], [0.9, 1.0, 1]]},
    'truth': {'n': 2, 'labels': 0.9, 'own': 0.8, 'blank': 0.5, 'other': 0.5,
              'shorter': 0.4},
  },
  'init': {'samples': 2, 'steps': 3},
  'ppo': {'iterations': 4, 'final_iteration': 4, 'held_out': 2, 'reward_before': 0.1,
          'reward_after': 0.5},
  'eval': {
    'questions': {'qa': 4, 'describe': 0}, 'videos': 1, 'split': 'test',
    'sft': _model(0.25), 'rlaif': _model(0.75),
    'qa_change': 0.5, 'qa_change_interval': [0.2, 0.7],
    'changes': {'sft': {'all': {'n': 4, 'change': 0.5, 'interval': [0.2, 0.7]}}},
    'benchmarks': {
      'msvd_qa': {
        'family': 'qa', 'items': 2, 'of': 3, 'missing': ['b'], 'videos': 1,
        'judge': {'name': 'exact', 'version': '1', 'date': '2026-01-02'},
        'models': {
          'sft': {'accuracy': _metric(0.123), 'score': _metric(1.25)},
          'rlaif': {'accuracy': _metric(0.789), 'score': _metric(3.21)},
        },
        'changes': {'sft': {'accuracy': {'change': 0.666, 'interval': [0.5, 0.8],
                                         'n': 2}}},
        'settings': {}, 'headline': ['accuracy'], 'scores': ['score'],
      },
    },
  },
}  # fmt: skip
