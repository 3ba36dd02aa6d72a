"""Stage `lifelong` on the simulated world."""

import dataclasses
import json

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import lifelong
from onerec_jax.stages import prepare
from onerec_jax.stages import user_pathways

_USERS, _ITEMS = 12, 120
_EXPERIMENT = config.Experiment(
  data=config.DataConfig(
    source='synthetic',
    synthetic=config.SyntheticConfig(
      num_users=_USERS, num_items=_ITEMS, num_clusters=4, events_per_user=45
    ),
  ),
  model=config.ModelConfig(
    encoder='pathways',
    pathways=config.PathwaysConfig(
      item_features=(config.ItemFeature('tag', average=True),),
      event_features=(config.EventFeature('watch_time'),),
      labels=('is_like',),
      lifelong_length=8,
    ),
  ),
  lifelong=config.LifelongConfig(
    max_cluster_size=6, snapshot_events=15, workers=1
  ),
)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  workdir = workdir_lib.Workdir(tmp_path_factory.mktemp('lifelong_stage'))
  prepare.run(_EXPERIMENT, workdir)
  workdir.stage('embed')
  with workdir.embeddings.open('wb') as file:
    vectors = np.random.default_rng(0).normal(size=(_ITEMS, 5))
    np.savez(file, embeddings=vectors[: _items(workdir)])
  return workdir


def _items(workdir):
  return json.loads((workdir.data / 'dataset.json').read_text())['items']


def test_the_stage_says_how_far_histories_were_compressed(prepared):
  result = lifelong.run(_EXPERIMENT, prepared)
  json.dumps(result, allow_nan=False)
  assert result['users'] == result['users_written'] == _USERS
  assert result['seconds_per_user'] > 0
  assert 2 * _USERS < result['snapshots'] < 4 * _USERS
  assert result['largest_cluster'] <= 6
  assert result['clusters_of_the_largest'] <= 8
  np.testing.assert_allclose(
    result['compression_ratio'],
    result['events_per_snapshot'] / result['clusters_per_snapshot'],
  )
  assert 0.3 < result['share_of_events_kept'] <= 1
  quality = result['quality']
  assert quality['snapshots'] == result['snapshots']
  for measure in ('history', 'later_positives'):
    assert all(0 < v <= 1 + 1e-6 for v in quality[measure].values())
  # Run again, nothing is left to do, and the figures are the same.
  again = lifelong.run(_EXPERIMENT, prepared)
  assert (again['shards_written'], again['seconds_per_user']) == (0, None)
  assert again['quality'] == quality


def test_the_encoder_finds_what_the_stage_wrote(prepared):
  lifelong.run(_EXPERIMENT, prepared)
  found = user_pathways.read(_EXPERIMENT, prepared)
  context = found.contexts(np.array([0, 1]), np.array([14, 31]))
  # 14 events are one short of the first snapshot.
  np.testing.assert_array_equal(context.lifelong.mask.any(axis=1), [0, 1])
  assert context.lifelong.categories.shape[:3] == (2, 8, 1)


def test_item_vectors_of_other_items_are_refused(prepared, tmp_path):
  other = workdir_lib.Workdir(
    tmp_path, folders={'prepare': prepared.folder('prepare')}
  )
  with pytest.raises(FileNotFoundError, match="stage 'embed'"):
    lifelong.run(_EXPERIMENT, other)
  other.stage('embed')
  with other.embeddings.open('wb') as file:
    np.savez(file, embeddings=np.zeros((3, 2)))
  with pytest.raises(ValueError, match=r'3 rows.*run the stage `embed` again'):
    lifelong.run(_EXPERIMENT, other)


def test_without_a_lifelong_pathway_there_is_nothing_to_do(prepared):
  pathways = dataclasses.replace(_EXPERIMENT.model.pathways, lifelong_length=0)
  model = dataclasses.replace(_EXPERIMENT.model, pathways=pathways)
  with pytest.raises(ValueError, match='nothing to do'):
    lifelong.run(dataclasses.replace(_EXPERIMENT, model=model), prepared)
