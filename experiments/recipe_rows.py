"""Rows of a sweep that are recipes of their own.

A row is what a recipe changes in the sweep's experiment, so that each recipe
is written once and trains alike alone and in a table.
"""

from collections.abc import Mapping
from typing import Any

from onerec_jax import config as config_lib
from onerec_jax import config_tree

# Of the sweep, not of a row.
_NOT_OF_A_ROW = ('name', 'seed', 'sweep', 'stages')


def row(
  name: str,
  recipe: Any,
  base: Any,
  *,
  published: str | None = None,
  **changes: Any,
) -> dict[str, Any]:
  """Returns a recipe, changed, as a row of another one's sweep.

  What the recipe has as the base has follows the base: settings given on the
  command line reach the rows that way.

  Args:
    name: of the row.
    recipe: ConfigDict.
    base: ConfigDict of the sweep.
    published: row of the published table.
    **changes: nested settings that go before the recipe's own.
  """
  wanted = config_tree.merge(_resolved(recipe), changes)
  overrides = _differences(_resolved(base), wanted)
  return {'name': name, 'published': published, 'overrides': overrides}


def _resolved(recipe: Any) -> dict[str, Any]:
  values = config_lib.to_dict(config_lib.from_config_dict(recipe))
  return {k: v for k, v in values.items() if k not in _NOT_OF_A_ROW}


def _differences(
  before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns what `config_tree.merge` has to put into `before`."""
  return {
    key: _differences(before[key], value)
    if isinstance(value, Mapping) and isinstance(before.get(key), Mapping)
    else value
    for key, value in after.items()
    if before.get(key) != value
  }
