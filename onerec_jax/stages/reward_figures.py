"""Figures of several models under one judge of sessions or of items.

What both judges do with what they have measured; asks no model and knows no
reward.
"""

from collections.abc import Mapping
from typing import Any
from typing import Protocol
from typing import runtime_checkable

import numpy as np
from jaxtyping import Float

from onerec_jax import config
from onerec_jax import session_rewards


@runtime_checkable
class Judge(Protocol):
  """Whose columns they are, and how many answers he asked for."""

  @property
  def experiment(self) -> config.Experiment: ...

  @property
  def names(self) -> tuple[str, ...]:
    """Rewards."""
    ...

  @property
  def columns(self) -> tuple[str, ...]:
    """Figures of a user."""
    ...

  @property
  def settings(
    self,
  ) -> config.SessionEvaluationConfig | config.ItemEvaluationConfig: ...

  @property
  def asked(self) -> dict[str, int]:
    """Answers per user, as result files name them."""
    ...


@runtime_checkable
class Measured(Protocol):
  """What one model's answers are worth."""

  @property
  def values(self) -> Float[np.ndarray, 'U columns']: ...

  @property
  def legality(self) -> dict[str, float]: ...


def of_methods(
  judge: Judge,
  values: Mapping[str, Float[np.ndarray, 'U columns']],
  *,
  base: str,
) -> dict[str, dict[str, Any]]:
  """Returns `session_rewards.summarize_methods` by the judge's settings.

  Args:
    judge: whose columns the values are.
    values: per method and user; NaN: a user without a legal answer.
    base: name of the method that the others are compared to.
  """
  return session_rewards.summarize_methods(
    values,
    base=base,
    columns=judge.columns,
    resamples=judge.settings.resamples,
    resample_users=judge.settings.resample_users,
    bootstrap_samples=judge.experiment.evaluate.bootstrap_samples,
    seed=judge.experiment.seed,
  )


def compare(
  judge: Judge, measured: Mapping[str, Measured], *, base: str
) -> dict[str, Any]:
  """Returns JSON-able figures of every model and its difference to `base`."""
  values = {name: found.values for name, found in measured.items()}
  methods = of_methods(judge, values, base=base)
  for name, found in measured.items():
    methods[name]['legality'] = found.legality
  return {
    'targets': list(judge.names),
    'columns': list(judge.columns),
    'base': base,
    **judge.asked,
    'resamples': judge.settings.resamples,
    'methods': methods,
  }
