"""Which linears of the decoder PEFT gives an adapter, by adapter_config.json."""

import pathlib
import re
from collections.abc import Callable, Set

from vlm_rlaif_jax.settings.models import LINEARS
from vlm_rlaif_jax.weights import names
from vlm_rlaif_jax.weights.errors import ConvertError, join_names
from vlm_rlaif_jax.weights.json_section import Section

_DECODERS = (  # starts of the names of the decoder's modules, by network
  '', 'model.', 'language_model.model.', 'model.language_model.',
)  # fmt: skip
Module = tuple[str, int]  # linear, layer


def check(folder: pathlib.Path, config: Section, stored: Set[Module]) -> None:
  """Raises ConvertError unless the tensors are of the linears that a config names.

  PEFT leaves an adapter that its config does not name out, and one that has no tensors
  at its start, which changes nothing.

  Args:
    folder: of the adapter, in the error.
    config: its adapter_config.json.
    stored: of its tensors.
  """
  named = _target_modules(config, 1 + max(layer for _, layer in stored))
  missing = {linear for linear, _ in named} - {linear for linear, _ in stored}
  if missing:
    modules = join_names(names.MODULES[n] for n in LINEARS if n in missing)
    raise ConvertError(
      f'{folder}: missing the adapter of {modules}, '
      'which target_modules of adapter_config.json names'
    )
  unnamed = sorted(stored - named) if config.values.get('target_modules') else ()
  if unnamed:
    modules = join_names(names.peft_name(*key, 'a') for key in unnamed)
    raise ConvertError(
      f'{folder}: unexpected {modules}, which target_modules, exclude_modules and '
      'layers_to_transform of adapter_config.json leave out; correct these fields if '
      'the adapter is of these modules'
    )


def _target_modules(config: Section, layers: int) -> set[Module]:
  """Returns the linears, and the layers of each, that an adapter's config names."""
  is_target = _matcher(config, 'target_modules')
  is_excluded = _matcher(config, 'exclude_modules')
  only = config.values.get('layers_to_transform')
  only = [only] if type(only) is int else only
  if only is not None and not (
    isinstance(only, list) and all(type(layer) is int for layer in only)
  ):
    raise config.error('layers_to_transform', 'a number of a layer, or a list of them')
  return {
    (linear, layer)
    for linear, module in names.MODULES.items()
    for layer in range(layers)
    if not only or layer in only
    for start in _DECODERS
    for name in (f'{start}layers.{layer}.{module}',)
    if is_target(name) and not is_excluded(name)
  }


def _matcher(config: Section, field: str) -> Callable[[str], object]:
  """Returns whether a field means a module, as PEFT reads it.

  The field lists ends of names, is a pattern, or is 'all-linear'.
  """
  value = config.values.get(field)
  if value == 'all-linear':
    return lambda name: True
  if isinstance(value, str):
    try:
      return re.compile(value).fullmatch
    except re.error as error:
      raise config.error(field, f'a pattern ({error})') from None
  if not (value is None or isinstance(value, list)):
    raise config.error(field, 'a list of names or a pattern')
  ends = tuple(f'.{end}' for end in value or ())
  return lambda name: f'.{name}'.endswith(ends)
