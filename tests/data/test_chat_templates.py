"""Templates of conversations beside a network: Vicuna's is ours, others are not."""

import json

import pytest

from vlm_rlaif_jax.data import chat_templates

LLAVA = (  # of llava-1.5-7b-hf, shortened
  "{% for message in messages %}{{ message['role'].upper() + ': '}}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
LLAMA3 = "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"


@pytest.mark.parametrize(
  'file', ['chat_template.jinja', 'chat_template.json', 'tokenizer_config.json']
)
@pytest.mark.parametrize('as_list', [False, True])
def test_a_template_of_another_conversation(tmp_path, file, as_list):
  def write(template):
    text = template
    if not file.endswith('.jinja'):
      value = [{'name': 'default', 'template': template}] if as_list else template
      text = json.dumps({'chat_template': value})
    (tmp_path / file).write_text(text)

  assert chat_templates.other_template(tmp_path) == ''
  write(LLAVA)
  assert chat_templates.other_template(tmp_path) == ''
  write(LLAMA3)
  assert chat_templates.other_template(tmp_path) == file


@pytest.mark.parametrize('value', [{}, {'chat_template': None}, [3]])
def test_no_template(tmp_path, value):
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(value))
  assert chat_templates.other_template(tmp_path) == ''
