"""What the host starts in a loop, read from a dump of XLA's thunks."""

from vlm_rlaif_jax.plan import graphs

DUMP = """001: kCopy  [source | next=003] kCopy
003: kWhile [prev=002 | sink]
condition:
    004: kCustomKernel [source] loop_compare_fusion grid: [128, 1, 1]
    005: kCustomKernel [prev=004] loop_and_fusion grid: [1, 1, 1]
  body:
    000: kCommandBuffer [source | sink]
        007: kCustomKernel   [source] loop_add_fusion grid: [1, 1, 1]
        008: kCublasLtMatmul [source] kCublasLtMatmul
        009: kCustomKernel   [prev=008] loop_convert_fusion grid: [128, 1, 1]
    010: kCopy [prev=000] kCopy
    011: kCommandBuffer [source | sink]
        012: kCublasLtMatmul [source] kCublasLtMatmul
013: kCopy [prev=003] kCopy
014: kWhile [prev=013 | sink]
condition:
    015: kCustomKernel [source] loop_compare_fusion grid: [128, 1, 1]
  body:
    016: kCustomKernel [source] fusion grid: [128, 1, 1]
"""


def test_graphs_and_kernels_of_every_loop():
  assert graphs.loops(DUMP) == [
    graphs.Starts(graphs=2, captured=4, single=1),
    graphs.Starts(graphs=0, captured=0, single=1),
  ]


def test_the_loop_with_most_kernels_of_a_module(tmp_path):
  assert graphs.longest_loop(tmp_path, 'jit_rollout') is None
  name = 'module_0001.jit_rollout.thunk_sequence_after_thunk_passes.txt'
  (tmp_path / name).write_text(DUMP)
  assert graphs.longest_loop(tmp_path, 'jit_score') is None
  assert graphs.longest_loop(tmp_path, 'jit_rollout') == graphs.Starts(2, 4, 1)
