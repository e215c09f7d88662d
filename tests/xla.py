"""How XLA compiles for tests: quickly, for programs that run once or twice.

Most of a session is compilation. Without LLVM's optimizer, and without the emitters of
fusions that go by way of MLIR, the gradient of a small network compiles in less than
half of the processor time; its steps take longer, of which tests have few.
"""

import importlib.util
import mmap
import pathlib


def _knows(flag: str) -> bool:
  """Returns whether this XLA has a flag; a process with an unknown one would end."""
  spec = importlib.util.find_spec('jaxlib')
  for place in spec.submodule_search_locations if spec else ():
    library = pathlib.Path(place, 'libjax_common.so')
    if library.is_file():
      with (
        library.open('rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
      ):
        return text.find(flag.encode()) >= 0
  return False


FLAGS = '--xla_backend_optimization_level=0'
if _knows('xla_cpu_use_fusion_emitters'):
  FLAGS += ' --xla_cpu_use_fusion_emitters=false'
