"""Sizes of the published test sets, for the planner, and where each number is from.

A run counts what is in its files; these numbers say what a whole test set costs before
there are any. A place is a repository, a data card by its owner and name, or an issue
as `owner/repository#number`. What nothing that we found states is `unverified`.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class TestSet:
  """How large a test set is.

  Attributes:
    items: rows of its annotation files.
    videos: that they are about; None: one each.
    source: places that state the numbers.
    unverified: those of 'items', 'videos', 'texts' that no place states.
    texts: that CLIP compares, answers included.
  """

  __test__ = False  # pytest takes it for one of its own

  items: int
  videos: int | None
  source: str
  unverified: tuple[str, ...] = ()
  texts: int = 0


# A list of benchmarks, with the numbers of a survey; no publication of a test set.
LIST = 'yogesh-iitj/VideoLLM-Benchmarks, readme'

TEST_SETS: Mapping[str, TestSet] = {
  # Videos that have questions: 504 of the 520 of the split.
  'msvd_qa': TestSet(
    13157, 504, 'card MMInstruction/M3IT (vqa/msvd-qa); tsujuifu/pytorch_violet#6'
  ),
  # A card, MMInstruction/M3IT (vqa/msrvtt-qa), counts 72,820 questions.
  'msrvtt_qa': TestSet(72821, 2990, LIST),
  'activitynet_qa': TestSet(8000, 800, 'MILVLG/activitynet-qa, readme of dataset'),
  # Frame QA alone is asked: mbzuai-oryx/Video-ChatGPT#84.
  'tgif_qa': TestSet(13691, 7132, 'YunseokJANG/tgif-qa, readme, items', ('videos',)),
  'generic': TestSet(
    1996,
    500,
    'card lmms-lab/VideoChatGPT; mbzuai-oryx/Video-ChatGPT (videos)',
  ),
  # Temporal and consistency are about the videos of generic; 998 questions in pairs.
  'temporal': TestSet(499, 0, 'card lmms-lab/VideoChatGPT'),
  'consistency': TestSet(499, 0, 'card lmms-lab/VideoChatGPT'),
  'msvd_retrieval': TestSet(670, None, 'card VLM2Vec/MSVD', texts=670 + 27763),
  'msrvtt_retrieval': TestSet(
    1000, None, 'danieljf24/hybrid_space, readme of dataset (Test1k-Yu)', texts=2000
  ),
  # 13,320 clips, of which split 1 trains on 9,537.
  'ucf101': TestSet(3783, None, 'dbcollection, docs of ucf_101', texts=3783 + 101),
  # 30 clips of each of 51 classes.
  'hmdb51': TestSet(1530, None, 'paperswithcode, dataset hmdb51', texts=1530 + 51),
  'video_mme': TestSet(2700, 900, 'BradyFU/Video-MME, readme'),
  # 20 tasks; 200 questions of each.
  'mvbench': TestSet(4000, 3641, f'evalscope, docs of mvbench (items); {LIST} (both)'),
  'next_qa': TestSet(8564, 1000, 'card lmms-lab/NExTQA (MC); doc-doc/NExT-QA#16'),
  'tempcompass': TestSet(1580, 410, f'card lmms-lab/TempCompass (items); {LIST}'),
}
