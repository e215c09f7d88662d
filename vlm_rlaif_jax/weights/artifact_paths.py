"""Where the artifact of a stage is; imports no JAX, so that commands can ask at once.

<workdir>/<size>/<stage>/artifact/artifact.json
"""

import pathlib

NAMES = ('artifact', 'artefact')  # of folder and file; the second before 0.1.0


def artifact_json(stage_folder: pathlib.Path) -> pathlib.Path:
  """Returns the path of `artifact.json` of a stage, whether it exists or not.

  Where only a folder of the former spelling exists, its file is returned.
  """
  path, former = (stage_folder / name / f'{name}.json' for name in NAMES)
  return former if former.is_file() and not path.is_file() else path


def is_artifact(folder: pathlib.Path) -> bool:
  """Whether a folder is the artifact itself, within the folder of its stage."""
  name = folder.absolute().name
  return name in NAMES and (folder / f'{name}.json').is_file()
