"""What the README and the pages say about commands, settings and files is there."""

import importlib
import pathlib
import re
import subprocess
import sys

import pytest

from docs.hooks import pages
from tests.stages import test_new_stage
from vlm_rlaif_jax.settings import describe, stages

ROOT = pathlib.Path(__file__).parents[2]
DOCS = sorted((ROOT / 'docs').rglob('*.md'))
FILES = [ROOT / 'README.md', *DOCS]
EXAMPLES = {'distill', 'scale'}  # stages of the page on adding one
SETTINGS = {
  s.name for x in stages.every().values() for s in describe.settings(x.settings)
}


def names(paths):
  return [str(path.relative_to(ROOT)) for path in paths]


def test_the_readme_is_short():
  assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


@pytest.mark.parametrize('path', FILES, ids=names(FILES))
def test_settings_on_command_lines_exist(path):
  for name in re.findall(r'--config\.([\w.]+)=', path.read_text()):
    assert name in SETTINGS or name.split('.')[0] in EXAMPLES | {'NAME'}, name


@pytest.mark.parametrize('path', FILES, ids=names(FILES))
def test_configs_exist(path):
  for stage, arg in re.findall(r'configs/(\w+)\.py(?::([\w,=.-]+))?', path.read_text()):
    if stage in EXAMPLES | {'models', 'layouts', 'STAGE'}:
      continue
    importlib.import_module(f'configs.{stage}').get_config(arg.replace('LAYOUT', ''))


@pytest.mark.parametrize('path', FILES, ids=names(FILES))
def test_commands_and_files_exist(path):
  text = path.read_text()
  for module in re.findall(r'python -m ((?:launch|examples|tests)[\w.]*\w)', text):
    place = ROOT / module.replace('.', '/')
    assert place.with_suffix('.py').is_file() or place.is_dir(), module
  for file in re.findall(r'`((?:vlm_rlaif_jax|launch|configs|tests)/[\w/.]+)`', text):
    example = any(name in file for name in EXAMPLES)
    assert example or (ROOT / file).exists(), file


@pytest.mark.parametrize('path', FILES, ids=names(FILES))
def test_no_page_names_a_place_of_one_machine(path):
  assert not re.search(r'/root/|/work/|/home/\w|/tmp/', path.read_text())


def test_links_of_the_readme_lead_somewhere():
  for target in re.findall(r'\]\(([^)#\s]+)', (ROOT / 'README.md').read_text()):
    if not target.startswith('http'):
      assert (ROOT / target).exists(), target


def test_the_configuration_has_every_section_and_every_config_file():
  text = (ROOT / 'docs' / 'configuration.md').read_text()
  shown = set()
  for stage, name in re.findall(r'\{\{ settings (\w+)\.?([\w.]*) \}\}', text):
    found = {s.name: s for s in describe.sections(stages.every()[stage].settings)}
    shown |= {setting.name for setting in found[name].settings}
  same = (('critic_quant.', 'quant.'), ('critic.', 'model.'))  # as the page says
  missing = SETTINGS - shown
  for critic, actor in same:
    missing = {name for name in missing if name.replace(critic, actor, 1) not in shown}
  assert not missing, 'add {{ settings STAGE.SECTION }} to docs/configuration.md'
  assert set(re.findall(r'\{\{ values (\w+) \}\}', text)) == set(stages.every())


def test_tables_have_types_defaults_and_links():
  table = pages.fill('{{ settings ppo.ppo }}')
  row = next(line for line in table.splitlines() if '`ppo.terminal`' in line)
  assert '<small>one of last_index, last_token</small>' in row
  assert '| `last_index` |' in row and '[B40](departures.md)' in row
  lines = pages.fill('{{ settings sft.data }}').splitlines()
  row = next(line for line in lines if '`data.ignore_fields`' in line)
  assert '| `()` |' in row  # an empty list, which two backticks would not show
  values = pages.fill('{{ values ppo }}')
  row = next(line for line in values.splitlines() if '`ppo.eval_every`' in line)
  assert row == '| `ppo.eval_every` | `10` | `5` | `10` |'


def test_the_page_on_stages_has_the_files_that_are_tested():
  page = (ROOT / 'docs' / 'adding-a-stage.md').read_text()
  for text in (test_new_stage.SETTINGS, test_new_stage.STAGE):
    assert text.strip() in page


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
  pytest.importorskip(
    'material', reason="needs the extra [docs]: pip install -e '.[docs]'"
  )
  command = ['mkdocs', 'build', '--strict', '--quiet', '--site-dir', str(tmp_path)]
  done = subprocess.run(
    [sys.executable, '-m', *command],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={'NO_MKDOCS_2_WARNING': '1', 'PATH': ''},
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert (tmp_path / 'configuration' / 'index.html').is_file()
