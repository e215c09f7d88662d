"""Settings of evaluation."""

import dataclasses
from typing import Literal

from vlm_rlaif_jax.settings.checks import within
from vlm_rlaif_jax.settings.judge import JudgeConfig
from vlm_rlaif_jax.settings.stage import Requirement, Run, SftInput, StageSpec
from vlm_rlaif_jax.settings.text_scores import TextScoresConfig

MODELS = ('base', 'sft', 'init', 'rlaif')
WORLD_TASKS = ('qa', 'describe')  # scored by match and by facts, without a judge
OWN = 'own'  # scores their answers in a file of one's own
BENCHMARKS = (
  *('msvd_qa', 'msrvtt_qa', 'activitynet_qa', 'tgif_qa'),
  *('generic', 'temporal', 'consistency'),
  *('msvd_retrieval', 'msrvtt_retrieval', 'ucf101', 'hmdb51'),
  *('video_mme', 'mvbench', 'next_qa', 'tempcompass'),
)
# Those that the built-in world has a counterpart of, and where their videos are.
IN_WORLD = (
  *('msvd_qa', 'msrvtt_qa', 'activitynet_qa', 'generic', 'temporal', 'consistency'),
  *('msvd_retrieval', 'msrvtt_retrieval', 'ucf101', 'hmdb51', 'mvbench', 'next_qa'),
)
WORLD_VIDEOS = 'videos/test/{stem}.mp4'


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
  """Zero-shot QA and descriptions, for several checkpoints side by side."""

  # checkpoints that are evaluated: base, sft, init, rlaif
  models: tuple[str, ...] = ('base', 'sft', 'init', 'rlaif')
  # what they are evaluated by, see docs/evaluation.md; (): qa and describe, own for a
  # file of one's own, and all that the built-in world has a counterpart of
  benchmarks: tuple[str, ...] = ()
  # folder of the annotation files below data.root, or one file
  annotations: str = 'eval'
  # where the video of an annotation is, below data.root: {name}, as the file names it
  # but without .mp4 and the like, {stem}, its last part, {file}, just as it is named,
  # {dataset}, {benchmark}; with * any ending, or all pictures of a folder
  videos: str = 'videos/{name}.*'
  # videos that are asked about: those for choosing settings, or those for reporting
  split: Literal['test', 'dev'] = 'test'
  # share of a benchmark's videos that are for choosing settings; 0: none
  dev_share: float = 0.0
  clips: int = 0  # videos of the split that are used; 0: all
  temperature: float = 0.0  # temperature of sampling; 0 is greedy
  answer_tokens: int = 64  # longest answer to a question
  describe_tokens: int = 512  # longest description
  open_ended_tokens: int = 512  # longest answer that a judge reads
  # the judge reads the end of sequence in answers that have one, as in the release
  keep_special_tokens: bool = False
  # the judge reads the placeholder of the video before a question, as in the release
  keep_placeholder: bool = False
  # what the judge of consistency reads: both questions, or the first one twice
  consistency: Literal['both', 'first_twice'] = 'both'
  # instruction of multiple choice: a file of `data/prompts`, or the path of one's own
  choice_prompt: str = 'choice'
  batch: int = 32  # prompts generated at a time, over all devices
  # conversation template; llava_v0 as the reference evaluates (B31)
  template: Literal['vicuna_v1', 'llava_v0'] = 'vicuna_v1'

  def __post_init__(self):
    within(self, '>= 0', 'clips', 'temperature')
    within(self, '>= 1', 'answer_tokens', 'describe_tokens', 'open_ended_tokens')
    within(self, '>= 1', 'batch')
    within(self, '[0, 1)', 'dev_share')
    if self.split == 'dev' and not self.dev_share:
      raise ValueError("split: 'dev' needs eval.dev_share, which is 0")
    if set(self.models) - set(MODELS) or not self.models:
      raise ValueError(f'models: choose some of {", ".join(MODELS)}; got {self.models}')
    choices = (*WORLD_TASKS, OWN, *BENCHMARKS)
    if set(self.benchmarks) - set(choices):
      raise ValueError(
        f'benchmarks: choose some of {", ".join(choices)}; got {self.benchmarks}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalInputs(SftInput):
  """Artifacts of earlier stages that are evaluated."""

  init: str = ''  # folder of stage init; '': `<workdir>/<size>/init`
  ppo: str = ''  # folder of stage ppo; '': `<workdir>/<size>/ppo`
  # folder of stage reward whose model, of any size, scores the answers to a file of
  # one's own; '': none does
  reward: str = ''
  reward_base: str = ''  # folder of its base; '': where its artifact records it
  # folder of the stage sft that tuned that base, or 'merged'; '': as recorded
  reward_sft: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalRun(Run):
  """Checkpoints side by side on held-out videos."""

  eval: EvalConfig = EvalConfig()
  judge: JudgeConfig = JudgeConfig()
  text_scores: TextScoresConfig = TextScoresConfig()
  inputs: EvalInputs = EvalInputs()

  def __post_init__(self):
    super().__post_init__()
    inputs = self.inputs
    if inputs.reward and OWN not in self.benchmarks:
      raise ValueError(
        "inputs.reward: scores the answers to 'own', which is not among the "
        f'benchmarks {self.benchmarks}; name a file of samples (data.train), or add it '
        'to eval.benchmarks'
      )
    if (inputs.reward_base or inputs.reward_sft) and not inputs.reward:
      raise ValueError(
        'inputs.reward_base, reward_sft: of inputs.reward, which is empty'
      )
    for name in ('answer_tokens', 'describe_tokens'):
      shortest, answer = self.data.buckets[0], getattr(self.eval, name)
      self._check_room(f'eval.{name}', self.data.frames, shortest, answer)

  @property
  def benchmarks(self) -> tuple[str, ...]:
    """What is evaluated: what was chosen, or what the data have."""
    if self.eval.benchmarks:
      return tuple(dict.fromkeys(self.eval.benchmarks))
    if self.data.train:
      return ('qa', OWN)
    return WORLD_TASKS if self.data.root else (*WORLD_TASKS, *IN_WORLD)

  @property
  def videos(self) -> str:
    """Where videos of annotations are; in the built-in world they have one place."""
    return self.eval.videos if self.data.root else WORLD_VIDEOS


def requires(settings: EvalRun) -> list[Requirement]:
  """Returns the artifacts that the models of an evaluation are made of."""
  models = set(settings.eval.models)
  readers = {
    'sft': models - {'base'},
    'ppo': models & {'rlaif'},
    'init': models & {'init'},
  }
  return [
    Requirement(stage, settings.size, stage) for stage in readers if readers[stage]
  ]


def summary_line(summary: dict) -> str:
  """Returns what the terminal prints when the stage is done."""
  benchmarks = summary.get('benchmarks', {})
  names = ', '.join(name for name, one in benchmarks.items() if 'items' in one)
  seconds = summary.get('seconds', {})  # not in summaries of before
  spent = sum(seconds.get(part, 0.0) for part in ('benchmarks', 'scores'))
  took = f' ({spent:.0f} s)' if seconds else ''
  if not summary['questions']['qa']:
    return f'benchmarks of split {summary["split"]}{took}: {names}'
  accuracies = ', '.join(
    f'{name} {summary[name]["qa_accuracy"]:.1%}'
    for name in MODELS
    if 'qa_accuracy' in summary.get(name, {})
  )
  scope = f'QA of {summary["questions"]["qa"]} questions about {summary["videos"]}'
  text = f'{scope} videos (split {summary["split"]}): {accuracies}'
  return f'{text}; benchmarks{took}: {names}' if names else text


STAGE = StageSpec(
  settings=EvalRun,
  run='vlm_rlaif_jax.stages.eval:run',
  summary_line=summary_line,
  requires=requires,
  result='summary.json',
  phases='vlm_rlaif_jax.plan.generation:eval_phases',
  resident='vlm_rlaif_jax.plan.generation:eval_resident',
  batches=lambda settings: [('config.eval.batch', settings.eval.batch)],
)
