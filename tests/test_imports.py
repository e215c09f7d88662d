"""Imports point downwards only, flax.linen names weights in one place, and tests are
where the modules' names say."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'vlm_rlaif_jax'
FLOORS = {
  'version': 0, 'types': 0, 'settings': 0, 'objectives': 0,
  'core': 1,
  'data': 2, 'nn': 2,
  'inference': 3, 'weights': 3,
  'evals': 4, 'labeling': 4, 'train': 4,
  'rl': 5,
  'stages': 6,
  'plan': 7, 'reports': 7, 'api': 7,
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob('*.py'))
TEST_ONLY = {'torch', 'peft', 'bitsandbytes', 'qwix', 'tensorflow'}


def imports(path: pathlib.Path):
  """Dotted names of everything that a file imports, inside functions too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      yield node.module or ''
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def floor(part: str) -> int:
  assert part in FLOORS, f'{part} has no floor'
  return FLOORS[part]


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  if parts[0] == '__init__':
    return
  here = floor(parts[0])
  for name in imports(path):
    pieces = name.split('.')
    if pieces[0] != 'vlm_rlaif_jax' or len(pieces) < 2:
      continue
    there = pieces[1]
    if there == parts[0]:
      if there == 'stages' and len(pieces) > 2:
        assert parts[-1] == '__init__', f'{path}: a stage imports another: {name}'
      continue
    assert floor(there) <= here, f'{path} imports {name} from a higher floor'


@pytest.mark.parametrize('path', MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_linen_is_confined_and_oracles_are_absent(path):
  part = path.relative_to(PACKAGE).parts[0]
  for name in imports(path):
    if name.startswith('flax.linen'):
      assert part == 'nn', f'{path} imports {name}'
    assert name.split('.')[0] not in TEST_ONLY, f'{path} imports {name}'


@pytest.mark.parametrize('path', sorted((PACKAGE / 'settings').glob('*.py')), ids=str)
def test_settings_need_no_jax(path):
  assert not {n.split('.')[0] for n in imports(path)} & {'jax', 'flax', 'numpy'}


def test_configs_import_settings_only():
  for path in (ROOT / 'configs').glob('*.py'):
    for name in imports(path):
      assert name.split('.')[0] in (
        'configs',
        'dataclasses',
        'types',
        'typing',
      ) or name.startswith('vlm_rlaif_jax.settings'), f'{path} imports {name}'


def test_no_module_of_leftovers():
  banned = {'utils', 'common', 'base', 'manager', 'helper', 'helpers', 'misc'}
  assert not {p.stem for p in MODULES} & banned


def test_a_modules_tests_are_where_its_name_says():
  """`vlm_rlaif_jax/data/video.py` has its tests in `tests/data/test_video.py`.

  A file named after no module is about a whole folder, and lies in that folder's twin.
  """
  tests = ROOT / 'tests'
  homes: dict[str, set[pathlib.Path]] = {}
  others = [*(ROOT / 'launch').rglob('*.py'), *(ROOT / 'configs').glob('*.py')]
  for path in [*MODULES, *others]:
    home = path.parent.relative_to(PACKAGE if PACKAGE in path.parents else ROOT)
    homes.setdefault(path.stem, set()).add(home)
  folders = set().union(*homes.values())
  misplaced = []
  for path in sorted(tests.rglob('test_*.py')):
    folder, stem = path.parent.relative_to(tests), path.stem.removeprefix('test_')
    if folder.parts[:1] in ((), ('parity',), ('docs',), ('cases',)):
      continue
    if folder not in folders:
      misplaced.append(f'{path.relative_to(ROOT)}: no folder {folder} in the package')
    elif stem != folder.name and folder not in homes.get(stem, {folder}):
      others = ', '.join(sorted(map(str, homes[stem])))
      misplaced.append(f'{path.relative_to(ROOT)}: module {stem} is in {others}')
  assert not misplaced, '\n'.join(['', *misplaced])
