"""The cells of the study: what is changed against the default run, and what it shows.

python -m launch.study                                  # every cell, three seeds
python -m launch.study --cells=default,inverted --seeds=42

A cell has flags by stage (`all` goes to every stage), the stages that it shares with
the default run of the same seed, the size of its critic where that is another, and what
is expected of the long answers: `up`, `down` or `same` from SFT to RLAIF, or that they
gain less than in another cell (`worse_than`), or more (`better_than`); or, by `final`,
that RLAIF answers fewer, or more, of all questions than in another cell.
"""

from typing import Any

SHARED_TO_REWARD = ('sft', 'label', 'init')
SHARED_TO_PPO = (*SHARED_TO_REWARD, 'reward')
# What a reward does is to be seen: no gate refuses it, and no judge chooses the policy
# from before it did.
UNGUARDED = {'gate.override': True, 'ppo.select': 'last'}
# Cells other than the default answer the questions and describe the clips only.
BRIEF = {'eval.benchmarks': ('qa', 'describe'), 'eval.models': ('sft', 'init', 'rlaif')}


def get_config(arg: str = '') -> dict[str, Any]:
  if arg:
    raise ValueError(f'study has one size, got {arg!r}')
  default = {'expect': 'up', 'claim': 'RLAIF repairs long answers'}
  others = {**controls(), **ablations(), **amounts()}
  brief = {name: {'eval': BRIEF, **cell} for name, cell in others.items()}
  return {'seeds': (42, 43, 44), 'cells': {'default': default, **brief}}


def controls() -> dict[str, dict[str, Any]]:
  """Returns the cells in which something is missing that the method needs."""
  return {
    'honest': {
      'all': {'world.flip_rate': 0.0, 'world.phantom_rate': 0.0},
      'ppo': {'gate.override': True},
      'expect': 'same',
      'claim': 'without a planted fault there is nothing to gain',
    },
    'inverted': {
      'reward': {'reward.labels': 'inverted'},
      'ppo': UNGUARDED,
      'shared': SHARED_TO_REWARD,
      'expect': 'down',
      'claim': 'inverted labels hurt',
    },
    'truth': {
      'reward': {'reward.labels': 'truth'},
      'shared': SHARED_TO_REWARD,
      'expect': 'up',
      'claim': 'the truth as judge: the ceiling of these pairs',
    },
    'blind': {
      'reward': {'reward.blind': True},
      'ppo': {**UNGUARDED, 'ppo.blind_reward': True},
      'shared': SHARED_TO_REWARD,
      'worse_than': 'default',
      'claim': 'a reward model that sees beats one that does not',
    },
    'shorter': {
      'reward': {'reward.labels': 'shorter'},
      'ppo': UNGUARDED,
      'shared': SHARED_TO_REWARD,
      'worse_than': 'default',
      'claim': 'judged answers beat short answers',
    },
    'random_head': {
      'reward': {'reward.head_start': 'random'},
      'ppo': UNGUARDED,
      'shared': SHARED_TO_REWARD,
      'worse_than': 'default',
      'claim': 'a head that starts as the judge beats one that starts at random',
    },
  }


def ablations() -> dict[str, dict[str, Any]]:
  """Returns the cells of the paper's ablations."""
  return {
    'no_context': {
      'label': {'label.context': 'none'},
      'shared': ('sft', 'init'),
      'worse_than': 'default',
      'claim': 'labels with the narrative beat labels without',
    },
    'narrative': {
      'reward': {'scoring.placeholder': 'captions'},
      'ppo': {'scoring.placeholder': 'captions', 'gate.override': True},
      'shared': SHARED_TO_REWARD,
      'expect': 'up',
      'claim': 'a reward model that reads the narrative of the video repairs them, too',
    },
    'direct': {
      'ppo': {'ppo.reward': 'judge', **UNGUARDED},
      'shared': SHARED_TO_PPO,
      'expect': 'up',
      'claim': 'the judge itself as the reward (direct RLAIF) repairs them, too',
    },
    'stays': {
      'all': {'world.flip_rate': 0.0, 'world.motion_bias': 0.6},
      'expect': 'up',
      'claim': 'the other fault ("stays" as motion) is repaired, too',
    },
    'direct_sum': {
      'ppo': {'ppo.reward': 'judge', 'judge.claims_score': 'sum', **UNGUARDED},
      'shared': SHARED_TO_PPO,
      'worse_than': 'direct',
      'claim': 'one mean an answer beats a sum over its claims as the direct reward',
    },
    'other_answers': {
      'reward': {'reward.other_answers': 0.5},
      'shared': SHARED_TO_REWARD,
      'expect': 'up',
      'claim': 'half as many pairs again with the answer of another video help, too',
    },
    'equal_lengths': {
      'reward': {'reward.equal_lengths': 0.5},
      'shared': SHARED_TO_REWARD,
      'expect': 'up',
      'claim': 'pairs of which half are equally long repair them, too',
    },
    'options': {
      # The margin is of scores of claims; the choice between two has another scale.
      'label': {'label.judge': 'options', 'label.min_margin': 0.0},
      'ppo': {'gate.override': True},
      'shared': ('sft', 'init'),
      'worse_than': 'default',
      'claim': 'a judge of claims beats one that compares two answers',
    },
    'larger_critic': {
      'critic': 'small',
      'shared': SHARED_TO_REWARD,
      'better_than': 'default',
      'claim': 'a reward model larger than the policy beats one of its size',
    },
    'short_long': {
      'sft': {'sft.order': 'short_long'},
      'by': 'final',
      'worse_than': 'default',
      'claim': 'mixed SFT beats short answers first (the paper says the opposite)',
    },
    'short_only': {
      'sft': {'sft.stages': ('short',)},
      'ppo': {'gate.override': True},
      'by': 'final',
      'worse_than': 'default',
      'claim': 'SFT needs long answers, too',
    },
    'long_only': {
      'sft': {'sft.stages': ('long',)},
      'by': 'final',
      'worse_than': 'default',
      'claim': 'SFT needs short answers, too',
    },
    'no_captions': {
      'all': {'world.clip_captions': False},
      'by': 'final',
      'worse_than': 'default',
      'claim': 'SFT data with captions of clips make better narratives and labels',
    },
  }


def amounts() -> dict[str, dict[str, Any]]:
  """Returns the cells that have less, or cut in other pieces."""
  pairs = {
    f'pairs_{count}': {
      'reward': {'reward.train_pairs': count},
      'ppo': {'gate.override': True},
      'shared': SHARED_TO_REWARD,
      'worse_than': 'default',
      'claim': f'all pairs beat {count}',
    }
    for count in (200, 400, 800)
  }
  clips = {
    f'clips_{count}': {
      'label': {'label.clip_frames': 12 // count, 'label.caption_tokens': tokens},
      'shared': ('sft', 'init'),
      'worse_than': 'default',
      'claim': f'a narrative of three clips beats one of {count}',
    }
    for count, tokens in ((1, 96), (6, 40))
  }
  return {**pairs, **clips}
