from vlm_rlaif_jax.data import prompts


def test_narratives_keep_the_order_of_the_clips():
  assert prompts.narrative(['A dog.', 'It runs.']) == 'Clip 1: A dog.\nClip 2: It runs.'


def test_statements_are_the_beginnings_of_an_answer():
  assert prompts.statements('It stays, then it goes. It is 1.5 m.') == [
    'It stays,', 'It stays, then it goes.', 'It stays, then it goes. It is 1.5 m.'
  ]  # fmt: skip
  assert prompts.statements('Red') == ['Red']


def test_filling_a_template_is_one_pass():
  """An answer that contains a brace, or a field's name in braces, stays as it is."""
  text = prompts.fill('{a} | {b} | {c}', a='{b}', b='x {', c='y')
  assert text == '{b} | x { | y'
