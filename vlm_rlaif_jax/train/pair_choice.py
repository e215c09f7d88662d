"""Which of the labeled pairs a reward model is trained on, and as what.

All draws depend on the seed alone, so a resumed run trains on the same pairs.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from vlm_rlaif_jax.data.examples import DataError, Pair
from vlm_rlaif_jax.data.pairs import PairSample, place_of
from vlm_rlaif_jax.data.prompts import Turns
from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.settings.reward import RewardConfig
from vlm_rlaif_jax.train import pair_controls

LENGTH_STEPS = (1, 4, 8, 16)  # tokens from which on a difference is in the next group


def choose(
  samples: Sequence[PairSample],
  reward: RewardConfig,
  seed: int,
  truth: Truth | None,
  encode: Callable[[list[Pair]], list[PairSample]],
) -> list[PairSample]:
  """Returns the pairs that the settings train on, of all that there are to train on.

  Pairs with answers of other videos are pairs like the others: `reward.labels` decides
  what is preferred in them, and they count where lengths are compared.

  Args:
    encode: returns the samples of pairs that are added.

  Raises:
    DataError: a setting leaves none, or cannot be met.
  """
  samples = subset(samples, reward.train_pairs, seed)
  own = [sample.pair for sample in samples]
  samples += encode(with_other_answers(own, reward.other_answers, seed))
  samples = relabel(samples, reward.labels, truth)
  samples = equal_lengths(samples, reward.equal_lengths, seed)
  if not reward.balance_lengths:
    return samples
  balanced = balance_lengths(samples, seed)
  if not balanced:
    raise DataError(
      f'config.reward.balance_lengths: leaves none of {len(samples)} training pairs, '
      'as all prefer the longer answer or all the shorter one; use False'
    )
  return balanced


def subset(samples: Sequence[PairSample], count: int, seed: int) -> list[PairSample]:
  """Returns that many pairs in their order; a smaller subset is part of a larger one.

  Args:
    count: 0 for all.

  Raises:
    DataError: there are fewer pairs.
  """
  if count > len(samples):
    raise DataError(
      f'config.reward.train_pairs={count}: there are {len(samples)} training pairs; '
      'use at most as many, or 0 for all'
    )
  order = np.random.default_rng([seed, 6]).permutation(len(samples))
  return [samples[i] for i in np.sort(order[: count or len(samples)])]


def relabel(
  samples: Sequence[PairSample], labels: str, truth: Truth | None
) -> list[PairSample]:
  """Returns pairs whose preference is another one, for a control; ties are left out.

  Args:
    labels: 'judge': as they are; 'inverted': the other answer; 'shorter': the answer of
      fewer tokens; 'truth': the answer of higher true quality.

  Raises:
    DataError: the truth of no pair is known.
  """
  if labels == 'judge':
    return list(samples)
  if labels == 'inverted':
    margins = np.asarray([1.0 - 2.0 * sample.pair.preferred for sample in samples])
  elif labels == 'shorter':
    margins = pair_controls.length_margins(samples)
  else:
    margins = pair_controls.true_margins(samples, truth or Truth({}))
  changed = [
    dataclasses.replace(
      sample, pair=dataclasses.replace(sample.pair, preferred=int(margin > 0))
    )
    for sample, margin in zip(samples, margins, strict=True)
    if np.isfinite(margin) and margin != 0
  ]
  if not changed:
    raise DataError(
      f'config.reward.labels={labels}: decides none of {len(samples)} training pairs; '
      'use judge, or data with a truth.json that has their ids'
    )
  return changed


def equal_lengths(
  samples: Sequence[PairSample], share: float, seed: int
) -> list[PairSample]:
  """Returns pairs of which at least a share has answers of equally many tokens.

  Of the others a random part is left out.

  Raises:
    DataError: there are none of equal lengths.
  """
  equal = pair_controls.length_margins(samples) == 0
  if not share:
    return list(samples)
  if not equal.any():
    raise DataError(
      f'config.reward.equal_lengths={share:g}: none of {len(samples)} training pairs '
      'has answers of equally many tokens; use 0'
    )
  count = int(equal.sum() / share - equal.sum() + 1e-9)  # of others
  others = np.random.default_rng([seed, 7]).permutation(np.flatnonzero(~equal))
  members = {*np.flatnonzero(equal), *others[:count]}
  return [sample for i, sample in enumerate(samples) if i in members]


def balance_lengths(samples: Sequence[PairSample], seed: int) -> list[PairSample]:
  """Returns pairs of which as many prefer the longer answer as the shorter one.

  Of the more frequent of both a random part is left out, among pairs whose lengths
  differ alike, so that length alone predicts no preference.
  """
  margins = pair_controls.length_margins(samples)
  preferred = np.asarray([sample.pair.preferred == 1 for sample in samples])
  shorter = (margins > 0) == preferred
  group = np.digitize(np.abs(margins), LENGTH_STEPS)  # 0: equally long
  rng = np.random.default_rng([seed, 5])
  keep = np.ones(len(samples), bool)
  for number in range(1, len(LENGTH_STEPS) + 1):
    sides = [np.flatnonzero((group == number) & (shorter == s)) for s in (True, False)]
    count = min(map(len, sides))
    for side in sides:
      keep[rng.permutation(side)[count:]] = False
  return [sample for sample, use in zip(samples, keep, strict=True) if use]


def with_other_answers(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
  """Returns pairs whose worse answer is that of another video to the same question.

  The better answer of a pair is set against the better answer of a pair about another
  video, if that is another text. Half of the time it is the second one. Questions are
  the same whatever answer a row has beside the two that are compared.

  Args:
    share: how many, as a share of the pairs; fewer where not as many can be made.

  Raises:
    DataError: none can be made.
  """
  if not share:
    return []
  alike: dict[Turns, list[Pair]] = {}
  for pair in pairs:
    alike.setdefault(_open_turns(pair), []).append(pair)
  rng = np.random.default_rng([seed, 8])
  results: list[Pair] = []
  for number in rng.permutation(len(pairs)):
    if len(results) >= share * len(pairs):
      break
    pair = pairs[number]
    better, place = pair.answers[pair.preferred], place_of(pair)
    others = [
      other
      for other in alike[_open_turns(pair)]
      if place_of(other) != place and other.answers[other.preferred] != better
    ]
    if not others:
      continue
    other = others[rng.integers(len(others))]
    both = [
      (one.answers[one.preferred], one.stopped[one.preferred]) for one in (pair, other)
    ]
    preferred = int(rng.integers(2))
    (first, first_stopped), (second, second_stopped) = both[:: -1 if preferred else 1]
    results.append(
      dataclasses.replace(
        pair,
        answers=(first, second),
        preferred=preferred,
        stopped=(first_stopped, second_stopped),
      )
    )
  if not results:
    raise DataError(
      f'config.reward.other_answers={share:g}: no question of {len(pairs)} training '
      'pairs is asked about two videos with different answers; use 0'
    )
  return results


def _open_turns(pair: Pair) -> Turns:
  """Returns the turns up to the last question; the answers of a pair replace its own.

  Rows of the released data have one there: what somebody answered about this video.
  """
  *former, (question, _) = pair.example.turns
  return (*former, (question, None))
