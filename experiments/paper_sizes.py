"""Parameters of the paper-scale recipes, against the published totals.

  python -m experiments.paper_sizes

Counts shapes; makes no parameter and needs no data and no accelerator.
"""

import math
from typing import Any
from typing import NamedTuple

import jax

from experiments import onerec_tr_paper
from experiments import onerec_v1_paper
from onerec_jax import config as config_lib
from onerec_jax import sharding
from onerec_jax.aot import assumed
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import vocabulary

# Without data the catalogue has no size; no recipe has a table of items.
_NUM_ITEMS = 1


class Published(NamedTuple):
  """What a paper says of one size."""

  total: float  # parameters
  active_share: float | None = None  # of them, for one token
  # Whether only with its tables of ids a recipe can have the total: 0.015b's
  # widths make 5 M.  The report's other totals leave such tables out.
  with_id_tables: bool = False


class Counts(NamedTuple):
  """Parameters of a recipe."""

  dense: int  # all but the tables of ids and the experts
  experts: int
  active_experts: int  # those of one token
  id_tables: int  # of users, authors, tags: sparse, a few rows a token

  def total(self, published: Published) -> int:
    """Returns the number to compare with `published.total`."""
    tables = self.id_tables if published.with_id_tables else 0
    return self.dense + self.experts + tables

  def active(self, published: Published) -> int:
    """Returns the parameters that one token meets."""
    return self.total(published) - self.experts + self.active_experts


# The 13 % of 2502.18965, section 4, are of the model that is deployed.
_PUBLISHED = {
  'onerec_v1_paper:0.05b': Published(0.05e9),
  'onerec_v1_paper:0.1b': Published(0.1e9),
  'onerec_v1_paper:0.2b': Published(0.2e9),
  'onerec_v1_paper:0.5b': Published(0.5e9),
  'onerec_v1_paper:1b': Published(1e9, active_share=0.13),
  'onerec_tr_paper:0.015b': Published(0.015e9, with_id_tables=True),
  'onerec_tr_paper:0.121b': Published(0.121e9),
  'onerec_tr_paper:0.935b': Published(0.935e9),
  'onerec_tr_paper:2.633b': Published(2.633e9),
}


def published() -> dict[str, Published]:
  """Returns what is published, by 'recipe:size'; every recipe and size."""
  return dict(_PUBLISHED)


def experiment(name: str) -> config_lib.Experiment:
  """Returns the validated experiment of 'recipe:size'."""
  recipe, size = name.split(':')
  recipes: dict[str, Any] = {
    'onerec_v1_paper': onerec_v1_paper,
    'onerec_tr_paper': onerec_tr_paper,
  }
  return config_lib.from_config_dict(recipes[recipe].get_config(size))


def count(made: config_lib.Experiment) -> Counts:
  """Returns the parameters of the model of an experiment.

  Args:
    made: architecture 'onerec'; feature tables count as full.
  """
  config = made.model
  sizes = None
  if config.encoder == 'pathways':
    sizes = assumed.feature_sizes(config.pathways, _NUM_ITEMS)
  model = onerec.OneRec(
    config,
    vocabulary.Vocabulary(assumed.codes_per_level(made.tokenizer)),
    made.data.sessions.items_per_session,
    sizes=sizes,
  )
  boxes = onerec.abstract_params(model)
  names = parameters.logical_names(boxes)
  totals = {'dense': 0, 'experts': 0, 'id_tables': 0}
  shapes = jax.tree_util.tree_leaves_with_path(parameters.shapes(boxes))
  axes = jax.tree.leaves(names, is_leaf=sharding.is_axis_names)
  for (path, leaf), axis in zip(shapes, axes, strict=True):
    text = jax.tree_util.keystr(path, simple=True, separator='/')
    kind = 'dense'
    if 'expert_mlp' in axis:
      kind = 'experts'
    elif any(part in text for part in ('/users/', '/item_features/')):
      kind = 'id_tables'
    totals[kind] += math.prod(leaf.shape)
  share = config.moe.top_k / config.moe.num_experts
  return Counts(**totals, active_experts=round(totals['experts'] * share))


def table() -> str:
  """Returns the table of all sizes, as text; numbers in millions."""
  rows = [
    f'{"recipe":24}{"D":>6}{"layers":>8}{"dense":>9}{"experts":>9}'
    f'{"id tables":>11}{"total":>9}{"published":>11}{"":>8}{"active":>9}'
  ]
  for name, paper in _PUBLISHED.items():
    made = experiment(name)
    found = count(made)
    total = found.total(paper)
    layers = f'{made.model.encoder_layers}+{made.model.decoder_layers}'
    rows.append(
      f'{name:24}{made.model.embed_dim:6}{layers:>8}{found.dense / 1e6:9.1f}'
      f'{found.experts / 1e6:9.1f}{found.id_tables / 1e6:11.1f}'
      f'{total / 1e6:9.1f}{paper.total / 1e6:11.1f}'
      f'{total / paper.total - 1:+8.1%}{found.active(paper) / total:9.1%}'
    )
  return '\n'.join(rows)


if __name__ == '__main__':
  print(table())
