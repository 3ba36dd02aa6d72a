"""`validate-data`: checks a data set before anything is trained on it.

Lists every problem with file, row and column, and what the rules of `prepare`
would drop.  Writes nothing.
"""

import dataclasses

from onerec_jax import config
from onerec_jax.data import cleaning
from onerec_jax.data import schema
from onerec_jax.data import sources
from onerec_jax.data import tables

_FEW_EVENTS = 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
  """What is wrong with a data set, and what would be kept of it."""

  problems: tuple[schema.Problem, ...]  # errors and notices
  statistics: dict[str, object]  # of the kept data; empty after an error
  counts: dict[str, int]  # by rule of schema.RULES; empty after an error

  @property
  def ok(self) -> bool:
    """Whether `prepare` can run."""
    return not any(p.severity == 'error' for p in self.problems)

  def text(self) -> str:
    """Returns the report as lines for a terminal."""
    errors = [p for p in self.problems if p.severity == 'error']
    notices = [p for p in self.problems if p.severity != 'error']
    lines = [f'error: {p}' for p in errors]
    lines += [f'notice: {p}' for p in notices]
    for rule, number in self.counts.items():
      if number:
        lines.append(f'{rule}: {number}. {schema.RULES[rule]}')
    if self.statistics:
      lines.append(
        'kept: {users} users, {items} items, {events} events, of them'
        ' {positives} positive'.format(**self.statistics)
      )
    lines.append('OK' if self.ok else f'{len(errors)} error(s)')
    return '\n'.join(lines)


def check(data: config.DataConfig, *, seed: int = 0) -> Report:
  """Returns everything that is wrong with the data set `data` names.

  Args:
    data: as for `prepare`.
    seed: of the simulated world; other sources ignore it.
  """
  problems: list[schema.Problem] = []
  dataset = None
  try:
    if data.source == 'tables':
      dataset, problems = tables.load(data.tables)
    else:
      dataset = sources.read(data, seed=seed)
    if dataset is not None:
      schema.validate(dataset)
      clean = cleaning.clean(
        dataset,
        positive=data.positive,
        min_user_positives=data.min_user_positives,
        min_item_positives=data.min_item_positives,
      )
      notices = _notices(dataset, clean)
      return Report(
        (*problems, *notices), cleaning.statistics(clean), clean.counts
      )
  except schema.DataError as error:
    problems = [*problems, *error.problems]
  except (FileNotFoundError, ValueError) as error:
    problems = [*problems, schema.Problem(f'data.{data.source}', str(error))]
  return Report(tuple(problems), {}, {})


def describe(data: config.DataConfig, *, seed: int = 0) -> str:
  """Returns the report of `check` as text.

  Raises:
    ValueError: `prepare` cannot run on this data; the message is the report.
  """
  report = check(data, seed=seed)
  if not report.ok:
    raise ValueError(report.text())
  return report.text()


def _notices(
  dataset: schema.Dataset, clean: cleaning.CleanData
) -> list[schema.Problem]:
  """Returns what is legal but likely not meant."""
  found = []
  if clean.counts['unknown_items'] and dataset.has_item_table:
    found.append(
      f'{clean.counts["unknown_items"]} items of the interactions are not in'
      ' the item table: they will have no title, text or category.'
    )
  if clean.counts['unknown_users'] and dataset.has_user_table:
    found.append(
      f'{clean.counts["unknown_users"]} users of the interactions are not in'
      ' the user table: they will have no features.'
    )
  if clean.events.positive.all() and dataset.feedback:
    found.append(
      'every event counts as positive; set data.positive to tell them apart'
      f' by {list(dataset.feedback)}.'
    )
  if clean.events.num_events < _FEW_EVENTS:
    found.append(
      f'only {clean.events.num_events} events are left: too few to train on.'
    )
  return [
    schema.Problem(dataset.source, text, severity='notice') for text in found
  ]
