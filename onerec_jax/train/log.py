"""What a run reports: metrics.jsonl, TensorBoard and the progress line.

Written by process 0 only.  Computes rates and utilisation; knows no model.
"""

import json
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX
from etils import epath

from onerec_jax import accelerators

METRICS = 'metrics.jsonl'
_SEND_SECONDS = 60.0  # between two writings to a bucket


_SHORTEST = 1e-9  # seconds; no rate is infinite


def rates(
  counts: Mapping[str, Any], interval: Mapping[str, float], *, steps: int
) -> dict[str, float]:
  """Returns how fast an interval between two log lines was.

  Args:
    counts: what was counted, e.g. 'examples'.
    interval: seconds of 'train', of 'wait' within them, and of 'compile'.
    steps: done in it.

  Returns:
    '<count>_per_second', 'steps_per_second', 'data_wait_share' and
    'compile_seconds'.
  """
  elapsed = max(interval['train'], _SHORTEST)
  return {
    **{f'{k}_per_second': float(v) / elapsed for k, v in counts.items()},
    'steps_per_second': steps / elapsed,
    'data_wait_share': interval['wait'] / elapsed,
    'compile_seconds': interval['compile'],
  }


def model_speed(
  flops: float, seconds: float, *, device_kind: str, num_devices: int
) -> dict[str, float | None]:
  """Returns 'model_flops_per_second' and 'mfu'; arguments as `utilisation`."""
  elapsed = max(seconds, _SHORTEST)
  return {
    'model_flops_per_second': flops / elapsed,
    'mfu': utilisation(
      flops, elapsed, device_kind=device_kind, num_devices=num_devices
    ),
  }


def utilisation(
  flops: float, seconds: float, *, device_kind: str, num_devices: int
) -> float | None:
  """Returns the model FLOPs utilisation against the bf16 peak.

    mfu = flops / (seconds * peak * num_devices)

  Args:
    flops: model FLOPs done, forward and backward, all devices.
    seconds: time they took.
    device_kind: as JAX names it.
    num_devices: all devices of all processes.

  Returns:
    A share of 1, or None where the peak is unknown (CPU).
  """
  peak = accelerators.peak_flops(device_kind)
  if peak is None or seconds <= 0 or flops <= 0:
    return None
  return flops / (seconds * peak * num_devices)


def max_violation(load: np.ndarray) -> float:
  """Returns MaxVio, averaged over layers.

    MaxVio = max_i load_i / mean_i load_i - 1

  Args:
    load: tokens (or the share of tokens) per expert. [layers, E]
  Reference: Wang et al. 2024, arXiv:2408.15664, §4.1.
  """
  load = np.asarray(load, np.float64)
  mean = np.maximum(load.mean(-1), 1e-30)
  return float(np.mean(load.max(-1) / mean - 1.0))


def summarize(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Returns sums as numbers: floats, and lists for metrics with axes.

  A metric that counted nothing is left out.  'router/load' is joined by
  'router/max_violation', both over all summed batches.

  Args:
    metrics: name -> Mean of NumPy arrays.
  """
  result: dict[str, Any] = {}
  for name, mean in metrics.items():
    total = np.asarray(mean.total, np.float64)
    count = np.asarray(mean.count, np.float64)
    if not np.any(count):
      continue
    value = total / np.maximum(count, 1e-9)
    result[name] = float(value) if value.ndim == 0 else value.tolist()
    if name == 'router/load':
      result['router/max_violation'] = max_violation(value)
  return result


def _json_safe(value: Any) -> Any:
  """Returns `value` with non-finite numbers as None (JSON has no NaN)."""
  if isinstance(value, Mapping):
    return {k: _json_safe(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_json_safe(v) for v in value]
  if isinstance(value, float):
    # 7 digits: what an f32 holds, and half the bytes of repr().
    return float(f'{value:.7g}') if math.isfinite(value) else None
  return value


def read_metrics(path: epath.Path) -> list[dict[str, Any]]:
  """Returns the records of a metrics.jsonl; a line cut off is dropped.

  Raises:
    ValueError: a line other than the last is not JSON.
  """
  records = []
  lines = path.read_text().splitlines() if path.exists() else []
  for number, line in enumerate(lines, 1):
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number < len(lines):
        raise ValueError(
          f'{path}:{number} is not a JSON object: {line[:60]!r}. Delete the'
          ' line or the file; training does not read it.'
        ) from error
  return records


class MetricsWriter:
  """Appends one record per step to metrics.jsonl and to TensorBoard.

  A bucket has no append, and TensorBoard's writer no buckets: there both files
  are written whole (which a bucket does all or not at all), at most every
  `_SEND_SECONDS`, at every checkpoint and at the end.
  """

  def __init__(
    self,
    folder: epath.Path,
    *,
    resume_step: int,
    enabled: bool = True,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Opens the files and drops what was logged after `resume_step`.

    Args:
      folder: the stage's folder.
      resume_step: records of later steps are removed: they will come again.
      enabled: False writes nothing (processes other than 0).
      clock: seconds.
    """
    self._path = folder / METRICS
    self._enabled = enabled
    self._summary = None
    # Of the run, when it last logged: later than its checkpoint, perhaps.
    self.last_wall_seconds = 0.0
    if not enabled:
      return
    records = read_metrics(self._path)
    self.last_wall_seconds = max(
      (record.get('wall_seconds') or 0.0 for record in records), default=0.0
    )
    self._lines = [
      json.dumps(record) for record in records if record['step'] <= resume_step
    ]
    self._rewrite()
    self._clock = clock
    self._sent = clock()
    self._unsent = False
    self._events: str | None = None  # local folder of a bucket's event file
    if '://' in os.fspath(folder):
      self._events = tempfile.mkdtemp(prefix='onerec_events_')
    self._summary = tensorboardX.SummaryWriter(
      self._events or os.fspath(folder),
      purge_step=resume_step + 1,
      flush_secs=30,
    )

  def _rewrite(self) -> None:
    temporary = self._path.parent / f'.{METRICS}.{uuid.uuid4().hex[:8]}'
    temporary.write_text(''.join(f'{line}\n' for line in self._lines))
    temporary.replace(self._path)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes the record of one step."""
    if not self._enabled:
      return
    record = _json_safe({'step': step, **values})
    line = json.dumps(record)
    self._lines.append(line)
    assert self._summary is not None
    for name, value in record.items():
      if name != 'step' and isinstance(value, int | float):
        # TensorBoard allows no '@' in names.
        self._summary.add_scalar(name.replace('@', '_at_'), value, step)
    if self._events is None:
      with self._path.open('a') as file:
        file.write(line + '\n')
      return
    self._unsent = True
    if self._clock() - self._sent >= _SEND_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Puts what was written into the bucket; a local folder has it already."""
    if self._summary is None or self._events is None or not self._unsent:
      return
    self._summary.flush()
    self._rewrite()
    for path in epath.Path(self._events).iterdir():
      path.copy(self._path.parent / path.name, overwrite=True)
    self._unsent = False
    self._sent = self._clock()

  def close(self) -> None:
    """Writes what is left."""
    if self._summary is None:
      return
    self.flush()
    self._summary.close()
    if self._events is not None:
      shutil.rmtree(self._events, ignore_errors=True)


def duration(seconds: float) -> str:
  """Returns seconds as '1:02:03' or '2:03'."""
  total = round(max(seconds, 0.0))
  hours, minutes, seconds_left = total // 3600, total // 60 % 60, total % 60
  if hours:
    return f'{hours}:{minutes:02d}:{seconds_left:02d}'
  return f'{minutes}:{seconds_left:02d}'


def progress_line(
  step: int, total: int, values: Mapping[str, Any], *, eta_seconds: float
) -> str:
  """Returns one line for the terminal.

  Args:
    step: steps done.
    total: steps of the run.
    values: the step's record.
    eta_seconds: expected time to the end.
  """
  parts = [f'step {step}/{total}']
  for name, text in (
    ('loss', 'loss {:.4f}'),
    ('valid/loss', 'valid loss {:.4f}'),
    ('steps_per_second', '{:.2f} steps/s'),
    ('examples_per_second', '{:.0f} examples/s'),
  ):
    if values.get(name) is not None:
      parts.append(text.format(values[name]))
  parts += [
    f'{name} {value:.4f}'
    for name, value in values.items()
    if '@' in name and value is not None
  ]
  if values.get('data_wait_share') is not None:
    parts.append(f'data wait {100 * values["data_wait_share"]:.0f} %')
  if values.get('goodput') is not None:
    parts.append(f'goodput {100 * values["goodput"]:.0f} %')
  parts.append(f'ETA {duration(eta_seconds)}')
  return ' · '.join(parts)
