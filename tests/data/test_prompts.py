from vlm_rlaif_jax.data import prompts


def test_narratives_keep_the_order_of_the_clips():
  assert prompts.narrative(['A dog.', 'It runs.']) == 'Clip 1: A dog.\nClip 2: It runs.'


def test_statements_are_the_beginnings_of_an_answer():
  assert prompts.statements('It stays, then it goes. It is 1.5 m.') == [
    'It stays,', 'It stays, then it goes.', 'It stays, then it goes. It is 1.5 m.'
  ]  # fmt: skip
  assert prompts.statements('Red') == ['Red']
