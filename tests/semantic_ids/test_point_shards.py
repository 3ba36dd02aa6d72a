"""K-means on points that are split over eight devices equals that on one.

Labels of one assignment are equal, ties included.  Fitted centroids are equal
up to the order in which floats are summed.
"""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax import config as config_lib
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax.semantic_ids import balanced_kmeans
from onerec_jax.semantic_ids import kmeans
from onerec_jax.semantic_ids import point_shards
from onerec_jax.semantic_ids import residual_kmeans
from onerec_jax.semantic_ids import seeding

_RULES = {
  'nearest': lambda p, c, shards=None: kmeans.nearest(p, c, shards=shards)[0],
  'rounds': balanced_kmeans.assign_in_rounds,
  'sequential': balanced_kmeans.assign_sequentially,
}


@pytest.fixture(scope='module')
def mesh():
  return meshes.make_mesh(config_lib.MeshConfig(2, 2, 2))


def _points(num_points, dim=4, seed=0):
  """Zipf-sized groups, so that nearest labels are far from balanced."""
  rng = np.random.default_rng(seed)
  share = 1 / np.arange(1, 9)
  group = rng.choice(8, num_points, p=share / share.sum())
  centres = 3 * rng.normal(size=(8, dim))
  return (centres[group] + rng.normal(size=(num_points, dim))).astype('f4')


def _both(rule, points, centroids, mesh):
  want = _RULES[rule](jnp.asarray(points), jnp.asarray(centroids))
  placed, shards = point_shards.split(points, mesh)
  labels = _RULES[rule](placed, jnp.asarray(centroids), shards=shards)
  assert len(labels.sharding.device_set) == 8
  return point_shards.fetch(labels, shards), np.asarray(want)


def test_rows_are_split_and_filled_up(mesh):
  placed, shards = point_shards.split(_points(203), mesh)
  # 26 rows on each of 8 devices hold 203 points; the last has 21.
  assert {s.data.shape for s in placed.addressable_shards} == {(26, 4)}
  np.testing.assert_array_equal(
    point_shards.fetch(placed, shards), _points(203)
  )


@pytest.mark.parametrize('rule', _RULES)
def test_labels_equal_those_of_one_device(mesh, rule):
  # 203 points, sorted so that the first devices hold one group alone, and
  # every fourth one twice: ties within and across devices.
  points = np.sort(_points(203), axis=0)
  points[::4] = points[1]
  found, want = _both(rule, points, _points(10, seed=1), mesh)
  np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize('rule', ['rounds', 'sequential'])
def test_points_that_are_all_alike_are_dealt_out_by_row(mesh, rule):
  points = np.full((203, 4), 1e4, np.float32)
  found, want = _both(rule, points, points[:10], mesh)
  np.testing.assert_array_equal(found, want)
  assert set(np.bincount(found)) == {20, 21}


def test_late_rounds_with_few_free_points_change_no_label(mesh, monkeypatch):
  points, centroids = _points(1603), _points(12, seed=1)
  whole = _RULES['rounds'](jnp.asarray(points), jnp.asarray(centroids))
  monkeypatch.setattr(balanced_kmeans, '_SMALLEST_TO_SPLIT', 64)
  placed, shards = point_shards.split(points, mesh)
  found = _RULES['rounds'](placed, jnp.asarray(centroids), shards=shards)
  np.testing.assert_array_equal(point_shards.fetch(found, shards), whole)


def test_costs_below_zero_are_ordered_too(mesh):
  # Integers in the order of the floats, for the bisection.
  values = np.array([-np.inf, -2.5, -1e-30, -0.0, 0.0, 1e-30, 2.5], 'f4')
  keys = np.asarray(point_shards._ordered(jnp.asarray(values)), np.int64)
  steps = np.diff(keys)
  assert steps[3] == 0
  assert (np.delete(steps, 3) > 0).all()


def test_empty_clusters_move_to_the_same_points(mesh):
  points = _points(203)
  centroids = np.concatenate([points[:3], np.full((2, 4), 1e4, 'f4')])
  labels = np.asarray(kmeans.nearest(points, centroids).labels)
  counts = np.bincount(labels, minlength=5).astype('f4')
  want = seeding.reseed_empty(
    jnp.asarray(points),
    jnp.asarray(centroids),
    jnp.asarray(labels),
    jnp.asarray(counts),
  )
  placed, shards = point_shards.split(points, mesh)
  placed_labels = sharding.place(
    sharding.fill_rows(labels, len(placed)), sharding.batch_sharding(mesh)
  )
  found = seeding.reseed_empty(
    placed,
    jnp.asarray(centroids),
    placed_labels,
    jnp.asarray(counts),
    shards=shards,
  )
  assert (counts[3:] == 0).all()
  np.testing.assert_array_equal(found, want)


_CONFIG = config_lib.TokenizerConfig(
  levels=2, codes_per_level=9, max_iterations=6
)


@pytest.mark.parametrize(
  'changes',
  [
    {'quantizer': 'balanced_kmeans'},
    {'quantizer': 'balanced_kmeans', 'corpus_assignment': 'balanced'},
    {'quantizer': 'kmeans', 'init': 'kmeans++'},
  ],
  ids=['balanced', 'balanced_codes', 'lloyd'],
)
def test_codebooks_and_codes_equal_those_of_one_device(mesh, changes):
  config = dataclasses.replace(_CONFIG, **changes)
  embeddings = 5 + _points(210)
  embeddings = embeddings[:203]
  one = residual_kmeans.fit_codebooks(embeddings, config=config, seed=0)
  many = residual_kmeans.fit_codebooks(
    embeddings, config=config, seed=0, mesh=mesh
  )
  np.testing.assert_array_equal(many.fitted_labels, one.fitted_labels)
  np.testing.assert_allclose(
    many.codebooks.codebooks, one.codebooks.codebooks, rtol=1e-5, atol=1e-5
  )
  for got, want in zip(many.levels, one.levels, strict=True):
    assert got['iterations'] == want['iterations'] > 1
    np.testing.assert_allclose(got['inertias'], want['inertias'], rtol=1e-5)
  np.testing.assert_array_equal(
    residual_kmeans.corpus_codes(
      many, embeddings, assignment=config.corpus_assignment, mesh=mesh
    ),
    residual_kmeans.corpus_codes(
      one, embeddings, assignment=config.corpus_assignment
    ),
  )


@pytest.mark.parametrize('chunk', [None, 3])
def test_encoding_on_all_devices_gives_the_same_codes(mesh, chunk):
  rng = np.random.default_rng(1)
  codebooks = residual_kmeans.Codebooks(
    rng.normal(size=(3, 8, 4)).astype('f4'), np.full(4, 5, 'f4')
  )
  for num_items in (203, 5):
    embeddings = 5 + _points(num_items)
    np.testing.assert_array_equal(
      residual_kmeans.encode(codebooks, embeddings, chunk=chunk, mesh=mesh),
      residual_kmeans.encode(codebooks, embeddings),
    )


def test_problems_are_named_by_the_number_of_the_point(mesh):
  points = _points(203)
  points[200, 1] = np.nan
  placed, shards = point_shards.split(points, mesh)
  with pytest.raises(ValueError, match=r'1 of 203 points.*row 200'):
    kmeans.check(placed, num_clusters=4, shards=shards)
  with pytest.raises(ValueError, match='203 points cannot fill 204 clusters'):
    kmeans.check(placed, num_clusters=204, shards=shards)


@pytest.mark.parametrize('rule', ['rounds', 'nearest'])
def test_devices_hold_neither_all_points_nor_their_distances(mesh, rule):
  num_points, num_clusters = 200_000, 2048
  rows = jax.ShapeDtypeStruct(
    (num_points, 4), jnp.float32, sharding=sharding.batch_sharding(mesh)
  )
  shards = point_shards.Shards(mesh, num_points - 3)
  compiled = (
    jax.jit(lambda p, c: _RULES[rule](p, c, shards=shards))
    .lower(rows, jax.ShapeDtypeStruct((num_clusters, 4), jnp.float32))
    .compile()
  )
  # The distances of a device's points would be 205 MB; tiles are 8 MB.
  share = num_points * num_clusters * 4 / 8
  assert compiled.memory_analysis().temp_size_in_bytes < share / 5
  gathered = re.findall(r'= \w+\[([\d,]*)\]\S* all-gather', compiled.as_text())
  sizes = [math.prod(map(int, shape.split(','))) for shape in gathered]
  # Counts of every cluster from each device at most.
  assert max(sizes, default=0) <= 8 * num_clusters
  assert (rule == 'rounds') == bool(sizes)
