"""Item alignment: contrastive loss of pairs and captions of their triggers.

Glue between model, losses and batch; all mathematics is in losses/.
"""

from typing import Any

import jax
import jax.numpy as jnp

from onerec_jax import batch as batch_lib
from onerec_jax.data import item_pairs
from onerec_jax.losses import contrastive
from onerec_jax.losses import likelihood
from onerec_jax.model import item_alignment
from onerec_jax.objectives import base


def make_objective(model: item_alignment.ItemAligner) -> base.Objective:
  """Returns the alignment objective on `item_pairs.ItemPairBatch`.

    mean over pairs of L_I2I + w · mean over words of -log p(t^k | m, t^<k)

  with m the vectors of the pair's trigger and w = caption_weight.  The report
  prints a sum over the words; the mean keeps the weight of a caption from
  growing with its length.  Targets that are no negatives are left out of
  L_I2I (`contrastive.false_negatives`).

  Metrics: 'contrastive' (nats), 'accuracy' (share of triggers whose target is
  nearest in the batch), 'similarity' (cosine of the pairs), 'negatives' (per
  trigger); with captions 'caption' (nats per word) and 'caption_accuracy'.

  Args:
    model: its parameters are the objective's; with a vocabulary, batches must
      have words.
  Reference: OneRec technical report, arXiv:2506.13695, section 2.1.1.
  """
  c = model.config

  def objective(
    params: Any,
    model_state: Any,
    frozen: Any,
    batch: item_pairs.ItemPairBatch,
    key: jax.Array | None,
  ) -> base.LossOutput:
    del frozen
    rows = batch.mask.shape[0]

    def both(x: jax.Array) -> jax.Array:
      """Triggers, then targets: one pass of the model for both."""
      return jnp.concatenate([x[:, 0], x[:, 1]])

    output = model.apply(
      {'params': params},
      both(batch.tokens),
      both(batch.token_mask),
      batch.words if model.vocabulary_size else None,
      deterministic=key is None,
      rngs=None if key is None else {'dropout': key},
    )
    assert isinstance(output, item_alignment.AlignerOutput)
    vectors, logits = output
    triggers, targets = batch.items[:, 0], batch.items[:, 1]
    pairs = contrastive.item_to_item_loss(
      vectors[:rows],
      vectors[rows:],
      batch.mask,
      temperature=c.temperature,
      similarity=c.similarity,
      excluded=contrastive.false_negatives(triggers, targets, batch.mask),
    )
    loss = base.mean_of(pairs.loss, batch.mask)
    metrics = {
      'contrastive': loss,
      'accuracy': base.mean_of(pairs.correct, batch.mask),
      'similarity': base.mean_of(pairs.similarity, batch.mask),
      'negatives': base.mean_of(pairs.negatives, batch.mask),
    }
    if logits is not None:
      words = likelihood.next_code_loss(
        logits[:, :, None],
        batch.words[:, :, None],
        batch.word_mask,
        codes_per_level=(model.vocabulary_size,),
      )
      caption = base.mean_of(words.loss, words.mask)
      metrics['caption'] = caption
      metrics['caption_accuracy'] = base.mean_of(words.correct, words.mask)
      total = loss.total + c.caption_weight * caption.value() * loss.count
      loss = batch_lib.Mean(total, loss.count)
    counts = {'examples': jnp.sum(batch.mask, dtype=jnp.float32)}
    return base.LossOutput(loss, metrics, model_state, counts)

  return objective
