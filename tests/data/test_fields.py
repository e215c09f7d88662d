"""What the fields of a row say is compared: nothing that names a video is ignored."""

import pytest

from vlm_rlaif_jax.data import examples
from vlm_rlaif_jax.data.rows import DataError
from vlm_rlaif_jax.data.video import Video


def row(question='<video>\nWhat?', answer='Red.', **more) -> dict:
  """A good row with fields added or replaced."""
  human, gpt = {'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}
  return {'id': 'a', 'video': 'v.mp4', 'conversations': [human, gpt], **more}


def without_video(**more) -> dict:
  content = row('What?', **more)
  del content['video']
  return content


def parse(content: dict, **more) -> examples.Example:
  return examples.parse_example(content, 'f.json row 3', answered=True, **more)


ROUND = row()['conversations']
AND_THEN = {'from': 'human', 'value': 'And then?'}
VIDEO = Video(('v.mp4',))


@pytest.mark.parametrize(
  ('content', 'video'),
  [
    (row(image=None), VIDEO),
    (row(image=float('nan'), clip=None, id=float('nan')), VIDEO),
    (row(images=[]), VIDEO),
    (row(image=''), VIDEO),
    (row(video=['v.mp4']), VIDEO),
    (row(video=None, videos=['v.mp4']), VIDEO),
    (row(videos='v.mp4'), VIDEO),
    (row(video=None, images=['1.jpg', '2.jpg']), Video(('1.jpg', '2.jpg'))),
    (row('<image>\nWhat?', video=None, image='1.jpg'), Video(('1.jpg',))),
    (row('What <image>?'), VIDEO),
    (row('What?'), VIDEO),
    (row('<video>', 'A red ring.'), VIDEO),
    (without_video(video=None), None),
    (row(conversations=[ROUND]), VIDEO),
    (row(conversations=None, messages=ROUND), VIDEO),
    (row(conversations=[{**message, 'role': None} for message in ROUND]), VIDEO),
    (
      row(
        conversations=[
          {'role': 'user', 'content': '<video>What?', 'from': None},
          {'role': 'assistant', 'content': 'Red.', 'value': None},
        ]
      ),
      VIDEO,
    ),
  ],
)
def test_what_is_certain_is_read(content, video):
  example = parse(content)
  assert example.video == video
  assert example.turns[0][1] in ('Red.', 'A red ring.')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (row(image='1.jpg'), 'video and image name different files'),
    (row(images=['1.jpg', '2.jpg']), 'video and images name different files'),
    (row(videos=['w.mp4']), 'video and videos name different files'),
    (row(video=None, videos=['v.mp4', 'w.mp4']), 'videos names 2 files'),
    (row(video=None, images=['v.mp4', 'w.mp4']), 'images names 2 files'),
    (row(video=None, images=['1.jpg', None]), 'images must be a list of paths'),
    (row(video=None, image={'path': '1.jpg', 'bytes': None}), 'image must be a path'),
    (row(video=7), 'video must be a path, got 7'),
    (row(video=''), 'video is empty; name the file'),
    (row(video=None, images=[]), 'images is empty; name the file'),
    (row(video='v\0.mp4'), r'is no path'),
    (row(video='v\ud83d.mp4'), 'video: character 1 is a lone surrogate'),
    (row(video=None), r'conversations\[0\]: the mark <video> stands for a video'),
    (row('<image> What?', video=None), 'the mark <image> stands for a video'),
    (row('<im_start><image><im_end>\nWhat?'), r"mark '<im_start>' would be read as"),
    (row('<|vision_start|><video>\nWhat?'), 'would be read as text; write <video>'),
    (row('<video>\nWhat?<|eot_id|>'), r'<\|eot_id\|> is a token of a template'),
    (row(answer='A <unk>.'), r'conversations\[1\]: <unk> is a token of a template'),
    (row(conversations=[ROUND[0], {**ROUND[1], 'weight': 0}]), 'weight says that this'),
    (row(conversations=[ROUND[0], {**ROUND[1], 'train': False}]), 'train says that th'),
    (row(loss=0.0), 'loss says that this is not learned, or in part, and is'),
    (row('<video>\n<video>\nWhat?'), '2 marks for one video'),
    (row('<image>\n<video>\nWhat?'), '2 marks for one video'),
    (row('<image><image>', video=None, images=['1.jpg', '2.jpg']), '2 marks for one'),
    (row(conversations=[*ROUND, *ROUND]), r'conversations\[2\]: 2 marks for one video'),
    (
      row(conversations=[{**AND_THEN}, ROUND[1], *ROUND]),
      r'conversations\[2\]: the mark <video> must be in the first question',
    ),
    (row(video=None, image='1.jpg'), 'the mark <video> in a question about a picture'),
    (row('<Video>\nWhat?'), "the mark '<Video>' would be read as text"),
    (row('<|image_pad|> What?'), 'would be read as text'),
    (row('<image_1> What?'), 'would be read as text'),
    (row('&lt;video&gt; What?'), 'would be read as text'),
    (row(answer='It is <image>.'), r'conversations\[1\]: the video mark <image>'),
    (row(answer='It is <video>.'), r'conversations\[1\]: the video mark <video>'),
    (
      row(video=None, images=['1.jpg', '10.jpg', '2.jpg']),
      "images are sorted as text, so that '10.jpg' comes before '2.jpg'",
    ),
    (
      row(video=None, images=['v_b2/f9.jpg', *(f'v_b{i}/f1.jpg' for i in (3, 30, 4))]),
      "'v_b30/f1.jpg' comes before 'v_b4/f1.jpg'",
    ),
    (
      row('<video> <s>?'),
      r'\[0\]: <s> in a text is the token that begins',
    ),
    (row(answer='Red.</s>'), r'conversations\[1\]: </s> in a text ends the sequence'),
    (
      row(answer='Bad \ud83d.'),
      r"character 4 is a lone surrogate \('\\ud83d'\)",
    ),
    (row('<video> \udc00?'), r'conversations\[0\]: character 8 is a lone surrogate'),
    (row(id='\ud83d'), 'id: character 0 is a lone surrogate'),
    (row(answer=''), r'conversations\[1\]: the answer is blank'),
    (row(answer=' \n '), r'conversations\[1\]: the answer is blank'),
    (row(answer='\u200b\ufeff\xa0'), r'conversations\[1\]: the answer is blank'),
    (without_video(conversations=[{**AND_THEN, 'value': ' '}]), 'question is blank'),
    (row(conversations=ROUND[:1]), r'\[0\]: a question without an answer'),
    (row(conversations=[*ROUND, AND_THEN]), r'\[2\]: a question without an answer'),
    (row(conversations=[*ROUND[:1], *ROUND]), 'must take turns, human first'),
    (row(conversations=ROUND[::-1]), 'must take turns, human first'),
    (row(conversations=[*ROUND, None]), r'conversations\[2\]: must be an object'),
    (row(conversations=[ROUND, ROUND]), 'holds 2 conversations; write a row for each'),
    (row(messages=ROUND), 'conversations and messages both hold messages'),
    (row(answer=None), r"conversations\[1\]: missing key 'value'"),
    (row(answer=['Red.']), r'conversations\[1\]: value must be a str, got list'),
    (without_video(clip=[0, 4]), 'clip is a part of a video, and the row names none'),
    (row(clip=[0, True]), r'clip must be \[first, stop\] frames'),
  ],
)
def test_what_is_not_certain_is_refused(content, message):
  with pytest.raises(DataError, match=f'^f.json row 3: .*{message}') as error:
    parse(content)
  assert '\n' not in str(error.value)


UNREAD = [
  'video_path', 'videoPath', 'video_file', 'start', 'end', 'start_time', 'endTime',
  'timestamps', 'segment', 'clip_start', 'frames', 'frame_idx', 'max_frames', 'audio',
  'image_2', 'media', 'startFrame', 'start_sec', 'time_span', 'video_start', 'crop',
]  # fmt: skip


@pytest.mark.parametrize('name', UNREAD)
def test_a_field_that_could_say_what_is_seen_is_refused(name):
  with pytest.raises(DataError, match=f'row 3: {name} could say .*ignore_fields'):
    parse(row(**{name: [3.5, 7.0]}))
  assert parse(row(**{name: [3.5, 7.0]}), ignored=(name,)).video == VIDEO
  assert parse(row(**{name: None})).video == VIDEO


@pytest.mark.parametrize(
  'more',
  [
    {'source': 'web', 'task': 'qa', 'license': 'cc', 'src_data': 'anet', 'score': 0.5},
    {'video_id': 'abc', 'video_title': 'A film', 'youtube_id': 'x', 'clip_id': 3},
    {'duration': 12.5, 'fps': 25, 'width': 320, 'num_frames': 250, 'frame_rate': 25.0},
    {'timestamp': '2024-01-31T10:00', 'created_at': 7, 'response_time': 0.4},
    {'video_url': 'https://host/v1.mp4', 'thumbnail': 'v.jpg', 'video_name': 'x.mp4'},
    {'path': 'other/v.mp4', 'metadata': {'video_id': 7, 'tags': ['a', 'b']}},
    {'start': None, 'images': [], 'has_audio': False, 'video_info': {}},
    {'weight': 1.0, 'train': True, 'loss': float('nan')},
  ],
)
def test_fields_that_describe_do_not_stop_a_data_set(more):
  assert parse(row(**more)).video == VIDEO


@pytest.mark.parametrize(
  'more',
  [
    {'video_id': 'abc'},
    {'youtube_id': 'abc'},
    {'path': 'clips/abc'},
    {'source': 'clips/abc.mp4'},
    {'has_video': True},
    {'metadata': {'video_name': 'abc'}},
    {'content': [{'type': 'video', 'file': 'a.mp4'}]},
  ],
)
def test_a_row_without_a_video_must_not_hint_at_one(more):
  with pytest.raises(DataError, match='could say what is to be seen'):
    parse(without_video(**more))


def test_a_part_in_an_object_and_a_file_in_a_message_are_refused():
  with pytest.raises(DataError, match=r'meta\.start_time could say'):
    parse(row(meta={'start_time': 3, 'end_time': 4}))
  messages = [{**ROUND[0], 'video': 'w.mp4'}, ROUND[1]]
  with pytest.raises(DataError, match=r'conversations\[0\]: video could say'):
    parse(row(conversations=messages))


def test_prompts_may_end_with_a_question_and_pairs_with_a_blank():
  """Answers are neither learned nor compared there."""
  for messages in (ROUND[:1], [ROUND[0], {'from': 'gpt', 'value': ''}]):
    example = examples.parse_example(row(conversations=messages), 'f row 0')
    assert example.turns == (('What?', ''),)
