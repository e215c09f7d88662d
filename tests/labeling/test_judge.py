from vlm_rlaif_jax.labeling import judge


def test_filling_a_template_is_one_pass():
  """An answer that contains a brace, or a field's name in braces, stays as it is."""
  text = judge.fill('{a} | {b} | {c}', a='{b}', b='x {', c='y')
  assert text == '{b} | x { | y'
