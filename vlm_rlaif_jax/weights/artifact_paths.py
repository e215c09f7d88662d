"""Where the artifact of a stage is; imports no JAX, so that commands can ask at once.

<workdir>/<size>/<stage>/artifact/artifact.json
"""

import pathlib

NAMES = ('artifact', 'artefact')  # of folder and file; the second before 0.1.0


def result_path(stage_folder: pathlib.Path, result: str) -> pathlib.Path:
  """Returns the path of what a stage leaves, whether it exists or not.

  Where only the former spelling exists, its path is returned.

  Args:
    result: `StageSpec.result`, below the folder of the stage.
  """
  path, former = stage_folder / result, stage_folder / result.replace(*NAMES)
  return former if former.is_file() and not path.is_file() else path


def artifact_json(stage_folder: pathlib.Path) -> pathlib.Path:
  """Returns the path of `artifact.json` of a stage, whether it exists or not."""
  return result_path(stage_folder, f'{NAMES[0]}/{NAMES[0]}.json')


def is_artifact(folder: pathlib.Path) -> bool:
  """Whether a folder is the artifact itself, within the folder of its stage."""
  name = folder.absolute().name
  return name in NAMES and (folder / f'{name}.json').is_file()
