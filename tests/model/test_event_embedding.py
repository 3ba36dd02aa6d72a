"""Embeddings of users, items and events against NumPy look-ups."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import batch
from onerec_jax import config
from onerec_jax.model import event_embedding
from onerec_jax.model import parameters

PATHWAYS = config.PathwaysConfig(
  user_id_buckets=11,
  user_id_dim=3,
  user_features=(
    config.UserFeature(column='age', dim=4),
    config.UserFeature(column='sex', dim=2),
  ),
  item_features=(
    config.ItemFeature(name='aid', dim=3),
    config.ItemFeature(name='tag', dim=5, average=True),
  ),
  event_features=(config.EventFeature(column='play_time', dim=2, buckets=6),),
  labels=('is_like', 'is_follow'),
  label_dim=4,
  age_dim=3,
  age_buckets=7,
)
SIZES = batch.FeatureSizes(num_items=4, users=(6, 3), items=(4, 9))
ITEMS = batch.ItemFeatures(
  (
    np.array([[1], [0], [3], [2]], np.int32),
    np.array([[1, 2, 8], [4, 0, 0], [0, 0, 0], [5, 5, 6]], np.int32),
  )
)


def events(**changes):
  fields = {
    'items': np.array([[0, 2, 3], [1, 1, 0]], np.int32),
    'mask': np.array([[False, True, True], [True, True, True]]),
    'age': np.array([[0, 1, 7], [0, 2, 3]], np.int32),
    'numbers': np.array([[[0], [1], [6]], [[0], [2], [3]]], np.int32),
    'labels': np.array(
      [[[0, 0], [1, 0], [0, 1]], [[0, 0], [1, 1], [0, 0]]], np.float32
    ),
    'label_mask': np.array(
      [[[0, 0], [1, 0], [1, 1]], [[0, 0], [1, 1], [1, 1]]], bool
    ),
  }
  return batch.EventSequence(**(fields | changes))


VECTORS = np.random.default_rng(1).normal(size=(2, 3, 8)).astype(np.float32)


def on_device(tree):
  return jax.tree.map(jnp.asarray, tree)


def build(module, *inputs):
  inputs = on_device(inputs)
  abstract = jax.eval_shape(module.init, jax.random.key(0), *inputs)['params']
  return parameters.materialize(abstract, seed=0)


@pytest.fixture(name='embedding', scope='module')
def fixture_embedding():
  module = event_embedding.EventEmbedding(PATHWAYS, SIZES)
  params = build(module, events(), jnp.asarray(VECTORS), ITEMS)

  def apply(sequence, vectors=VECTORS, params=params):
    return module.apply(
      {'params': params}, *on_device((sequence, vectors, ITEMS))
    )

  return module, params, apply


# --- Users ------------------------------------------------------------------


def test_user_features_lie_side_by_side_and_strange_ids_count_as_unknown():
  module = event_embedding.UserEmbedding(PATHWAYS, SIZES)
  ids = np.array([[1, 2], [0, 0], [6, 99], [5, -1]], np.int32)
  users = np.array([3, 4, 3, 1000], np.int32)
  params = build(module, ids, users)
  got = np.asarray(module.apply({'params': params}, *on_device((ids, users))))
  assert got.shape == (4, module.dim) == (4, 4 + 2 + 3)
  age, sex = params['feature_0'], params['feature_1']
  np.testing.assert_array_equal(got[:, :4], age[[1, 0, 0, 5]])
  np.testing.assert_array_equal(got[:, 4:6], sex[[2, 0, 0, 0]])
  # The hash: the same user, the same row of the table.
  table = params['user_id']
  rows = [((int(u) * 0x9E3779B1) % 2**32 >> 8) % 11 for u in users]
  np.testing.assert_array_equal(got[:, 6:], table[rows])


def test_users_without_features_have_an_empty_embedding():
  module = event_embedding.UserEmbedding(
    config.PathwaysConfig(), batch.FeatureSizes(4, (), ())
  )
  got = module.apply({}, jnp.zeros((3, 0), jnp.int32), jnp.zeros(3, jnp.int32))
  assert module.dim == 0 and got.shape == (3, 0)


# --- Items ------------------------------------------------------------------


def test_item_features_are_means_over_known_values():
  module = event_embedding.ItemFeatureEmbedding(PATHWAYS, SIZES)
  items = jnp.asarray([[0, 1], [2, 3]])
  params = build(module, items, ITEMS)
  aid, tag = module.apply({'params': params}, items, ITEMS)
  a, t = params['feature_0'], params['feature_1']
  np.testing.assert_array_equal(
    aid, [[a[1], np.zeros(3)], [a[3], a[2]]], strict=False
  )
  want = [
    [(t[1] + t[2] + t[8]) / 3, t[4]],
    [np.zeros(5), (2 * t[5] + t[6]) / 3],
  ]
  np.testing.assert_allclose(tag, want, rtol=1e-6)
  # Neither the order of the values nor how many are padding matters, and a
  # value that the table lacks is padding.
  values = np.pad(ITEMS.values[1][:, ::-1], ((0, 0), (1, 1)))
  values[0, 0] = 9
  other = batch.ItemFeatures((ITEMS.values[0], values))
  again = module.apply({'params': params}, items, other)[1]
  np.testing.assert_allclose(again, want, rtol=1e-6)


# --- Events -----------------------------------------------------------------


def test_an_event_is_everything_known_of_it_side_by_side(embedding):
  module, params, apply = embedding
  got = np.asarray(apply(events()))
  assert got.shape == (2, 3, 8 + module.dim)
  assert module.dim == 3 + 5 + 2 + 3 + 4
  a, t = (params['item_features'][f'feature_{q}'] for q in range(2))
  happened, logged = params['labels']
  np.testing.assert_array_equal(got[0, 0], 0)  # padding
  # Row 0, second event: item 2 (no tag), is_like 1 and is_follow unknown.
  want = np.concatenate(
    [
      VECTORS[0, 1],
      a[3],
      np.zeros(5),
      params['number_0'][1],
      params['age'][1],
      happened[0] + logged[0],
    ]
  )
  np.testing.assert_allclose(got[0, 1], want, rtol=1e-6)
  # Row 1, second event: item 1 (no aid), both labels happened.
  want = np.concatenate(
    [
      VECTORS[1, 1],
      np.zeros(3),
      t[4],
      params['number_0'][2],
      params['age'][2],
      happened.sum(0) + logged.sum(0),
    ]
  )
  np.testing.assert_allclose(got[1, 1], want, rtol=1e-6)


def test_an_unknown_label_differs_from_one_that_did_not_happen(embedding):
  _, _, apply = embedding
  no_label = events(labels=np.zeros((2, 3, 2), np.float32))
  unknown = dataclasses.replace(
    no_label, label_mask=np.zeros_like(no_label.label_mask)
  )
  known = dataclasses.replace(
    no_label, label_mask=np.ones_like(no_label.label_mask)
  )
  assert (np.asarray(apply(unknown)) != apply(known))[0, 1].any()
  # What a masked label says does not matter.
  lies = dataclasses.replace(unknown, labels=np.ones((2, 3, 2), np.float32))
  np.testing.assert_array_equal(apply(lies), apply(unknown))


def test_masked_events_are_zero_whatever_they_hold(embedding):
  _, _, apply = embedding
  items = events().items.copy()
  items[0, 0] = 3
  vectors = VECTORS.copy()
  vectors[0, 0] = 1e9
  np.testing.assert_array_equal(
    apply(events(items=items), vectors), apply(events())
  )


def test_clusters_average_the_marked_features_only(embedding):
  _, params, apply = embedding
  shape = (2, 3, 1, 2)  # one averaged feature, two values
  categories = np.zeros(shape, np.int32)
  weights = np.zeros(shape, np.float32)
  categories[1, 1, 0] = 3, 7
  weights[1, 1, 0] = 0.25, 0.75
  labels = events().labels * np.float32(0.5)
  plain = np.asarray(apply(events(labels=labels)))
  got = np.asarray(
    apply(
      events(labels=labels, categories=categories, category_weights=weights)
    )
  )
  table = params['item_features']['feature_1']
  tag = slice(8 + 3, 8 + 3 + 5)
  np.testing.assert_allclose(
    got[1, 1, tag], 0.25 * table[3] + 0.75 * table[7], rtol=1e-6
  )
  np.testing.assert_array_equal(got[1, 0, tag], 0)  # no weight: unknown
  rest = np.ones(got.shape[-1], bool)
  rest[tag] = False
  np.testing.assert_array_equal(got[..., rest], plain[..., rest])


def test_gradients_are_finite_where_nothing_is_known(embedding):
  _, params, apply = embedding
  zero = lambda x: np.zeros_like(x)  # noqa: E731
  nothing = jax.tree.map(zero, events())
  gradients = jax.grad(lambda p: apply(nothing, params=p).sum())(params)
  for leaf in jax.tree.leaves(gradients):
    np.testing.assert_array_equal(leaf, 0)
  unknown = dataclasses.replace(nothing, mask=np.ones((2, 3), bool))
  gradients = jax.grad(lambda p: apply(unknown, params=p).sum())(params)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
  # The learned vectors of "unknown" and item 0's features are reached.
  assert np.abs(gradients['age'][0]).sum() > 0
  assert np.abs(gradients['age'][1:]).sum() == 0
  assert np.abs(gradients['labels']).sum() == 0


def test_the_result_has_the_type_of_the_item_vectors(embedding):
  _, _, apply = embedding
  got = apply(events(), jnp.asarray(VECTORS, jnp.bfloat16))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    got.astype(jnp.float32), apply(events()), rtol=2e-2, atol=2e-2
  )


def test_features_may_be_left_out():
  pathways = config.PathwaysConfig(age_dim=0)
  module = event_embedding.EventEmbedding(pathways, SIZES._replace(items=()))
  nothing = dataclasses.replace(
    events(),
    numbers=np.zeros((2, 3, 0), np.int32),
    labels=np.zeros((2, 3, 0), np.float32),
    label_mask=np.zeros((2, 3, 0), bool),
  )
  got = module.apply({}, *on_device((nothing, VECTORS)), batch.ItemFeatures(()))
  assert module.dim == 0
  np.testing.assert_array_equal(
    got, np.where(nothing.mask[..., None], VECTORS, 0)
  )
