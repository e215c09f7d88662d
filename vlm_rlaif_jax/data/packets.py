"""Reads what the packets of a video file say, without decoding them.

How many frames to expect, whether jumps to a frame are exact, and how long the file
claims to be: a half-downloaded file claims more than it has.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from vlm_rlaif_jax.settings.build import UserError

# Share of its claimed time, or of its claimed frames, that a whole file has at least.
WHOLE = 0.9
# Containers whose header says how long they are. Of others, FFmpeg guesses it from the
# last time in the file or from the bit rate.
HEADER_SAYS = {'mov', 'matroska', 'avi', 'asf', 'flv'}
IDR, SPS = 5, 7  # kinds of units in an H.264 stream
# of ISO files that hold pictures, which FFmpeg decodes in tiles
HEIF_BRANDS = {b'heic', b'heix', b'heim', b'heis', b'mif1'}
ASF_PROPERTIES = bytes.fromhex('a1dcab8c47a9cf118ee400c00c205365')


class VideoError(UserError):
  """A video that cannot be read; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class Packets:
  """What the packets of a file say, before anything is decoded.

  Attributes:
    displayable: packets that are not marked to be discarded.
    stored: all packets of the video.
    claimed_frames: what the header says that there are; 0 if it does not.
    claimed_end: where the header says that the video, or else the file, ends (s); 0 if
      it does not.
    others_end: where the last packet of other streams ends (s), if `claimed_end` is
      that of the file; else 0.
    exact_jumps: whether a reader that jumps to a frame by its number finds it.
  """

  displayable: int
  stored: int
  claimed_frames: int
  claimed_end: float
  others_end: float
  exact_jumps: bool


@dataclasses.dataclass(frozen=True)
class _Packet:
  """What one packet of a video says.

  Attributes:
    pts: time of display; None if the container has none.
    is_hidden: whether players drop it.
    units: kinds of its H.264 units; () if it is not one whole picture.
  """

  pts: int | None
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
    packets, others_end = [], 0.0
    for packet in read_packets(container):
      if packet.stream.index == stream.index:
        packets.append(_packet(packet, stream))
      elif packet.pts is not None and packet.time_base:
        end = (packet.pts + (packet.duration or 0)) * packet.time_base
        others_end = max(others_end, float(end))
    claimed_frames, claimed_end = 0, 0.0
    if HEADER_SAYS & set(container.format.name.split(',')):
      claimed_frames = stream.frames
      if stream.duration and stream.time_base:
        ticks = (stream.start_time or 0) + stream.duration
        claimed_end, others_end = float(ticks * stream.time_base), 0.0
      elif container.duration:
        claimed_end = container.duration / av.time_base
      elif container.format.name == 'asf':
        claimed_end = _asf_seconds(path)
      if container.format.name == 'avi' and stream.average_rate:
        # FFmpeg shortens the time of a broken AVI, not its count of frames.
        claimed_end = float(claimed_frames / stream.average_rate)
    exact = _has_exact_jumps(container, stream, packets)
  return Packets(
    displayable=sum(not packet.is_hidden for packet in packets),
    stored=len(packets),
    claimed_frames=claimed_frames,
    claimed_end=claimed_end,
    others_end=others_end,
    exact_jumps=exact,
  )


def video_stream(container: Any, path: pathlib.Path) -> Any:
  """Returns the stream that players show, which is not a cover picture."""
  stream = container.streams.best('video')
  if stream is None:
    raise VideoError(f'{path}: has no video')
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
  path: pathlib.Path, packets: Packets, available: int, end: float
) -> None:
  """Raises VideoError for a file that ends much before its header says.

  Args:
    available: frames that were decoded.
    end: where the last of them ends (s); 0 if frames have no times.
  """
  claimed, frames = packets.claimed_end, packets.claimed_frames
  # The last frames may have no duration, or one that the decoder does not tell.
  reached = max(end + 2 * end / available, packets.others_end)
  is_early = end > 0 and reached < WHOLE * claimed
  if is_early or packets.stored < WHOLE * frames:
    decoded = f'{available} frames, up to {end:.1f} s,'
    header = [f'{frames} frames'] * (frames > 0) + [f'{claimed:.1f} s'] * (claimed > 0)
    raise VideoError(
      f'{path}: {decoded} can be decoded, and its header claims '
      f'{" and ".join(header)}; if it is half a download, get it again'
    )


def _asf_seconds(path: pathlib.Path) -> float:
  """Returns the time that an ASF header claims, which FFmpeg drops in broken files."""
  with path.open('rb') as file:
    head = file.read(1 << 16)
  place = head.find(ASF_PROPERTIES)
  if place < 0 or len(head) < place + 88:
    return 0.0

  def number(offset: int) -> int:
    return int.from_bytes(head[place + offset : place + offset + 8], 'little')

  return max(0.0, number(64) / 1e7 - number(80) / 1e3)  # the play time has the preroll


def _packet(packet: Any, stream: Any) -> _Packet:
  """Returns what a packet says."""
  units: tuple[int, ...] = ()
  header = stream.codec_context.extradata
  if stream.codec_context.name == 'h264' and header and header[0] == 1:
    units = _h264_units(bytes(packet), (header[4] & 3) + 1)
  changes = any(side.data_type == 'new_extradata' for side in packet.iter_sidedata())
  if packet.is_corrupt or changes:
    units = ()
  return _Packet(packet.pts, packet.is_keyframe, packet.is_discard, units)


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
  """Returns the seconds that a file says it lasts, by its longest stream.

  Raises:
    VideoError: it cannot be opened, or does not say.
  """
  import av
  from av.error import FFmpegError

  try:
    with av.open(str(path)) as container:
      if container.duration:
        return container.duration / 1e6
      stream = video_stream(container, path)
      if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
  except (FFmpegError, OSError, ValueError) as error:
    raise VideoError(f'{path}: cannot be opened ({error})') from None
  raise VideoError(f'{path}: does not say how long it lasts')
