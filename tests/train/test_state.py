import jax

from tests.tiny import random_adapter
from vlm_rlaif_jax.train.state import checksum


def test_equal_adapters_have_equal_checksums_and_others_do_not():
  a, b = random_adapter(1), random_adapter(1)
  assert int(checksum(a)) == int(checksum(b)) == int(jax.jit(checksum)(a))
  leaf = a['llama']['layers']['q']['a']
  swapped = jax.tree.map(lambda x: x, a)
  swapped['llama']['layers']['q']['a'] = leaf[:, ::-1]
  assert int(checksum(swapped)) != int(checksum(b))
