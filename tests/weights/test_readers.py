"""Folders that are no checkpoints."""

from tests.weights.damage import refused


def test_no_such_folder(tmp_path):
  refused(tmp_path / 'nowhere', 'no such folder')
  (tmp_path / 'empty').mkdir()
  refused(tmp_path / 'empty', 'not a checkpoint')
