"""Linear part of the P-Score model: its sum, masks and fixed tables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onerec_jax.model import linear_part
from onerec_jax.model import parameters
from onerec_jax.train import optimizer


@pytest.fixture(name='tiny', scope='module')
def fixture_tiny(tiny_p_score):
  return tiny_p_score


def _part(tiny):
  """The linear part of the tiny model, and tables of integers."""
  part = linear_part.LinearPart(2, tiny.make_model().pathways, tiny.SIZES)
  context = tiny.make_context()
  boxes = jax.eval_shape(
    part.init, jax.random.key(0), context.features, context.short, tiny.ITEMS
  )['params']
  rng = np.random.default_rng(3)
  tables = {
    name: rng.integers(-9, 9, box.value.shape).astype(np.float32)
    for name, box in boxes.items()
  }
  return part, boxes, tables


def _logits(part, tables, context, items):
  apply = jax.jit(part.apply)
  return np.asarray(
    apply({'params': tables}, context.features, context.short, items)
  )


def test_logits_are_the_sum_written_term_by_term(tiny):
  part, _, t = _part(tiny)
  context, items = tiny.make_context(), tiny.ITEMS
  events = context.short
  for b, w, x in np.ndindex(2, 3, 2):
    seen = np.flatnonzero(events.mask[b])
    wanted = t['bias'][x, 0] + t['item'][x, items[b, w]]
    wanted += t['user_0'][x, context.features[b, 0]]
    for n in seen:
      wanted += (
        t['event'][x, events.items[b, n]]
        + t['number_0'][x, events.numbers[b, n, 0]]
        + t['age'][x, events.age[b, n]]
      ) / len(seen)
    for a in range(2):
      logged = [n for n in seen if events.label_mask[b, n, a]]
      happened = sum(events.labels[b, n, a] for n in logged)
      wanted += t['happened'][x, a] * happened / max(len(logged), 1)
      wanted += t['logged'][x, a] * len(logged) / len(seen)
    got = _logits(part, t, context, items)[b, w, x]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_user_without_events_is_his_features_alone(tiny):
  part, _, t = _part(tiny)
  context = tiny.make_context()
  alone = tiny.with_events(context, mask=np.zeros((2, 6), bool))
  wanted = (t['bias'] + t['user_0'][:, context.features[:, 0]]).T[:, None]
  np.testing.assert_allclose(
    _logits(part, t, alone, tiny.ITEMS),
    wanted + t['item'].T[tiny.ITEMS],
    rtol=1e-6,
  )


def test_what_lies_under_the_masks_does_not_matter(tiny):
  part, _, t = _part(tiny)
  context = tiny.make_context()
  events = context.short
  junk = dataclasses.replace(
    events,
    items=np.where(events.mask, events.items, 7),
    labels=np.where(events.label_mask, events.labels, np.nan),
    label_mask=events.label_mask,
  )
  other = dataclasses.replace(context, short=junk)
  assert not events.mask.all() and not events.label_mask.all()
  np.testing.assert_array_equal(
    _logits(part, t, other, tiny.ITEMS), _logits(part, t, context, tiny.ITEMS)
  )


def test_training_leaves_the_tables_as_they_were_fitted(tiny):
  part, boxes, t = _part(tiny)
  context = jax.tree.map(jnp.asarray, tiny.make_context())
  items = jnp.asarray(tiny.ITEMS)

  def total(tables):
    logits = part.apply(
      {'params': tables}, context.features, context.short, items
    )
    return jnp.sum(jnp.asarray(logits))

  gradients = jax.grad(total)(t)
  assert not any(np.any(g) for g in jax.tree.leaves(gradients))
  decays = optimizer.decay_mask(parameters.logical_names(boxes))
  assert not any(decays.values())
