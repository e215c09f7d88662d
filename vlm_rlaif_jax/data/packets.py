"""Reads what the packets of a video file say, without decoding them.

How many frames to expect, whether jumps to a frame are exact, and how long the file
claims to be: a half-downloaded file claims more than it has.
"""

import dataclasses
import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from vlm_rlaif_jax.settings.build import UserError

# Share of its claimed time, or of its claimed frames, that a whole file has at least.
WHOLE = 0.9
# Containers whose header says how long they are. Of others, FFmpeg guesses it from the
# last time in the file or from the bit rate.
HEADER_SAYS = {'mov', 'matroska', 'avi', 'asf', 'flv'}
# Of these, where the length is that of the file up to the last time in it, whatever the
# first one is. FLV counts from the first time, the others have a length of each stream.
CLAIMS_END = {'matroska', 'asf'}
IDR, SPS = 5, 7  # kinds of units in an H.264 stream
# of ISO files that hold pictures, which FFmpeg decodes in tiles
HEIF_BRANDS = {b'heic', b'heix', b'heim', b'heis', b'mif1'}
ASF_PROPERTIES = bytes.fromhex('a1dcab8c47a9cf118ee400c00c205365')
FLV_DURATION = b'\x00\x08duration\x00'  # a name and its length, the type of a number


class VideoError(UserError):
  """A video that cannot be read; the message names the file and the reason."""


class UntimedError(VideoError):
  """A video of which nothing says how long it lasts."""


@dataclasses.dataclass(frozen=True)
class Packets:
  """What the packets of a file say, before anything is decoded.

  Attributes:
    displayable: packets that are not marked to be discarded.
    stored: all packets of the video; of an AVI, also the frames that have none.
    claimed_frames: what the header says that there are; 0 if it does not.
    claimed_s: how long the header says that the video, or else the file, is (s); 0 if
      it does not.
    start: the time from which `claimed_s` counts (s).
    others_s: from `start` to the end of the last packet of other streams (s), if
      `claimed_s` is of the file; else 0.
    exact_jumps: whether a reader that jumps to a frame by its number finds it.
  """

  displayable: int
  stored: int
  claimed_frames: int
  claimed_s: float
  start: float
  others_s: float
  exact_jumps: bool


@dataclasses.dataclass(frozen=True)
class _Packet:
  """What one packet of a video says.

  Attributes:
    pts: time of display; None if the container has none.
    dts: time of decoding; likewise.
    is_hidden: whether players drop it.
    units: kinds of its H.264 units; () if it is not one whole picture.
  """

  pts: int | None
  dts: int | None
  is_keyframe: bool
  is_hidden: bool
  units: tuple[int, ...]


def scan(path: pathlib.Path) -> Packets:
  """Reads all packets of a file."""
  import av

  with path.open('rb') as file:
    head = file.read(12)
  if head[4:8] == b'ftyp' and head[8:] in HEIF_BRANDS:
    raise VideoError(f'{path}: a HEIC picture; write it as a JPEG or PNG')
  with av.open(str(path)) as container:
    stream = video_stream(container, path)
    claimed_frames, claimed_s, start = _claims(container, stream, path)
    packets, others_end = [], 0.0
    first: dict[Any, int] = {}  # earliest time of each stream, in its ticks
    for packet in read_packets(container):
      for ticks in (packet.pts, packet.dts):
        if ticks is not None:
          first[packet.stream] = min(ticks, first.get(packet.stream, ticks))
      if packet.stream.index == stream.index:
        packets.append(_packet(packet, stream))
      elif packet.pts is not None and packet.time_base:
        end = (packet.pts + (packet.duration or 0)) * packet.time_base
        others_end = max(others_end, float(end))
    exact = _has_exact_jumps(container, stream, packets)
    # An AVI counts frames that repeat the one before, too. They have no packets, only
    # numbers, which are its times.
    numbered = packets if 'avi' in _formats(container) else []
    repeats_end = max(
      (packet.dts + 1 for packet in numbered if packet.dts is not None), default=0
    )
    others_s = 0.0
    if start is None:
      start = min((float(n * s.time_base) for s, n in first.items()), default=0.0)
      others_s = max(0.0, others_end - start)
      # A writer that counts from the first time says less than that time at the most.
      if CLAIMS_END & _formats(container) and claimed_s > start:
        claimed_s -= start
  return Packets(
    displayable=sum(not packet.is_hidden for packet in packets),
    stored=max(len(packets), repeats_end),
    claimed_frames=claimed_frames,
    claimed_s=claimed_s,
    start=start,
    others_s=others_s,
    exact_jumps=exact,
  )


def _formats(container: Any) -> set[str]:
  """Returns FFmpeg's names of the format of a file."""
  return set(container.format.name.split(','))


def _claims(
  container: Any, stream: Any, path: pathlib.Path
) -> tuple[int, float, float | None]:
  """Returns what the header says. Reading packets changes it, so this comes before.

  Returns:
    frames and seconds, 0 where it does not say, and the time from which the seconds
    count; None if they are of the whole file.
  """
  import av

  formats = _formats(container)
  if not HEADER_SAYS & formats:
    return 0, 0.0, 0.0
  # FFmpeg shortens the time of a broken AVI, not its count of frames.
  if 'avi' in formats and stream.average_rate:
    return stream.frames, float(stream.frames / stream.average_rate), 0.0
  # In other formats FFmpeg may fill in the duration of the file as that of a stream.
  if 'mov' in formats and stream.duration and stream.time_base:
    start = float((stream.start_time or 0) * stream.time_base)
    return stream.frames, float(stream.duration * stream.time_base), start
  # Of files that are cut, and of FLV without a duration, FFmpeg says what it guesses.
  if 'flv' in formats:
    return stream.frames, _flv_seconds(path), None
  if 'asf' in formats:
    return stream.frames, _asf_seconds(path), None
  return stream.frames, (container.duration or 0) / av.time_base, None


def video_stream(container: Any, path: pathlib.Path) -> Any:
  """Returns the stream that players show; raises VideoError for a cover picture."""
  from av.stream import Disposition

  stream = container.streams.best('video')
  if stream is None:
    raise VideoError(f'{path}: has no video')
  if stream.disposition & Disposition.attached_pic:
    raise VideoError(f'{path}: has sound and a cover picture, but no video')
  return stream


def read_packets(container: Any, stream: Any = None) -> Iterator[Any]:
  """Yields packets up to the end of a file, or up to where it is broken."""
  from av.error import FFmpegError

  packets = container.demux(stream) if stream else container.demux()
  while True:
    try:
      packet = next(packets)
    except (StopIteration, FFmpegError):
      return
    if packet.size:
      yield packet


def check_length(
  path: pathlib.Path, packets: Packets, available: int, end: float | None
) -> None:
  """Raises VideoError for a file that ends much before its header says.

  Args:
    available: frames that were decoded.
    end: where the last of them ends (s); None if frames have no times.
  """
  claimed, frames = packets.claimed_s, packets.claimed_frames
  length = 0.0 if end is None else max(0.0, end - packets.start)
  # The last frames may have no duration, or one that the decoder does not tell.
  reached = max(length + 2 * length / available, packets.others_s)
  is_early = end is not None and reached < WHOLE * claimed
  if is_early or packets.stored < WHOLE * frames:
    decoded = f'{available} frames, up to {length:.1f} s,'
    header = [f'{frames} frames'] * (frames > 0) + [f'{claimed:.1f} s'] * (claimed > 0)
    raise VideoError(
      f'{path}: {decoded} can be decoded, and its header claims '
      f'{" and ".join(header)}; if it is half a download, get it again'
    )


def _asf_seconds(path: pathlib.Path) -> float:
  """Returns the time that an ASF header claims; 0 without one, as of a broadcast."""
  with path.open('rb') as file:
    head = file.read(1 << 16)
  place = head.find(ASF_PROPERTIES)
  if place < 0 or len(head) < place + 92 or head[place + 88] & 1:
    return 0.0

  def number(offset: int) -> int:
    return int.from_bytes(head[place + offset : place + offset + 8], 'little')

  return max(0.0, number(64) / 1e7 - number(80) / 1e3)  # the play time has the preroll


def _flv_seconds(path: pathlib.Path) -> float:
  """Returns the time that an FLV header claims; 0 without one."""
  with path.open('rb') as file:
    head = file.read(1 << 16)
  place = head.find(FLV_DURATION)
  value = head[place + len(FLV_DURATION) :][:8]
  if place < 0 or len(value) < 8:
    return 0.0
  seconds = struct.unpack('>d', value)[0]
  return seconds if 0 < seconds < math.inf else 0.0


def _packet(packet: Any, stream: Any) -> _Packet:
  """Returns what a packet says."""
  units: tuple[int, ...] = ()
  header = stream.codec_context.extradata
  if stream.codec_context.name == 'h264' and header and header[0] == 1:
    units = _h264_units(bytes(packet), (header[4] & 3) + 1)
  changes = any(side.data_type == 'new_extradata' for side in packet.iter_sidedata())
  if packet.is_corrupt or changes:
    units = ()
  return _Packet(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard, units)


def _h264_units(data: bytes, size_bytes: int) -> tuple[int, ...]:
  """Returns the kinds of the units in a packet; () unless it is exactly one picture.

  Args:
    size_bytes: bytes of the number before each unit, which is its size.
  """
  kinds, pictures, place = [], 0, 0
  while place + size_bytes < len(data):
    size = int.from_bytes(data[place : place + size_bytes], 'big')
    place += size_bytes
    if not size or place + size > len(data):
      return ()
    kind = data[place] & 31
    # The first slice of a picture starts at block 0, which is coded as a first bit 1.
    if kind in (1, IDR):
      pictures += size > 1 and data[place + 1] >> 7
    kinds.append(kind)
    place += size
  return tuple(kinds) if place == len(data) and pictures == 1 else ()


def _has_exact_jumps(container: Any, stream: Any, packets: list[_Packet]) -> bool:
  """Returns whether jumps by number are exact, by the packets alone.

  They are for H.264 with 8 bits in an mp4 or mov file if
  - the header counts as many frames as there are packets, each packet is one whole
    picture, and none is hidden by an edit list or changes the header,
  - every packet has its own time of display, so that the order of frames is known,
  - the first packet is a keyframe, every keyframe resets the decoder (IDR), and groups
    are closed: nothing before a keyframe is shown after it, and the other way round.
  Then decoding from a keyframe gives what decoding from the front gives.
  """
  codec = stream.codec_context
  if 'mp4' not in container.format.name.split(',') or codec.name != 'h264':
    return False
  if codec.pix_fmt != 'yuv420p' or stream.frames != len(packets) or not packets:
    return False
  if any(
    packet.is_hidden or packet.pts is None or not packet.units or SPS in packet.units
    for packet in packets
  ):
    return False
  times = [packet.pts for packet in packets if packet.pts is not None]
  if len(set(times)) != len(times) or not packets[0].is_keyframe:
    return False
  latest = np.maximum.accumulate(times)
  earliest = np.minimum.accumulate(times[::-1])[::-1]
  return all(
    IDR in packet.units
    and earliest[number] == times[number]
    and (number == 0 or latest[number - 1] < times[number])
    for number, packet in enumerate(packets)
    if packet.is_keyframe
  )


def duration(path: pathlib.Path) -> float:
  """Returns the seconds that a file says its video lasts, or else its longest stream.

  Of one that does not say, as a recording that was streamed, its packets tell.

  Raises:
    VideoError: it cannot be opened; UntimedError: neither header nor packets say.
  """
  import av
  from av.error import FFmpegError

  try:
    with av.open(str(path)) as container:
      stream, formats = video_stream(container, path), _formats(container)
      if stream.duration and stream.time_base and 'mov' in formats:
        return float(stream.duration * stream.time_base)
      if container.duration:
        ticks, start = container.duration, container.start_time or 0
        # Less the time before the first one, which also FFmpeg's guess of an FLV has.
        is_guess = 'flv' in formats and not _flv_seconds(path)
        if (CLAIMS_END & formats or is_guess) and ticks > start:
          ticks -= start
        return ticks / av.time_base
      seconds = _packet_seconds(container, stream)
  except VideoError:
    raise
  except (FFmpegError, OSError, ValueError) as error:
    raise VideoError(f'{path}: cannot be opened ({error})') from None
  if seconds:
    return seconds
  raise UntimedError(f'{path}: does not say how long it lasts')


def _packet_seconds(container: Any, stream: Any) -> float:
  """Returns the seconds from the first to the end of the last packet; 0 without times.

  The rate that FFmpeg names where a stream has no times is a guess.
  """
  timed = (one for one in read_packets(container, stream) if one.pts is not None)
  times = [(one.pts, one.pts + (one.duration or 0)) for one in timed]
  starts, ends = zip(*times, strict=True) if times else ((0,), (0,))
  return float((max(ends) - min(starts)) * stream.time_base)
