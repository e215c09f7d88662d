"""Files of rows as other programs write them, whatever their name says."""

import json
import re

import pytest

from vlm_rlaif_jax.data import rows
from vlm_rlaif_jax.data.rows import DataError

ROW = {'id': 'ä', 'conversations': []}
TEXT = json.dumps([ROW, ROW], ensure_ascii=False)
LINES = (json.dumps(ROW, ensure_ascii=False) + '\n') * 2


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('list.json', TEXT.encode()),
    ('lines.jsonl', LINES.encode()),
    ('lines.json', LINES.encode()),
    ('list.jsonl', TEXT.encode()),
    ('LINES.JSONL', LINES.encode()),
    ('mark.json', ('\ufeff' + TEXT).encode()),
    ('mark.jsonl', ('\ufeff' + LINES).encode()),
    ('joined.jsonl', (('\ufeff' + LINES[: len(LINES) // 2]) * 2).encode()),
    ('windows.jsonl', LINES.replace('\n', '\r\n').encode()),
    ('windows.json', LINES.replace('\n', '\r\n').encode()),
    ('mac.jsonl', LINES.replace('\n', '\r').encode()),
    ('blank_lines.json', ('\n\n' + LINES.replace('\n', '\n\n')).encode()),
    ('utf_16.json', TEXT.encode('utf-16')),
    ('utf_16.jsonl', LINES.encode('utf-16')),
    ('utf_32.json', TEXT.encode('utf-32')),
  ],
)
def test_rows_are_read(tmp_path, name, content):
  path = tmp_path / name
  path.write_bytes(content)
  assert [read() for _, read in rows.read_rows(path)] == [ROW, ROW]


def test_one_line_is_one_row_and_an_empty_list_is_none(tmp_path):
  path = tmp_path / 'my.json'
  path.write_text(json.dumps(ROW))
  assert [read() for _, read in rows.read_rows(path)] == [ROW]
  path.write_text('[]')
  assert rows.read_rows(path) == []


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('my.json', b'', r'empty; expected a JSON list of objects, or JSON lines'),
    ('my.jsonl', b'\xef\xbb\xbf \n', r'empty; expected'),
    ('my.json', b'{"a": ', r'not JSON \(Expecting value'),
    ('my.json', b'{"a": 1}\nx', r'line 2: not JSON'),
    ('my.json', b'{"data": [{}]}', r"of objects, got dict; write what is in 'data'"),
    ('my.json', b'7', r'must be a list of objects, got int'),
    ('my.json', '["ü"]'.encode('latin-1'), r'not UTF-8 \(byte 2\); save it as UTF-8'),
    ('my.json', TEXT.encode('utf-16-le'), r'without a byte order mark'),
    ('my.parquet', b'PAR1\0\0', r'a Parquet file; write its rows as'),
    ('my.json', b'PAR1\0\0', r'a Parquet file'),
    ('my.json.gz', b'\x1f\x8b\0', r'a gzip file'),
    ('my.json', b'[' * 100000, r'not JSON'),
    ('my.json', b'[7]', r'row 0: must be an object, got int'),
    ('my.json', b'[{"video": "a", "video": "b"}]', r"the key 'video' is there twice"),
    ('my.json', b'[{"m": [{"x": 1, "x": 2}]}]', r"row 0: the key 'x' is there twice"),
  ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, name, content, message):
  path = tmp_path / name
  path.write_bytes(content)
  expected = f'{re.escape(str(path))}.*{message}'
  with pytest.raises(DataError, match=expected) as error:
    [read() for _, read in rows.read_rows(path)]
  assert '\n' not in str(error.value)


def test_a_folder_and_a_missing_file(tmp_path):
  with pytest.raises(DataError, match='a folder; expected a file'):
    rows.read_rows(tmp_path)
  with pytest.raises(DataError, match='no such file'):
    rows.read_rows(tmp_path / 'x.json')
