"""The house's language as data, and the walks over syntax trees that check it.

`DIALECT` is the one list of words that are no names; `docs/glossary.md` cites it.
`tests/test_language.py` applies it, `tests/measures.py` counts with the same functions.
"""

import ast
import functools
import pathlib
import re
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = ('vlm_rlaif_jax', 'launch', 'configs')
MAX_LINES = 350
Offender = tuple[int, str]  # line, and what is wrong there

# A participle, an adverb or a pronoun is no name: the thing has one. word -> its names.
DIALECT = {
  'again': 'remat_flops, repeated',
  'anew': 'reinitialized',
  'asked': 'questions, requested, stop_requested',
  'beside': 'resident',
  'drawn': 'sampled, tokens',
  'faces': 'tower_batch',
  'found': 'values, matches, tensors',
  'gold': 'correctness, answer_match',
  'ground': 'base_ref',
  'held': 'quant, resident_bytes, held_out',
  'kept': 'pairs, selected',
  'knob': 'tuning_flag',
  'known': 'facts, names, choices',
  'learnt': 'learned',
  'looked': 'encoded_images',
  'made': 'artifact, records, arrays',
  'mine': 'own, local',
  'moved': 'bytes_moved',
  'said': 'message, output_ids, predictions',
  'seen': 'features, kv_mask, metrics, tried',
  'shown': 'displayed, printed',
  'taken': 'elapsed, used',
  'telling': 'caption_sampling',
  'theirs': 'reference, peer',
  'told': 'narrative, requested',
  'trips': 'loop_iterations',
  'wanted': 'requested, expected',
}
# Terms of the field that hold such a word.
FIELD_TERMS = ('held_out', 'bytes_moved', 'left_pad', 'pad_left')

# Names of folders and files that were spelled otherwise and are still read.
FORMER_NAMES = ROOT / 'vlm_rlaif_jax' / 'weights' / 'artifact_paths.py'

BRITISH = re.compile(
  r'\b\w*(?:artefact|quantis|optimis|initialis|normalis|serialis|tokenis|recognis|'
  r'summaris|utilis|organis|specialis|generalis|parallelis(?!m)|behaviour|colour|centre|'
  r'labell|modell|grey\b|licence|analys(?:e|ed|es)\b)\w*',
  re.IGNORECASE,
)


def files(root: pathlib.Path = ROOT, rooms: tuple = ROOMS) -> list[pathlib.Path]:
  """Returns every Python file of the package, the commands and the configs."""
  return sorted(path for room in rooms for path in (root / room).rglob('*.py'))


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
  """Returns the syntax tree of a file."""
  return ast.parse(path.read_text())


def identifiers(module: ast.Module) -> Iterator[tuple[int, str]]:
  """Yields the line and name of everything that a module binds."""
  for node in ast.walk(module):
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      yield node.lineno, node.id
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
      yield node.lineno, node.attr
    elif isinstance(node, ast.arg):
      yield node.lineno, node.arg
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
      yield node.lineno, node.name
    elif isinstance(node, ast.alias) and node.asname:
      yield node.lineno, node.asname


def dialect(path: pathlib.Path) -> list[Offender]:
  """Returns the identifiers that are, or hold, a word of `DIALECT`."""
  offenders = []
  for line, name in identifiers(tree(path)):
    plain = name.lower()
    for term in FIELD_TERMS:
      plain = plain.replace(term, '')
    if set(plain.split('_')) & DIALECT.keys():
      offenders.append((line, name))
  return offenders


def bound_lambdas(path: pathlib.Path) -> list[Offender]:
  """Returns the lambdas that get a name; the default of a field is a value."""
  classes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.ClassDef)]
  defaults = {id(statement) for node in classes for statement in node.body}
  return [
    (node.lineno, 'lambda')
    for node in ast.walk(tree(path))
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.NamedExpr)
    and isinstance(node.value, ast.Lambda)
    and id(node) not in defaults
  ]


def functions(module: ast.Module) -> list[ast.FunctionDef]:
  """Returns every function and method, also those inside others."""
  return [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]


def parameters(function: ast.FunctionDef) -> list[ast.arg]:
  """Returns the parameters of a function without `self` and `cls`."""
  args = function.args
  both = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
  return [arg for arg in both if arg and arg.arg not in ('self', 'cls')]


def docstrings(module: ast.Module) -> Iterator[tuple[int, ast.AST, str]]:
  """Yields line, node and text of the docstrings of a module and all inside it."""
  for node in ast.walk(module):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      text = ast.get_docstring(node)
      if text:
        yield getattr(node, 'lineno', 1), node, text


def first_paragraph(docstring: str) -> str:
  """Returns what stands before the first empty line, on one line."""
  return ' '.join(docstring.strip().split('\n\n')[0].split())


def is_equation(text: str) -> bool:
  """Returns whether a summary is an equation, which may stand first."""
  return bool(re.search(r'[=≈∝σΣ∈·√→ᵀ½²]|->|^\w+\(|\blog p\b|\bx\b', text))


def is_punctuated(docstring: str) -> bool:
  """Returns whether the summary looks like a sentence: a capital, and a full stop."""
  text = first_paragraph(docstring)
  starts = re.match(r'[A-Z0-9`\'"(±{]', text) or is_equation(text)
  return bool(starts) and bool(re.search(r"[.:!?)`]'?$", text) or is_equation(text))


def private_imports(path: pathlib.Path) -> list[Offender]:
  """Returns the private names of other modules of ours that a module uses."""
  module, modules, offenders = tree(path), set(), []
  for node in ast.walk(module):
    if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] in ROOMS:
      for alias in node.names:
        modules.add(alias.asname or alias.name)
        if alias.name.startswith('_') and not alias.name.startswith('__'):
          offenders.append((node.lineno, f'{node.module}.{alias.name}'))
  for node in ast.walk(module):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      private = node.attr.startswith('_') and not node.attr.startswith('__')
      if private and node.value.id in modules:
        offenders.append((node.lineno, f'{node.value.id}.{node.attr}'))
  return offenders


def unpunctuated_docstrings(path: pathlib.Path) -> list[Offender]:
  """Returns the summaries that cannot be sentences by their first and last letter."""
  return [
    (line, first_paragraph(text))
    for line, _, text in docstrings(tree(path))
    if not is_punctuated(text)
  ]


def too_long(path: pathlib.Path) -> list[Offender]:
  """Returns the length of a file of more than `MAX_LINES` lines."""
  lines = len(path.read_text().splitlines())
  return [(lines, 'lines')] if lines > MAX_LINES else []


def british_spellings(path: pathlib.Path) -> list[Offender]:
  """Returns the words of a file that US spelling writes in another way."""
  if path == FORMER_NAMES:
    return []
  return [
    (number, match.group())
    for number, line in enumerate(path.read_text().splitlines(), 1)
    for match in BRITISH.finditer(line)
  ]


def stage_checks(path: pathlib.Path) -> list[Offender]:
  """Returns every `isinstance(settings, ...Run)`: stage knowledge away from home."""
  return [
    (node.lineno, ast.unparse(node))
    for node in ast.walk(tree(path))
    if isinstance(node, ast.Call)
    and getattr(node.func, 'id', '') == 'isinstance'
    and re.search(r'\w+Run\b', ast.unparse(node.args[1]))
  ]


def missing_documents(path: pathlib.Path) -> list[Offender]:
  """Returns the Markdown files that a file cites and the repository lacks."""
  return [
    (number, name)
    for number, line in enumerate(path.read_text().splitlines(), 1)
    for name in re.findall(r'[\w/-]+\.md\b', line)
    if not any((folder / name).is_file() for folder in (ROOT, ROOT / 'docs'))
  ]
