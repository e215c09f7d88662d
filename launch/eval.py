"""Judges the stored answers of an evaluation again; loads no model and no JAX.

  python -m launch.eval rejudge RUN --judge=normalized
  python -m launch.eval rejudge RUN --judge=world
  python -m launch.eval rejudge RUN --judge=endpoint \\
      --base_url=http://localhost:8000/v1 --model=NAME
  python -m launch.eval agreement RUN JUDGE JUDGE
  python -m launch.eval audit RUN --judge=endpoint ...

RUN is the folder of a run, as runs/7b, or of its evaluation.

rejudge    writes RUN/eval/<benchmark>/verdicts_<model>_<judge>.jsonl and
           RUN/eval/summary_<judge>.json, and prints the numbers
agreement  of two judges whose verdicts are there, by the names in those files: kappa,
           and whether the change from SFT to RLAIF depends on the judge
audit      what a judge says of the references themselves, of shuffled ones, and of the
           same answers twice

The key of an endpoint is read from the environment (OPENAI_API_KEY, or --key_variable).
Verdicts are kept: a command that was stopped goes on where it stopped, and one that was
done costs nothing. A model of the run judges where it can be loaded, in stage eval:
python -m launch.train --config configs/eval.py ... --config.judge.kind=model, which
generates no answer again.
"""

import dataclasses
import json
import pathlib
import sys
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from absl import flags

from launch import process
from vlm_rlaif_jax.evals.judges import choose, files, names, rejudge
from vlm_rlaif_jax.evals.records import Judge
from vlm_rlaif_jax.reports import judgments
from vlm_rlaif_jax.settings import describe
from vlm_rlaif_jax.settings.build import ConfigError
from vlm_rlaif_jax.settings.judge import KINDS, JudgeConfig, as_released

COMMANDS = {'rejudge': 1, 'agreement': 3, 'audit': 1}  # arguments of each

_JUDGE = flags.DEFINE_enum('judge', 'normalized', KINDS, 'Who judges.')
_BENCHMARKS = flags.DEFINE_list('benchmarks', [], 'Benchmarks to judge; none: all.')
_MODELS = flags.DEFINE_list('models', [], 'Models to judge; none: all.')
_TRUTH = flags.DEFINE_string(
  'truth',
  '',
  'truth.json of the clips, for --judge=world; default: that of the data of the run.',
)
_RELEASE = flags.DEFINE_bool(
  'release', False, 'Judge as the release does: its temperature, whole scores.'
)
_PREFERENCE = flags.DEFINE_bool(
  'preference',
  False,
  'Also judge which is better, the answer of RLAIF or that of SFT (and of init), in '
  'both orders.',
)
_RETRY_UNSCORED = flags.DEFINE_bool(
  'retry_unscored', False, 'Request malformed verdicts of earlier runs again.'
)
_PROGRESS = flags.DEFINE_bool('progress', True, 'Show a progress bar on a terminal.')


def _define_settings() -> dict[str, flags.FlagHolder]:
  """Defines a flag for each setting of a judge that needs no model of the run."""
  hints, holders = typing.get_type_hints(JudgeConfig), {}
  defaults = {field.name: field.default for field in dataclasses.fields(JudgeConfig)}
  for setting in describe.settings(JudgeConfig):
    name, hint = setting.name, hints[setting.name]
    if name == 'kind' or name.startswith('own_model'):
      continue
    text = f'{setting.meaning[:1].upper()}{setting.meaning[1:]}.'
    text += f' Default: {defaults[name]!r}.'
    if typing.get_origin(hint) is Literal:
      holders[name] = flags.DEFINE_enum(name, None, list(typing.get_args(hint)), text)
    else:
      define = {
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
      }[hint]
      holders[name] = define(name, None, text)
  return holders


_SETTINGS = _define_settings()


@process.one_line_errors
def main(argv: list[str]) -> None:
  command, *arguments = argv[1:] or ['']
  if COMMANDS.get(command) != len(arguments):
    raise ConfigError(
      'give one of: python -m launch.eval rejudge RUN --judge=KIND; agreement RUN '
      'JUDGE JUDGE; audit RUN --judge=KIND; see --help'
    )
  folder = files.folder_of(pathlib.Path(arguments[0]))
  stored = rejudge.read_stored(folder, _BENCHMARKS.value, _MODELS.value)
  if command == 'agreement':
    compare(folder, stored, arguments[1], arguments[2])
    return
  config = judge_config()
  if command == 'audit':
    audit(folder, stored, config)
    return
  judge = open_judge(folder, config)
  rejudge.rejudge(folder, stored, judge, print_benchmark, _PREFERENCE.value)
  if unknown := rejudge.without_form(folder, stored):
    print(
      f'\n{", ".join(unknown)}: no summary.json of the run says how answers are put to '
      'a judge (eval.keep_placeholder, keep_special_tokens, consistency); they were '
      'put as by default, which those of preset=paper are not'
    )
  name = names.file_name(folder, judge.identity)
  print(f'\nNumbers: {files.summary_path(folder, name)}')


def judge_config() -> JudgeConfig:
  """Returns the settings that flags give.

  Raises:
    ConfigError: names the flag that is wrong.
  """
  given = {name: holder.value for name, holder in _SETTINGS.items()}
  values: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
  values['kind'] = _JUDGE.value
  try:
    config = JudgeConfig(**values)
    return as_released(config) if _RELEASE.value else config
  except ValueError as error:
    raise ConfigError(f'--{error}') from None


def open_judge(
  folder: pathlib.Path, config: JudgeConfig, remembers: bool = True
) -> Judge:
  """Returns the judge that flags name.

  Args:
    remembers: False: one that keeps its verdicts in a file of their own.
  """
  if not remembers:
    path = folder / f'repeated_{choose.CACHE}'
    config = dataclasses.replace(config, cache=str(path))
  records = None
  if config.kind == 'world':
    records = rejudge.find_records(folder, _TRUTH.value)
  return choose.open_judge(
    config,
    folder,
    records=records,
    progress=_bar,
    keep_unscored=not _RETRY_UNSCORED.value,
  )


def print_benchmark(name: str, entry: Any) -> None:
  """Prints the numbers of a benchmark."""
  print('\n'.join(['', *judgments.table(name, entry)]), flush=True)


def compare(
  folder: pathlib.Path, stored: rejudge.Stored, first: str, second: str
) -> None:
  """Prints how far two judges agree, and writes it."""
  judges = [names.safe_name(name) for name in (first, second)]
  result = rejudge.compare(folder, stored, *judges)
  path = folder / f'agreement_{judges[0]}_{judges[1]}.json'
  files.write_text(path, json.dumps(result, indent=2) + '\n')
  print('\n'.join(judgments.agreement_table(result)))
  print(f'\nNumbers: {path}')


def audit(folder: pathlib.Path, stored: rejudge.Stored, config: JudgeConfig) -> None:
  """Prints how far a judge can be trusted, and writes it."""
  judge = open_judge(folder, config)
  repeated = open_judge(folder, config, remembers=False)
  result = rejudge.audited(folder, stored, judge, repeated)
  path = folder / f'audit_{names.file_name(folder, judge.identity)}.json'
  files.write_text(path, json.dumps(result, indent=2) + '\n')
  print('\n'.join(judgments.audit_table(result)))
  print(f'\nNumbers: {path}')


def _bar(items: Iterable[Any], total: int) -> Iterator[Any]:
  import contextlib

  import tqdm

  hidden = not (_PROGRESS.value and sys.stderr.isatty())
  with contextlib.closing(
    tqdm.tqdm(items, total=total, desc='judging', unit='verdict', disable=hidden)
  ) as bar:
    yield from bar


if __name__ == '__main__':
  process.run(main)
