"""One example record, a user of one split, and its bytes.

The format is little endian and carries a version; `decode_record` refuses
anything else.  Knows nothing of files.
"""

import dataclasses
import struct

import numpy as np
from jaxtyping import Bool
from jaxtyping import Int

FORMAT_VERSION = 1
_MAGIC = b'1Rec'
# magic, version, 3 reserved bytes, user, number of events, number of starts,
# padding to a multiple of 8 so that the timestamps that follow are aligned.
_HEADER = struct.Struct('<4sB3xiiixxxx')


@dataclasses.dataclass(frozen=True, eq=False)
class UserRecord:
  """The events of one user that a split may see, and where targets begin."""

  user: int  # dense user index
  items: Int[np.ndarray, ' n']  # dense item indices, oldest first
  positive: Bool[np.ndarray, ' n']  # event counts as history
  timestamps: Int[np.ndarray, ' n']  # microseconds UTC, or ranks
  # Event positions where a target session may begin, strictly rising; its
  # history is the positive events before that position.
  target_starts: Int[np.ndarray, ' p']
  # Target items from there that belong to the split and the session, >= 1;
  # counted in positive events if the file holds target_events='positive'.
  target_lengths: Int[np.ndarray, ' p']


def encode_record(record: UserRecord) -> bytes:
  """Returns the bytes of one record (little endian, see `decode_record`)."""
  return b''.join(
    (
      _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION,
        record.user,
        len(record.items),
        len(record.target_starts),
      ),
      record.timestamps.astype('<i8').tobytes(),
      record.items.astype('<i4').tobytes(),
      record.target_starts.astype('<i4').tobytes(),
      record.target_lengths.astype('<i4').tobytes(),
      np.packbits(record.positive).tobytes(),
    )
  )


def decode_record(data: bytes) -> UserRecord:
  """Returns the record in `data`; its arrays are read-only views of the bytes.

  Layout: header (magic, version, user, n events, p starts), timestamps i8[n],
  items i4[n], target_starts i4[p], target_lengths i4[p], positive bits[n].

  Raises:
    ValueError: the bytes are not a record of this format and version.
  """
  if len(data) < _HEADER.size or not data.startswith(_MAGIC):
    raise ValueError(
      f'Not an example record: {len(data)} bytes that begin with'
      f' {bytes(data[:4])!r}, expected {_MAGIC!r}. The file was not written by'
      " the stage 'prepare' or is damaged; run `prepare` again."
    )
  _, version, user, events, starts = _HEADER.unpack_from(data)
  if version != FORMAT_VERSION:
    raise ValueError(
      f'Example record of format version {version}, this program reads version'
      f' {FORMAT_VERSION}. Run the stage `prepare` again.'
    )
  size = _HEADER.size + 12 * events + 8 * starts + (events + 7) // 8
  if events < 0 or starts < 0 or len(data) != size:
    raise ValueError(
      f'Damaged example record of user {user}: {len(data)} bytes for {events}'
      f' events and {starts} target starts, expected {size}. Run the stage'
      ' `prepare` again.'
    )
  at = _HEADER.size
  arrays = []
  for dtype, count in (
    ('<i8', events),
    ('<i4', events),
    ('<i4', starts),
    ('<i4', starts),
  ):
    arrays.append(np.frombuffer(data, dtype, count, at))
    at += arrays[-1].nbytes
  timestamps, items, target_starts, target_lengths = arrays
  bits = np.frombuffer(data, np.uint8, (events + 7) // 8, at)
  return UserRecord(
    user=user,
    items=items,
    positive=np.unpackbits(bits, count=events).view(bool),
    timestamps=timestamps,
    target_starts=target_starts,
    target_lengths=target_lengths,
  )


def check_record(record: UserRecord) -> None:
  """Raises ValueError if a record contradicts itself."""
  starts, lengths = record.target_starts, record.target_lengths
  problem = None
  if record.user < 0 or (len(record.items) and record.items.min() < 0):
    problem = 'user and items must be at least 0'
  elif len(starts) and (
    starts[0] < 0
    or starts[-1] >= len(record.items)
    or np.any(starts[1:] <= starts[:-1])
  ):
    problem = f'target_starts must rise within 0..{len(record.items) - 1}'
  elif len(starts) and (
    lengths.min() < 1 or np.any(starts + lengths > len(record.items))
  ):
    problem = 'target_lengths must be >= 1 and end with the events'
  if problem:
    raise ValueError(
      f'Bad example of user {record.user}: {problem}; got'
      f' {len(record.items)} events, target_starts={starts.tolist()},'
      f' target_lengths={lengths.tolist()}.'
    )
