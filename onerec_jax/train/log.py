"""What a run reports: metrics.jsonl, TensorBoard and the progress line.

Written by process 0 only.  Computes rates and utilisation; knows no model.
"""

import json
import math
import os
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX
from etils import epath

# Dense bf16 multiply-add peak per device, FLOP/s: Google's TPU system
# documentation and NVIDIA's data sheets (no sparsity).  Key: a prefix of
# jax.Device.device_kind; the longest match wins.
PEAK_FLOPS: Mapping[str, float] = {
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5e': 197e12,
  'TPU v5': 459e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
  'TPU v6e': 918e12,
  'TPU7x': 2307e12,
  'NVIDIA A100': 312e12,
  'NVIDIA H100': 989e12,
  'NVIDIA H200': 989e12,
}

METRICS = 'metrics.jsonl'


def peak_flops(device_kind: str) -> float | None:
  """Returns the bf16 peak of one device in FLOP/s; None if not in the table."""
  known = [k for k in PEAK_FLOPS if device_kind.startswith(k)]
  return PEAK_FLOPS[max(known, key=len)] if known else None


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
  peak = peak_flops(device_kind)
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
  """Appends one record per step to metrics.jsonl and to TensorBoard."""

  def __init__(
    self, folder: epath.Path, *, resume_step: int, enabled: bool = True
  ):
    """Opens the files and drops what was logged after `resume_step`.

    Args:
      folder: the stage's folder.
      resume_step: records of later steps are removed: they will come again.
      enabled: False writes nothing (processes other than 0).
    """
    self._path = folder / METRICS
    self._enabled = enabled
    self._summary = None
    if not enabled:
      return
    records = read_metrics(self._path)
    self._lines = [
      json.dumps(record) for record in records if record['step'] <= resume_step
    ]
    self._rewrite()
    # gs:// has no append: there the file is rewritten with each record.
    self._local = '://' not in os.fspath(folder)
    self._summary = tensorboardX.SummaryWriter(
      os.fspath(folder), purge_step=resume_step + 1, flush_secs=30
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
    if self._local:
      with self._path.open('a') as file:
        file.write(line + '\n')
    else:
      self._rewrite()
    assert self._summary is not None
    for name, value in record.items():
      if name != 'step' and isinstance(value, int | float):
        # TensorBoard allows no '@' in names.
        self._summary.add_scalar(name.replace('@', '_at_'), value, step)

  def close(self) -> None:
    if self._summary is not None:
      self._summary.close()


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
  parts.append(f'ETA {duration(eta_seconds)}')
  return ' · '.join(parts)
