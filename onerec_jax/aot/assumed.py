"""Shapes of what a run would read: catalogue, trie, users and groups.

No data is needed: shapes follow from the experiment and a number of items,
and what they leave open is assumed here, in one place.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax.data import baselines
from onerec_jax.decoding import transitions as transitions_lib
from onerec_jax.semantic_ids import prefix_trie

# Items below one prefix of all codes but the last, on average.  With it, the
# fullest prefix of a million items holds about 40, as room for 128.
ITEMS_PER_PREFIX = 16


def codes_per_level(tokenizer: config_lib.TokenizerConfig) -> tuple[int, ...]:
  """Returns the level sizes of the semantic IDs.

  Raises:
    ValueError: they depend on the data.
  """
  if tokenizer.collision == 'append':
    raise ValueError(
      "tokenizer.collision='append' adds a level as large as the largest"
      ' bucket, which only the data tell; aot needs'
      " --config.tokenizer.collision=bucket (or 'reassign')."
    )
  return (tokenizer.codes_per_level,) * tokenizer.levels


def feature_sizes(
  pathways: config_lib.PathwaysConfig, num_items: int
) -> batch_lib.FeatureSizes:
  """Returns the sizes of the feature tables where every one is full.

  Args:
    pathways: features of users and items.
    num_items: of the catalogue.
  """
  return batch_lib.FeatureSizes(
    num_items=num_items,
    # The unknown value, and for texts one that the rare values share.
    users=tuple(
      max(f.buckets + 1, f.max_values + 2) for f in pathways.user_features
    ),
    items=tuple(f.vocabulary + 1 for f in pathways.item_features),
  )


def catalogue(
  model: config_lib.ModelConfig, *, levels: int, num_items: int, sharding: Any
) -> batch_lib.Catalogue:
  """Returns the shapes of the catalogue.

  Args:
    model: says whether items have features.
    levels: codes per item.
    num_items: of the catalogue.
    sharding: of every array.
  """

  def ints(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, np.int32, sharding=sharding)

  features = None
  if model.encoder == 'pathways':
    features = batch_lib.ItemFeatures(
      tuple(ints(num_items, f.max_values) for f in model.pathways.item_features)
    )
  return batch_lib.Catalogue(ints(num_items, levels), features)


def trie(
  sizes: tuple[int, ...], *, num_items: int, sharding: Any
) -> prefix_trie.PrefixTrie:
  """Returns the shapes of the trie of an assumed catalogue.

  Room for children and buckets depends on the codes, so that a trie is built:
  prefixes are drawn at random, `ITEMS_PER_PREFIX` items each on average.

  Args:
    sizes: codes per level.
    num_items: of the catalogue.
    sharding: of every array.
  """
  generator = np.random.default_rng(0)
  prefixes = generator.integers(
    0, sizes[:-1], (max(num_items // ITEMS_PER_PREFIX, 1), len(sizes) - 1)
  )
  last = generator.integers(0, sizes[-1], (num_items, 1))
  chosen = generator.integers(0, len(prefixes), num_items)
  codes = np.concatenate([prefixes[chosen], last], axis=1).astype(np.int32)
  built = prefix_trie.PrefixTrie.build(codes, sizes)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), built
  )


def transitions(
  *, num_items: int, sharding: Any
) -> transitions_lib.Transitions:
  """Returns the shapes of what followed each of `num_items` items."""
  shape = (num_items, transitions_lib.SUCCESSORS)
  return transitions_lib.Transitions(
    successors=jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding),  # pyright: ignore[reportArgumentType]
    weights=jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding),  # pyright: ignore[reportArgumentType]
    history_items=baselines.NEAR,
    history_decay=baselines.NEAR_DECAY,
  )


class Users:
  """Shapes of batches of users, rows over all devices."""

  def __init__(self, experiment: config_lib.Experiment, sharding: Any):
    """Remembers lengths.

    Args:
      experiment: its data, and the pathways of its model.
      sharding: of every array, on axis 0.
    """
    self._history = experiment.data.history_length
    self._model = experiment.model
    self._sharding = sharding

  def array(self, *shape: int, dtype: Any = jnp.int32) -> Any:
    """Returns one array of the batch."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding)

  def sessions(
    self, rows: int, *, items: int, continued: int = 0
  ) -> batch_lib.SessionBatch:
    """Returns users with targets, padded to the longest history.

    Args:
      rows: global.
      items: targets of a session.
      continued: items read beside the history, decoding.continue_items.
    """
    history = (rows, self._history + continued)
    return batch_lib.SessionBatch(
      example_id=self.array(rows),
      user=self.array(rows),
      history_items=self.array(*history),
      history_mask=self.array(*history, dtype=jnp.bool),
      target_items=self.array(rows, items),
      target_mask=self.array(rows, items, dtype=jnp.bool),
      example_mask=self.array(rows, dtype=jnp.bool),
      context=self._context(rows),
    )

  def _context(self, rows: int) -> batch_lib.UserContext | None:
    if self._model.encoder != 'pathways':
      return None
    p = self._model.pathways
    return batch_lib.UserContext(
      features=self.array(rows, len(p.user_features)),
      short=self._events(rows, p.short_length),
      positive=self._events(rows, p.positive_length),
      lifelong=self._events(rows, p.lifelong_length, clusters=True),
    )

  def _events(
    self, rows: int, length: int, *, clusters: bool = False
  ) -> batch_lib.EventSequence | None:
    if not length:
      return None
    p = self._model.pathways
    place = (rows, length)
    labels = (*place, len(p.labels))
    averaged = [f.max_values for f in p.item_features if f.average]
    values = (*place, len(averaged), max(averaged, default=0))
    return batch_lib.EventSequence(
      items=self.array(*place),
      mask=self.array(*place, dtype=jnp.bool),
      age=self.array(*place),
      numbers=self.array(*place, len(p.event_features)),
      labels=self.array(*labels, dtype=jnp.float32),
      label_mask=self.array(*labels, dtype=jnp.bool),
      categories=self.array(*values) if clusters else None,
      category_weights=(
        self.array(*values, dtype=jnp.float32) if clusters else None
      ),
    )

  def pairs(
    self, rows: int, *, candidates: int, items: int, continued: int
  ) -> batch_lib.PairBatch:
    """Returns preference pairs.

    Args:
      rows: users with a pair, filler included.
      candidates: sessions per user, the chosen one included.
      items: of a session.
      continued: as in `sessions`.
    """
    each = (rows, candidates)
    return batch_lib.PairBatch(
      session=self.sessions(rows, items=1, continued=continued),
      items=self.array(*each, items),
      mask=self.array(*each, items, dtype=jnp.bool),
      reference_log_probs=self.array(*each, dtype=jnp.float32),
      rewards=self.array(*each, dtype=jnp.float32),
    )

  def groups(
    self, rows: int, *, group_size: int, levels: int
  ) -> batch_lib.GroupBatch:
    """Returns groups of generated items.

    Args:
      rows: users with a group, filler included.
      group_size: items per user.
      levels: codes per item.
    """
    each = (rows, group_size)
    codes, number, flag = (*each, levels), jnp.float32, jnp.bool
    return batch_lib.GroupBatch(
      session=self.sessions(rows, items=1),
      codes=self.array(*codes),
      old_log_probs=self.array(*codes, dtype=number),
      reference_log_probs=self.array(*codes, dtype=number),
      rewards=self.array(*each, dtype=number),
      legal=self.array(*each, dtype=flag),
      format_mask=self.array(*each, dtype=flag),
      true_rewards=self.array(*each, dtype=number),
    )
