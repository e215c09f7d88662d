"""Which of the labeled pairs are trained on."""

import dataclasses

import numpy as np
import pytest

from tests.train.pair_samples import RIGHT, TRUTH, WRONG, sample
from vlm_rlaif_jax.data.examples import DataError
from vlm_rlaif_jax.data.pairs import PairSample
from vlm_rlaif_jax.settings.reward import RewardConfig
from vlm_rlaif_jax.train import pair_choice


@pytest.mark.parametrize(
  'labels, preferred',
  [
    ('judge', [0, 1, 0]),
    ('inverted', [1, 0, 1]),
    ('truth', [0, 1]),  # of two equal answers neither is better
    ('shorter', [1]),
  ],
)
def test_controls_prefer_other_answers(labels, preferred):
  samples = [
    sample('a', (RIGHT, WRONG), 0, 'one.mp4', lengths=(6, 4)),
    sample('a', (WRONG, RIGHT), 1, 'one.mp4'),
    sample('b', (RIGHT, RIGHT), 0, 'two.mp4'),
  ]
  changed = pair_choice.relabel(samples, labels, TRUTH)
  assert [one.pair.preferred for one in changed] == preferred
  assert [one.pair.preferred for one in samples] == [0, 1, 0]


def test_fewer_pairs_are_part_of_more_and_keep_their_order():
  samples = [sample(str(i), (RIGHT, WRONG), 0, 'one.mp4') for i in range(9)]
  few, more = (pair_choice.subset(samples, count, seed=1) for count in (3, 6))
  assert len(few) == 3 and len(more) == 6
  assert [s for s in more if s in few] == few
  assert [s for s in samples if s in more] == more
  assert pair_choice.subset(samples, 0, seed=1) == samples
  with pytest.raises(DataError, match='train_pairs=10: there are 9 training pairs'):
    pair_choice.subset(samples, 10, seed=1)


def test_labels_by_a_truth_that_is_not_there_are_refused():
  samples = [sample('a', (RIGHT, WRONG), 0, 'one.mp4')]
  with pytest.raises(DataError, match=r'reward\.labels=truth: decides none of 1'):
    pair_choice.relabel(samples, 'truth', None)


def test_a_share_of_the_pairs_has_answers_of_equal_lengths():
  answers = (RIGHT, WRONG)
  samples = [
    sample(str(i), answers, 0, 'one.mp4', lengths=(5, 5 + i % 2)) for i in range(40)
  ]
  for share, others in ((0.0, 20), (0.5, 20), (0.8, 5), (1.0, 0)):
    kept = pair_choice.equal_lengths(samples, share, seed=0)
    different = [s for s in kept if len(s.ids[0]) != len(s.ids[1])]
    assert (len(kept), len(different)) == (20 + others, others)
  with pytest.raises(DataError, match=r'equal_lengths=0.5: none of 20'):
    pair_choice.equal_lengths(samples[1::2], 0.5, seed=0)


def test_the_better_answer_about_another_video_is_the_worse_one():
  samples = [
    sample('a', (RIGHT, WRONG), 0, 'one.mp4'),
    sample('b', ('Nothing.', 'It stays.'), 1, 'two.mp4'),
    sample('c', (RIGHT, 'No.'), 0, 'three.mp4'),
  ]
  pairs = [one.pair for one in samples]
  made = pair_choice.with_other_answers(pairs, 1.0, seed=0)
  assert len(made) == 3
  better = {p.example.key: p.answers[p.preferred] for p in made}
  worse = {p.example.key: p.answers[1 - p.preferred] for p in made}
  assert better == {'a': RIGHT, 'b': 'It stays.', 'c': RIGHT}
  assert worse == {'a': 'It stays.', 'b': RIGHT, 'c': 'It stays.'}
  assert len(pair_choice.with_other_answers(pairs, 0.3, seed=0)) == 1
  assert pair_choice.with_other_answers(pairs, 0.0, seed=0) == []
  with pytest.raises(DataError, match=r'other_answers=0.5: no question of 2'):
    pair_choice.with_other_answers([pairs[0], pairs[2]], 0.5, seed=0)


def test_the_answer_of_a_row_makes_no_other_question_of_it():
  """Released rows have one; those about two videos that share it are most alike."""
  answers = {'a': 'It is red.', 'b': 'It is red.', 'c': 'It is blue.'}
  rows = [
    sample('a', ('Red.', 'No.'), 0, 'a.mp4'),
    sample('b', ('It is red.', 'No.'), 0, 'b.mp4'),
    sample('c', ('Blue.', 'No.'), 0, 'c.mp4'),
  ]
  plain = [one.pair for one in rows]
  answered = []
  for pair in plain:
    turns = (('What happens?', answers[pair.example.key]),)
    example = dataclasses.replace(pair.example, turns=turns)
    answered.append(dataclasses.replace(pair, example=example))
  for seed in range(3):
    expected = pair_choice.with_other_answers(plain, 1.0, seed)
    results = pair_choice.with_other_answers(answered, 1.0, seed)
    assert [one.answers for one in results] == [one.answers for one in expected]
  assert len(results) == 3
  former = [
    dataclasses.replace(
      pair,
      example=dataclasses.replace(
        pair.example, turns=(('And?', answers[pair.example.key]), ('So?', ''))
      ),
    )
    for pair in plain
  ]  # another conversation before it is another question
  made = pair_choice.with_other_answers(former, 1.0, 0)
  assert {one.example.key for one in made} == {'a', 'b'}


def encode(pairs):
  return [PairSample(pair, tuple(map(tokens, pair.answers)), 4, 8) for pair in pairs]


def tokens(text):
  return np.ones(len(text.split()), np.int32)


SHORT, LONG = 'It stays.', 'The red circle moves to the left.'


@pytest.mark.parametrize('labels', ['judge', 'inverted', 'truth', 'shorter'])
def test_answers_of_other_videos_are_labeled_as_the_settings_say(labels):
  """Judged, the own answer is the better one; the control holds for them, too."""
  samples = encode(
    sample(key, answers, 0, f'{key}.mp4').pair
    for key, answers in (('a', (RIGHT, SHORT)), ('b', (LONG, WRONG)))
  )
  reward = RewardConfig(labels=labels, other_answers=1.0)
  chosen = pair_choice.choose(samples, reward, 0, TRUTH, encode)
  preferred = {
    one.pair.example.key: one.pair.answers[one.pair.preferred]
    for one in chosen
    if {*one.pair.answers} == {RIGHT, LONG}
  }
  assert (
    preferred
    == {
      'judge': {'a': RIGHT, 'b': LONG},
      'inverted': {'a': LONG, 'b': RIGHT},
      'truth': {'a': RIGHT, 'b': RIGHT},  # LONG is worse of either video
      'shorter': {'a': RIGHT, 'b': RIGHT},
    }[labels]
  )


def test_lengths_are_compared_when_all_pairs_are_there():
  """Of the pairs that are added, half prefer the longer answer."""
  answers = {'a': (RIGHT, SHORT), 'b': (LONG, WRONG), 'c': (RIGHT, LONG)}
  samples = encode(
    sample(key, both, 0, f'{key}.mp4').pair for key, both in answers.items()
  )
  added = {'other_answers': 1.0}
  balanced = pair_choice.choose(
    samples, RewardConfig(balance_lengths=True, **added), 0, TRUTH, encode
  )
  counts = {True: 0, False: 0}
  for one in balanced:
    first, second = (len(ids) for ids in one.ids)
    counts[(first < second) == (one.pair.preferred == 0)] += first != second
  assert counts[True] == counts[False] > 0
  same = encode([sample('d', ('One two.', 'Two one.'), 0, 'd.mp4').pair])
  equal = pair_choice.choose(
    [*samples, *same], RewardConfig(equal_lengths=0.5, **added), 0, TRUTH, encode
  )
  assert sum(len({*map(len, one.ids)}) == 1 for one in equal) / len(equal) >= 0.5


def test_length_alone_predicts_nothing_after_balancing():
  def pairs(count, preferred, lengths):
    answers = (RIGHT, WRONG)
    return [
      sample(f'{lengths}{i}', answers, preferred, 'one.mp4', lengths=lengths)
      for i in range(count)
    ]

  samples = [
    *pairs(6, 0, (4, 9)),  # the shorter one, by 5 tokens
    *pairs(2, 1, (4, 9)),
    *pairs(3, 1, (30, 10)),  # the shorter one, by 20
    *pairs(5, 0, (7, 7)),
  ]
  balanced = pair_choice.balance_lengths(samples, seed=0)
  assert balanced == pair_choice.balance_lengths(samples, seed=0)
  kept = [(len(s.ids[0]), len(s.ids[1]), s.pair.preferred) for s in balanced]
  assert sorted(kept) == [(4, 9, 0)] * 2 + [(4, 9, 1)] * 2 + [(7, 7, 0)] * 5


@pytest.mark.parametrize(
  'samples, labels',
  [
    ([sample('a', (RIGHT, LONG), 1, 'a.mp4', lengths=(4, 9))] * 3, 'judge'),
    ([sample('a', (LONG, SHORT), 0, 'a.mp4', lengths=(9, 4))] * 3, 'shorter'),
  ],
)
def test_pairs_of_which_balancing_leaves_none_are_refused(samples, labels):
  """Else a reward model of no step would be written."""
  reward = RewardConfig(balance_lengths=True, labels=labels)
  with pytest.raises(
    DataError, match='balance_lengths: leaves none of 3 training pairs'
  ):
    pair_choice.choose(samples, reward, 0, TRUTH, encode)
