"""A table of the code base: how long, how typed, how plainly named.

  python -m tests.measures                 # of this tree
  python -m tests.measures ../older .      # a column for each tree

Counted over `vlm_rlaif_jax`, `launch` and `configs`.
"""

import ast
import pathlib
import re
import statistics
import sys

from tests import language

LONG = 60  # lines of a function
# A function's summary is a sentence if it begins with a verb ('Returns', 'Adds'), has
# one in its main clause, or begins with an equation.
FINITE = re.compile(
  r'\b(is|are|was|were|has|have|had|does|do|can|cannot|may|must|will|would|should|'
  r'\w+s not|needs?|gets?|gives?|goes|comes?|stays?|starts?|ends?|fits?|stands?|lies|'
  r'waits?|takes?|makes?|becomes?|counts?|holds?|keeps?|reads?|adds?|costs?)\b'
)
FRAGMENT = re.compile(
  r'(What|Whether|Which|How|Where|Why|Under|Over|Of|For|As|Those|That)\b'
)
CLAUSE_END = re.compile(r'[,;:(]|\b(that|which|who|whose|where|when|as|if|what)\b')
EQUATION = re.compile(r'[=≈∝σΣ√ᵀ½²]|^- mean|^log p|^x ')
NOUNS = {
  'Always', 'Bytes', 'Claims', 'Clips', 'Codes', 'Conversations', 'Facts', 'Features',
  'Fields', 'Files', 'Folders', 'Gradients', 'Ids', 'Images', 'Its', 'Keys', 'Lines',
  'Logits', 'Matrices', 'Norms', 'Numbers', 'Operations', 'Pairs', 'Parts', 'Patches',
  'Paths', 'Perhaps', 'Pixels', 'Positions', 'Prompts', 'Questions', 'Records',
  'Results', 'Rewards', 'Rounds', 'Rows', 'Seconds', 'Sentences', 'Settings', 'Shapes',
  'Similarities', 'Stages', 'Tensors', 'This', 'Tokens', 'Values', 'Videos', 'Weights',
  'Words', 'Yes', 'Zeros', 'Adapters', 'Arrays', 'Sizes', 'Cross',
}  # fmt: skip


def is_sentence(docstring: str) -> bool:
  """Returns whether a function's summary reads as a sentence; a heuristic."""
  text = language.first_paragraph(docstring)
  if not language.is_punctuated(docstring):
    return False
  if EQUATION.search(text):
    return True
  verb = re.match(r'([A-Z][a-z]+s)\b(?! of\b)', text)
  if verb and verb.group(1) not in NOUNS:
    return True
  return not FRAGMENT.match(text) and bool(FINITE.search(CLAUSE_END.split(text)[0]))


def measure(root: pathlib.Path) -> dict[str, str]:
  """Returns the table of a tree, name -> number."""
  files = language.files(root)
  lengths = [len(path.read_text().splitlines()) for path in files]
  total = sum(lengths)
  trees = [language.tree(path) for path in files]
  functions = [function for tree in trees for function in language.functions(tree)]
  sizes = [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions]
  long = sum(size > LONG for size in sizes)
  summaries = [
    text
    for tree in trees
    for _, node, text in language.docstrings(tree)
    if isinstance(node, ast.FunctionDef)
  ]
  parameters = [arg for node in functions for arg in language.parameters(node)]
  annotated = sum(arg.annotation is not None for arg in parameters)

  def count(check) -> int:
    return sum(len(check(path)) for path in files)

  lambdas = count(language.bound_lambdas)
  p90 = statistics.quantiles(lengths, n=10)[-1]
  return {
    'modules': f'{len(files)}',
    'lines': f'{total:,}',
    'lines of a module: median, p90, max': (
      f'{statistics.median(lengths):.0f}, {p90:.0f}, {max(lengths)}'
    ),
    f'modules over {language.MAX_LINES} lines': f'{count(language.too_long)}',
    'functions': f'{len(functions):,}',
    'lines of a function, median': f'{statistics.median(sizes):.0f}',
    f'functions over {LONG} lines': f'{long} ({long / len(sizes):.1%})',
    'lambdas bound to names': f'{lambdas}',
    '... per 1,000 lines': f'{1000 * lambdas / total:.1f}',
    "functions' docstrings that are sentences": (
      f'{sum(map(is_sentence, summaries)) / len(summaries):.0%} of {len(summaries)}'
    ),
    'isinstance(settings, ...Run)': f'{count(language.stage_checks)}',
    'annotated parameters': f'{annotated / len(parameters):.0%} of {len(parameters):,}',
    'dialect identifiers': f'{count(language.dialect)}',
    'private names used across modules': f'{count(language.private_imports)}',
    'British spellings': f'{count(language.british_spellings)}',
  }


def main(roots: list[pathlib.Path]) -> None:
  """Prints a Markdown table with a column for each tree."""
  tables = [measure(root) for root in roots]
  names = [str(root) for root in roots]
  print('| measure | ' + ' | '.join(names) + ' |')
  print('|---|' + '---|' * len(names))
  for row in tables[0]:
    print(f'| {row} | ' + ' | '.join(table[row] for table in tables) + ' |')


if __name__ == '__main__':
  main([pathlib.Path(path) for path in sys.argv[1:]] or [language.ROOT])
