"""Next-token prediction of the target session, with loss-free balancing.

Glue between model, loss and batch; all mathematics is in losses/ and ops/.
"""

import functools
from typing import Any
from typing import NotRequired
from typing import TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax.losses import catalogue as catalogue_loss
from onerec_jax.losses import likelihood
from onerec_jax.losses import router
from onerec_jax.model import encoder_input
from onerec_jax.model import layers
from onerec_jax.model import onerec
from onerec_jax.objectives import base
from onerec_jax.semantic_ids import prefix_trie


class Frozen(TypedDict):
  """Arrays that pre-training reads and never changes."""

  catalogue: batch_lib.Catalogue
  trie: NotRequired[prefix_trie.PrefixTrie]  # model.normalise_over='catalogue'


def make_frozen(
  model: onerec.OneRec,
  catalogue: batch_lib.Catalogue,
  trie: prefix_trie.PrefixTrie,
) -> Frozen:
  """Returns what this model's objective reads beside parameters."""
  if model.config.normalise_over == 'catalogue':
    return {'catalogue': catalogue, 'trie': trie}
  return {'catalogue': catalogue}


def make_objective(
  model: onerec.OneRec, train: config.TrainConfig
) -> base.Objective:
  """Returns the pre-training objective.

    sum:  mean over examples of -Σ_i Σ_l log p(s_i^l | history, s_<i, s_i^<l)
    mean: the same sum over all tokens of the batch, divided by their number

  Examples with example_mask False and items with target_mask False carry no
  loss and are not counted.  With train.item_loss_weight w every target adds
  -w log p(item), p over all items, to the sum of its tokens.  Metrics:
  'item_loss' and 'accuracy/item' with such a weight (nats and share of the
  targets that no other item outscores), 'token_loss' (nats per token, without
  smoothing weights of the reduction), 'accuracy/level_l', 'padding_share',
  'router/load' (share of the tokens per expert), 'router/drop_share' (of what
  was routed; 0 but with moe.exchange='all_to_all') and
  'router/max_violation_batch'.  With model.normalise_over='catalogue' p is over
  the codes that follow the prefix in frozen['trie'].

  Args:
    model: the model; its parameters are the objective's.
    train: reduction, label smoothing, weight of whole items.
  Reference: 2502.18965 eq. 4; Wang et al. 2024, arXiv:2408.15664, Alg. 1.
  """
  moe = model.config.moe
  codes_per_level = model.vocabulary.codes_per_level

  def followers(
    frozen: Frozen, codes: Int[Array, 'B M L']
  ) -> Bool[Array, 'B M L C'] | None:
    if model.config.normalise_over == 'codes':
      return None
    if 'trie' not in frozen:
      raise ValueError(
        "normalise_over='catalogue' reads the trie of the catalogue: pass"
        ' frozen=pretrain.make_frozen(model, catalogue, trie).'
      )
    return frozen['trie'].followers(codes)

  def objective(
    params: Any,
    model_state: Any,
    frozen: Frozen,
    batch: batch_lib.SessionBatch,
    key: jax.Array | None,
  ) -> base.LossOutput:
    inputs = encoder_input.of_batch(batch, frozen['catalogue'])
    target_mask = batch.target_mask & batch.example_mask[:, None]
    target_codes = frozen['catalogue'].codes[batch.target_items]  # [B, M, L]
    output = model.apply(
      {'params': params},
      inputs,
      target_codes,
      target_mask,
      model_state,
      deterministic=key is None,
      rngs=None if key is None else {'dropout': key},
    )
    assert isinstance(output, onerec.OneRecOutput)
    tokens = likelihood.next_code_loss(
      output.logits,
      target_codes,
      target_mask,
      codes_per_level=codes_per_level,
      allowed=followers(frozen, target_codes),
      label_smoothing=train.label_smoothing,
    )
    token_loss = base.mean_of(tokens.loss, tokens.mask)
    metrics = {'token_loss': token_loss}
    losses = jnp.sum(tokens.loss, axis=-1)  # [B, M], zero where masked
    if train.item_loss_weight:
      items = _over_catalogue(
        model, params, output.starts, frozen['catalogue'], batch, target_mask
      )
      losses += train.item_loss_weight * items.loss
      metrics['item_loss'] = base.mean_of(items.loss, target_mask)
      metrics['accuracy/item'] = base.mean_of(items.hit, target_mask)
    # An example without targets has nothing to learn from: not counted.
    counted = jnp.any(target_mask, axis=1)
    if train.ntp_reduction == 'sum':
      loss = base.mean_of(jnp.sum(losses, axis=1), counted)
    else:
      loss = batch_lib.Mean(jnp.sum(losses), token_loss.count)
    for level in range(len(codes_per_level)):
      metrics[f'accuracy/level_{level}'] = base.mean_of(
        tokens.correct[..., level], tokens.mask[..., level]
      )
    metrics['padding_share'] = base.mean_of(
      ~inputs.mask, jnp.ones_like(inputs.mask)
    )
    if moe.enabled:
      load = output.router.load
      if key is not None:
        model_state = router.update_bias(
          model_state, load, rule=moe.balancing, rate=moe.bias_update_rate
        )
      layer_total = jnp.sum(load, axis=-1, keepdims=True)
      metrics['router/load'] = batch_lib.Mean(
        load, jnp.broadcast_to(layer_total, load.shape)
      )
      metrics['router/drop_share'] = batch_lib.Mean(
        jnp.sum(output.router.dropped), jnp.sum(load)
      )
      violation = jnp.mean(router.max_violation(load))
      one = jnp.ones((), jnp.float32)
      metrics['router/max_violation_batch'] = batch_lib.Mean(violation, one)
    counts = {
      'examples': jnp.sum(counted, dtype=jnp.float32),
      'tokens': token_loss.count,
    }
    return base.LossOutput(loss, metrics, model_state, counts)

  return objective


def _over_catalogue(
  model: onerec.OneRec,
  params: Any,
  starts: Float[Array, 'B M D'],
  catalogue: batch_lib.Catalogue,
  batch: batch_lib.SessionBatch,
  mask: Bool[Array, 'B M'],
) -> catalogue_loss.ItemLoss:
  """Returns cross-entropy and hit of every target over all items. [B, M]"""
  table = model.apply(
    {'params': params}, catalogue.codes, method='item_vectors'
  )
  assert isinstance(table, jax.Array)
  num_items, width = table.shape
  found = catalogue_loss.softmax_loss(
    starts.reshape(-1, width),
    table,
    jnp.zeros(num_items, jnp.float32),
    batch.target_items.reshape(-1),
    mask.reshape(-1),
    chunk_size=catalogue_loss.rows_at_once(
      num_items, devices=1 if model.mesh is None else model.mesh.size
    ),
    spread=functools.partial(layers.shard_batch, mesh=model.mesh),
  )
  return catalogue_loss.ItemLoss(*(x.reshape(mask.shape) for x in found))
