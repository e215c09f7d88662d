"""Inputs that once gave silently wrong results, one script each, with what is right.

A script makes the input of one fault and checks it, or writes the right frames or
pixels beside it. `pytest tests/cases` runs all of them; one of them by itself:

  python -m tests.cases.rows OUT [CASE ...]

They need the `ffmpeg` program with libx264, libx265 and libsvtav1.
"""
