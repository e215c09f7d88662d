"""What PPO starts from: the value function, and where the bases were."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from tests.rl.learner import SMALL, run_of
from tests.tiny import CFG, LORA
from tests.weights import checkpoints
from tests.weights.damage import edit_json
from vlm_rlaif_jax.core import trees
from vlm_rlaif_jax.data.tokens import load_tokenizer
from vlm_rlaif_jax.rl import start
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.settings.ppo import PpoConfig, PpoInputs, PpoRun
from vlm_rlaif_jax.settings.sections import DataConfig
from vlm_rlaif_jax.weights import bases
from vlm_rlaif_jax.weights.artifacts import ArtifactError


@pytest.mark.slow
def test_a_value_function_that_starts_anew(frozen):
  """Register B05 and B42."""

  def started(**changes):
    config = PpoConfig(query_tokens=64, response_tokens=64, **changes)
    return start.initial_value(PpoRun(critic=CFG, ppo=config), LORA, frozen)

  kept = started(value_head_init='reward')
  same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
  same(kept, {'value': frozen.reward, 'head': frozen.reward_head})
  fresh = started(value_adapter_init='fresh')
  assert jax.tree.structure(fresh['value']) == jax.tree.structure(frozen.reward)
  for name, leaf in trees.flatten(fresh['value']).items():
    assert bool(leaf.any()) != name.endswith('/b'), name
  assert not fresh['head'].w.any()


def test_an_artifact_says_where_both_bases_were(tmp_path):
  """For the export of either adapter; the critic may share the policy's."""

  def origins(critic_sft='', **changes):
    inputs = PpoInputs(sft=str(tmp_path / 's'), critic_sft=critic_sft)
    settings = PpoRun(size='7b', base='b', inputs=inputs, **changes)
    return start.origins(settings, run_of(settings, tmp_path / 'runs'))

  here = pathlib.Path.cwd()
  actor = {'base_folder': str(here / 'b'), 'sft_folder': str(tmp_path / 's')}
  assert origins(critic_size='7b') == actor | {
    f'critic_{name}': place for name, place in actor.items()
  }
  assert origins(critic_size='13b', critic_base='c') == actor | {
    'critic_base_folder': str(here / 'c'),
    'critic_sft_folder': str(tmp_path / 'runs' / '13b' / 'sft'),
  }
  assert origins(critic_base='c', critic_sft='merged')['critic_sft_folder'] == 'merged'


def without(whole, number):
  """A tokenizer without the token of an id."""
  vocab = whole['model']['vocab']
  added = [entry for entry in whole['added_tokens'] if entry['id'] != number]
  vocab = {text: i for text, i in vocab.items() if i != number}
  return {**whole, 'added_tokens': added, 'model': {**whole['model'], 'vocab': vocab}}


def test_a_critic_reads_the_tokens_of_the_policy(tmp_path):
  """Its base may be another one, but an id means the same in both."""
  places = [
    checkpoints.write_base(tmp_path / name, seed)
    for seed, name in enumerate(('actor', 'critic'))
  ]
  settings = PpoRun(
    size='tiny',
    critic_size='tiny',
    model=CFG,
    critic=CFG,
    base=str(places[0]),
    critic_base=str(places[1]),
    data=DataConfig(frames=2, buckets=(8,)),
    ppo=PpoConfig(**SMALL),
    inputs=PpoInputs(sft='merged', critic_sft='merged'),
  )
  run = run_of(settings, tmp_path / 'runs')
  actor, critic = start.tuned_bases(settings, run)
  assert actor.fingerprint != critic.fingerprint
  (places[0] / 'added_tokens.json').write_text('{"[SEG]": 63}')
  path = places[0] / 'tokenizer.json'
  edit_json(path, lambda whole: without(whole, 63))
  edit_json(places[1] / 'tokenizer.json', lambda whole: without(whole, 63))
  with pytest.raises(ArtifactError, match='its tokenizer is not the policy') as error:
    start.tuned_bases(settings, run)
  assert '\n' not in str(error.value)


def test_stop_ids():
  tokenizer = load_tokenizer(bases.TINY)
  spaced, glued = start.stop_ids(tokenizer, (' ?', '?'))
  assert tokenizer.pieces('it ?')[-1] == spaced
  assert tokenizer.pieces('it?')[-1] == glued
  assert start.stop_ids(tokenizer, ()) == ()


@pytest.mark.parametrize('text, pieces', [('USER:', 2), ('###', 3), ('Ω', 2), ('', 0)])
def test_a_stop_text_of_several_tokens_is_refused(text, pieces):
  """Its last one alone would end answers: at every colon, or at every '#'."""
  tokenizer = load_tokenizer(bases.TINY)
  with pytest.raises(ConfigError, match=f'must be one token .* is {pieces};') as error:
    start.stop_ids(tokenizer, ('?', text))
  assert f'config.ppo.stop_texts: {text!r}' in str(error.value)


def test_a_stop_text_that_is_the_unknown_token_is_refused():
  tokenizer = load_tokenizer(bases.TINY)
  (colon,) = start.stop_ids(tokenizer, (':',))
  with pytest.raises(ConfigError, match=r"':' is unknown to the policy's tokenizer"):
    start.stop_ids(dataclasses.replace(tokenizer, unk=colon), (':',))
