"""Who judges generated items, and what they are really worth."""

import dataclasses

import jax
import numpy as np
import pytest

from onerec_jax import batch
from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import records
from onerec_jax.data import synthetic
from onerec_jax.data import synthetic_rewards
from onerec_jax.stages import beam_sessions
from onerec_jax.stages import item_evaluation
from onerec_jax.stages import trained as trained_lib

_TOWERS = (
  config.PScoreTower('lvtr', 'long_view', weight=3.0),
  config.PScoreTower('ltr', 'is_like', weight=1.0),
)
_EXPERIMENT = config.Experiment(
  data=config.DataConfig(
    synthetic=config.SyntheticConfig(num_users=4, num_items=6, num_clusters=2)
  ),
  p_score_model=config.PScoreConfig(towers=_TOWERS),
)


@pytest.fixture
def truth(monkeypatch, tmp_path):
  # Dense users and items in another order than the world's.
  monkeypatch.setattr(
    catalog, 'read_users', lambda _: {'user_id': _Ids(['user2', 'user0'])}
  )
  monkeypatch.setattr(
    catalog, 'item_ids', lambda _: np.array(['item5', 'item1', 'item3'])
  )
  return item_evaluation.Truth(_EXPERIMENT, workdir_lib.Workdir(tmp_path))


class _Ids(list):
  def to_list(self):
    return list(self)


def test_truth_is_the_worlds_law_of_the_original_user_and_item(truth):
  found = truth(np.array([1, 0]), np.array([[0, 2], [1, -1]]))
  world = synthetic.make_world(_EXPERIMENT.data.synthetic, seed=0)

  def law(user, item, column):
    return synthetic_rewards.expected_value(
      world, np.array([user]), np.array([[item]]), column=column
    )[0, 0]

  for row, place, user, item in ((0, 0, 0, 5), (0, 1, 0, 3), (1, 0, 2, 1)):
    viewed, liked = law(user, item, 'long_view'), law(user, item, 'is_like')
    # The optimum of the fusion's loss: the weighted mean of the labels.
    np.testing.assert_allclose(
      found[row, place], [(3 * viewed + liked) / 4, viewed, liked]
    )
  assert np.isnan(found[1, 1]).all()


def test_a_world_that_is_not_simulated_has_no_truth(tmp_path):
  real = dataclasses.replace(
    _EXPERIMENT, data=config.DataConfig(source='movielens')
  )
  assert item_evaluation.make_truth(real, workdir_lib.Workdir(tmp_path)) is None


@pytest.fixture
def store(tmp_path):
  path = tmp_path / 'test.arrayrecord'
  examples.write_examples(
    path,
    [
      records.UserRecord(
        user=u,
        items=np.array([u, u + 1, u + 2]),
        positive=np.ones(3, bool),
        timestamps=np.arange(3),
        target_starts=np.array([2]),
        target_lengths=np.array([1]),
      )
      for u in range(3)
    ],
  )
  return examples.ExampleStore(path, contexts=_contexts(0))


def _contexts(mark):
  """Returns contexts whose only feature says whose they are."""

  def make(users, positions):
    features = np.full((len(users), 1), mark, np.int32)
    return batch.UserContext(features, None, None, None)

  return make


def test_a_model_is_asked_with_its_own_contexts_not_the_judges(
  store, monkeypatch
):
  seen = []

  class Beam:
    def __init__(self, trained, store, settings):
      assert settings.num_beams == 4
      assert settings.constrain == 'none'

    def __call__(self, users, *, params, router_bias):
      seen.append(int(users.context.features.max()))
      assert (params, router_bias) == ('theirs', 'bias')
      rows = len(users.user)
      items = np.tile(np.arange(4)[:, None], (rows, 1, 1))
      exists = np.ones(items.shape, bool)
      exists[:, 3] = False  # belongs to no item
      return beam_sessions.BeamSessions(
        items=items,
        valid=np.ones((rows, 4), bool),
        legal=exists[..., 0],
        exists=exists,
        placed=users,
      )

  monkeypatch.setattr(beam_sessions, 'SessionBeam', Beam)
  nothing = [None] * len(trained_lib.Trained._fields)
  trained = trained_lib.Trained(*nothing)._replace(
    contexts=_contexts(7),
    mesh=meshes.make_mesh(config.MeshConfig(), jax.devices()[:2]),
    experiment=_EXPERIMENT,
    params='theirs',
    router_bias='bias',
  )
  generator = item_evaluation.Generator(
    trained, store, num_items=4, batch_size=1, constrain='none'
  )
  found = generator(np.array([2, 0, 1]))
  assert seen == [7, 7]
  np.testing.assert_array_equal(found.users, [2, 0, 1])
  np.testing.assert_array_equal(found.items, [[0, 1, 2, -1]] * 3)
  # The filler row of the second batch counts for nothing.
  assert (found.generated, found.existing) == (12, 9)
  assert store.contexts(np.zeros(1), None).features.max() == 0
