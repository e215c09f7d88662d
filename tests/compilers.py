"""Marks of tests that need a compiler for chips that are not here."""

import importlib.util

import pytest


def _needs(module: str, extra: str):
  found = importlib.util.find_spec(module) is not None
  return pytest.mark.skipif(not found, reason=f'needs the extra [{extra}]')


TPU, GPU = _needs('libtpu', 'tpu'), _needs('jax_cuda12_plugin', 'gpu')
