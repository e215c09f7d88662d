"""Log-probabilities of options, of tokenizers that cut some letters in pieces."""

import types

import numpy as np

from vlm_rlaif_jax.data import tokens
from vlm_rlaif_jax.evals.benchmarks import answering
from vlm_rlaif_jax.weights import bases

PROMPT = np.asarray([1, 5, 6], np.int32)


def logprob(prompt, token):
  """Of any network: what comes next depends on what came before."""
  seed = [int(token), *(int(i) % 1000 for i in prompt)]
  return float(np.log(np.random.default_rng(seed).uniform(0.1, 0.9)))


def letters(tokenizer, counts):
  """Returns what is kept of two questions with so many options."""
  asked = []

  def option_logprobs(prompts, videos, options):
    asked.append(len(prompts))
    return [
      np.asarray([logprob(prompt, one) for one in row], np.float32)
      for prompt, row in zip(prompts, options, strict=True)
    ]

  generator = types.SimpleNamespace(
    tokenizer=tokenizer, option_logprobs=option_logprobs
  )
  request = types.SimpleNamespace(is_choice=True)
  group = [
    types.SimpleNamespace(
      request=request,
      number=number,
      item=types.SimpleNamespace(fields={'options': ['x'] * count}, video=None),
    )
    for number, count in enumerate(counts)
  ]
  encoded = [PROMPT, np.append(PROMPT, 9).astype(np.int32)]
  found = answering._option_logprobs(generator, group, encoded)
  return [found[id(request), number] for number in range(len(counts))], encoded, asked


def test_letters_in_pieces_are_compared_as_a_whole():
  tokenizer = tokens.load_tokenizer(bases.TINY)
  pieces = answering.option_ids(tokenizer, 5)
  assert [len(one) for one in pieces] == [1, 1, 2, 2, 2]
  found, encoded, asked = letters(tokenizer, (5, 3))
  assert asked == [2, 2]  # and one more pass for those that begin alike
  for prompt, values, count in zip(encoded, found, (5, 3), strict=True):
    wanted = [
      sum(logprob([*prompt, *one[:n]], one[n]) for n in range(len(one)))
      for one in pieces[:count]
    ]
    np.testing.assert_allclose(values, wanted, rtol=1e-6)


def test_letters_of_one_piece_take_one_pass():
  tokenizer = types.SimpleNamespace(option_pieces=lambda letter: (ord(letter),))
  found, encoded, asked = letters(tokenizer, (4, 4))
  assert asked == [2]
  wanted = [[logprob(prompt, ord(x)) for x in 'ABCD'] for prompt in encoded]
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
