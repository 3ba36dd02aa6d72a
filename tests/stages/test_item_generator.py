"""What a policy generates, against the enumeration of all its outputs."""

import dataclasses

import jax
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import sharding
from onerec_jax.data import pipeline
from onerec_jax.objectives import reinforce as objective
from onerec_jax.stages import item_generator
from onerec_jax.stages import pretrain
from onerec_jax.stages import trained

_ALL = 36  # IDs that two levels of six codes can form
_SETTINGS = config.ReinforceConfig(group_size=_ALL, rollout_batch_size=8)


@pytest.fixture(scope='module')
def ready(tiny_run):
  """Model, training examples and eight users, the last of them filler."""
  experiment, workdir = tiny_run
  model = trained.load(experiment, workdir, which='latest')
  store = pretrain.open_examples(experiment, workdir, 'train')
  users = pipeline.session_batch(
    store,
    np.array([0, 9, 20, 31, 44, 52, 60, -1]),
    history_length=experiment.data.history_length,
    items_per_session=1,
  )
  return model, store, users


def _generator(ready, **changes):
  model, store, _ = ready
  settings = dataclasses.replace(_SETTINGS, **changes)
  return item_generator.ItemGenerator(model, store, settings, seed=3)


def _generate(ready, generator, *, number=0, params=None):
  model, _, users = ready
  return generator(
    users,
    params=model.params if params is None else params,
    router_bias=model.router_bias,
    number=number,
  )


def _count_encodings(generator):
  """Returns a list that grows with every run of the encoder."""
  calls, original = [], generator._encode

  def encode(*args):
    calls.append(1)
    return original(*args)

  generator._encode = encode
  return calls


@pytest.fixture(scope='module')
def everything(ready):
  """The beam that is as wide as there are outputs."""
  return _generate(ready, _generator(ready))


@pytest.fixture(scope='module')
def exact(ready):
  """log π of every ID for the users, code by code. [B, 36, L]"""
  model, _, users = ready
  encode = objective.make_encode(model.model)
  score = objective.make_score(model.model)
  every = np.stack(np.divmod(np.arange(_ALL), 6), axis=1).astype(np.int32)
  codes = np.tile(every, (len(users.user), 1, 1))

  @jax.jit
  def call(params, bias, catalogue, users, codes, present):
    return score(
      params, bias, encode(params, bias, catalogue, users), codes, present
    )

  placed = sharding.place_batch(
    (users, codes, np.ones(codes.shape[:2], bool)), model.mesh
  )
  found = call(model.params, model.router_bias, model.catalogue, *placed)
  return np.asarray(found)


def _place(codes):
  return codes[..., 0] * 6 + codes[..., 1]


def test_a_full_beam_holds_every_output_once_the_likeliest_first(
  exact, everything
):
  exact = exact.sum(2)
  np.testing.assert_allclose(np.exp(exact).sum(1), 1, rtol=1e-5)
  assert everything.present.all()
  index = _place(everything.codes)
  assert (np.sort(index, axis=1) == np.arange(_ALL)).all()
  total = everything.old_log_probs.sum(2)
  np.testing.assert_allclose(
    total, np.take_along_axis(exact, index, 1), rtol=1e-5, atol=1e-5
  )
  assert (np.diff(total, axis=1) < 1e-5).all()


def test_an_output_is_legal_if_its_id_has_an_item(ready, everything):
  model = ready[0]
  ids = {tuple(c) for c in np.asarray(model.ids.codes).tolist()}
  legal = [[tuple(c) in ids for c in user] for user in everything.codes]
  np.testing.assert_array_equal(everything.legal, legal)
  assert 0 < everything.legal.mean() < 1


def test_an_output_stands_for_the_first_item_that_was_not_seen(
  ready, everything
):
  model, store, users = ready
  seen = pipeline.seen_items(store, users)
  codes = np.asarray(model.ids.codes)
  order = np.argsort(model.ids.rank_in_bucket, kind='stable')
  buckets = {}
  for item in order:
    buckets.setdefault(tuple(codes[item]), []).append(int(item))
  for row in range(len(users.user) - 1):
    known = set(np.asarray(seen[row]).tolist())
    for code, item in zip(
      everything.codes[row], everything.items[row], strict=True
    ):
      left = [i for i in buckets.get(tuple(code), []) if i not in known]
      assert item == (left[0] if left else -1)
    assert known  # something was excluded


def test_log_probs_are_those_of_the_uncut_policy(ready, exact):
  # With one code left per level every draw is the same, with probability 1 for
  # the sampler but not for the policy.
  found = _generate(
    ready,
    _generator(ready, rollouts='sample', group_size=5, sample_top_k=1),
  )
  assert (found.codes == found.codes[:, :1]).all()
  picked = np.take_along_axis(exact, _place(found.codes)[..., None], 1)
  np.testing.assert_allclose(found.old_log_probs, picked, atol=1e-5)
  assert (found.old_log_probs < -0.01).all()


def test_samples_follow_the_policy_and_their_number(ready, exact):
  generator = _generator(ready, rollouts='sample', group_size=600)
  found = _generate(ready, generator)
  share = [np.bincount(i, minlength=_ALL) / 600 for i in _place(found.codes)]
  # 600 draws: standard deviation at most 0.02.
  assert np.abs(np.stack(share) - np.exp(exact.sum(2))).max() < 5 * 0.02
  again = _generate(ready, generator)
  np.testing.assert_array_equal(found.codes, again.codes)
  assert (found.codes != _generate(ready, generator, number=1).codes).any()


def test_the_trie_gives_only_items_that_were_not_seen(ready):
  found = _generate(ready, _generator(ready, constrain='trie', group_size=20))
  real = np.asarray(ready[2].example_mask)
  assert found.present[real].any()
  np.testing.assert_array_equal(found.legal, found.present)
  assert (found.items[found.present & real[:, None]] >= 0).all()
  # Of 29 IDs fewer than 20 may be left to a user: the rest is absent.
  absent = ~found.present
  assert (found.codes[absent] == -1).all()
  assert (found.old_log_probs[absent] == 0).all()


def test_grpo_gets_the_log_probs_of_the_seed_model(ready, exact):
  generator = _generator(ready, loss='grpo', group_size=4)
  encodings = _count_encodings(generator)
  moved = jax.tree.map(lambda x: 0.5 * x, ready[0].params)
  found = _generate(ready, generator, params=moved)
  assert len(encodings) == 2  # once for each of the two policies
  picked = np.take_along_axis(exact, _place(found.codes)[..., None], 1)
  np.testing.assert_allclose(found.reference_log_probs, picked, atol=1e-5)
  assert np.abs(found.old_log_probs - picked).max() > 0.01


def test_without_a_penalty_the_encoder_runs_once_for_all_outputs(ready):
  generator = _generator(ready, loss='grpo', kl_weight=0.0, group_size=4)
  encodings = _count_encodings(generator)
  found = _generate(ready, generator)
  assert len(encodings) == 1
  assert (found.reference_log_probs == 0).all()


@pytest.mark.parametrize(
  ('constrain', 'message'),
  [
    ('none', r'group_size=37 exceeds the 36 IDs that levels'),
    ('trie', r'group_size=37 exceeds the 29 IDs of the catalogue'),
  ],
)
def test_a_beam_wider_than_the_ids_is_refused(ready, constrain, message):
  with pytest.raises(ValueError, match=message):
    _generator(ready, group_size=37, constrain=constrain)
