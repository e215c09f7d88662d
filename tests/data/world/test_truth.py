"""Truth is read from the file of the world only."""

import pytest

from vlm_rlaif_jax.data.world.truth import Truth
from vlm_rlaif_jax.settings.build import UserError


@pytest.mark.parametrize('text', ['[1]', '{"q": {"facts": []}}', '{"q"', '3'])
def test_a_file_that_is_no_truth(tmp_path, text):
  path = tmp_path / 'truth.json'
  assert Truth.load(path) is None
  path.write_text(text)
  with pytest.raises(UserError, match=r'truth\.json: expected \{id:') as error:
    Truth.load(path)
  assert '\n' not in str(error.value)
