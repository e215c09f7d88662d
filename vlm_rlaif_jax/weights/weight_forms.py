"""The dtype and the quantization that weights are written in."""

import dataclasses

import ml_dtypes
import numpy as np

from vlm_rlaif_jax.core.quant import nf4
from vlm_rlaif_jax.settings.sections import QuantConfig
from vlm_rlaif_jax.weights import nf4_files
from vlm_rlaif_jax.weights.checkpoint import Checkpoint
from vlm_rlaif_jax.weights.errors import ConvertError
from vlm_rlaif_jax.weights.nf4_files import Nf4Tensor
from vlm_rlaif_jax.weights.safetensors_files import Shapes
from vlm_rlaif_jax.weights.tensors import Tensor
from vlm_rlaif_jax.weights.weight_table import Weight

DTYPES = {
  'float32': np.dtype(np.float32),
  'bfloat16': np.dtype(ml_dtypes.bfloat16),
  'float16': np.dtype(np.float16),
}
_CHUNK = 1 << 22  # elements that are cast at a time
_EXPONENT = {  # unsigned type and bits of the exponent: all set in what is not finite
  'float32': (np.uint32, 0x7F800000),
  'bfloat16': (np.uint16, 0x7F80),
  'float16': (np.uint16, 0x7C00),
}


@dataclasses.dataclass(frozen=True)
class Form:
  """The dtype and the quantization that weights are written in.

  Attributes:
    dtype: of arrays; norms stay in float32, as they are computed.
    through: '', or the dtype by way of which the decoder's linears are in NF4.
    double: whether NF4's scales are in 8 bits.
  """

  dtype: str
  through: str = ''
  double: bool = True


def form_of(checkpoint: Checkpoint, dtype: str, bits: int) -> Form:
  """Returns the form for a number of bits of the decoder's linears.

  NF4 is that of the checkpoint, else the default of `config.quant`.
  """
  if bits != 4:
    return Form(dtype)
  in_nf4 = (t for t in checkpoint.linears if isinstance(t, Nf4Tensor))
  kinds = {(tensor.dtype.name, tensor.double) for tensor in in_nf4}
  if len(kinds) > 1:
    raise ConvertError(
      f'{checkpoint.folder}: linears in NF4 of several kinds (dtype, double): '
      f'{sorted(kinds)}, expected one'
    )
  default = QuantConfig()
  return Form(dtype, *next(iter(kinds), (default.through, default.double)))


def stored_shapes(weight: Weight, form: Form) -> Shapes:
  """Returns names, shapes and dtypes in our file of one weight."""
  if form.through and weight.is_linear:
    return nf4_files.part_shapes(weight.name, weight.full_shape, form.double)
  return {weight.name: (weight.full_shape, _dtype(weight, form.dtype))}


def stored_arrays(weight: Weight, tensor: Tensor, form: Form) -> dict[str, np.ndarray]:
  """Returns what goes into our file of one layer of a weight, by name.

  A linear in NF4 stays as it is; others are quantized from the checkpoint's own
  numbers, whatever the dtype of the rest.
  """
  if not (form.through and weight.is_linear):
    array = tensor.read().reshape(weight.shape)
    return {weight.name: cast(array, _dtype(weight, form.dtype), weight.name)}
  if isinstance(tensor, Nf4Tensor):
    leaf = tensor.leaf()
  else:
    array = cast(tensor.read(), DTYPES[form.through], weight.name)
    leaf = nf4.quantize(array, form.double)
  return nf4_files.split_parts(weight.name, leaf)


def _dtype(weight: Weight, dtype: str) -> np.dtype:
  return DTYPES['float32' if weight.name.endswith('norm/scale') else dtype]


def cast(array: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  """Returns an array in another dtype.

  Raises:
    ConvertError: a value is not finite, or does not fit into the dtype.
  """
  unsigned, mask = _EXPONENT[dtype.name]
  flat = np.ascontiguousarray(array).reshape(-1)
  same = array.dtype == dtype
  out = flat if same else np.empty(flat.shape, dtype)
  for start in range(0, flat.size, _CHUNK):
    piece = slice(start, start + _CHUNK)
    if not same:
      with np.errstate(over='ignore'):
        out[piece] = flat[piece].astype(np.float32).astype(dtype)
    if np.max(out[piece].view(unsigned) & unsigned(mask)) == mask:
      raise ConvertError(f'{name}: has values that are not finite as {dtype.name}')
  return out.reshape(array.shape)
