"""P-Score model: what a user does with a shown item, and one score of it all.

Search-based interest (SIM), a tower per objective, a fusion network.  The
candidates of a user share his encoding and never see each other.
"""

import dataclasses
import functools
from typing import Any
from typing import Literal
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax import batch as batch_lib
from onerec_jax import config as config_lib
from onerec_jax.model import attention as attention_modules
from onerec_jax.model import candidate_vectors
from onerec_jax.model import event_embedding
from onerec_jax.model import interest_search
from onerec_jax.model import layers
from onerec_jax.model import linear_part
from onerec_jax.model import parameters
from onerec_jax.model import towers as towers_lib
from onerec_jax.ops import attention
from onerec_jax.ops import dropout
from onerec_jax.semantic_ids import vocabulary as vocabulary_lib

# What towers read of a candidate: user, item, interest found, short-term
# interest, mean event, and the products of the last three with the item.
_PARTS = 8
_FUSION_PARTS = 3  # beside the towers' states: user, item and their product
# Adam moves a parameter by its rate a step, but few steps see a given item:
# its biases move faster by this factor.
_BIAS_SPEED = 4.0
# Dropout sites before the towers: events, candidates, attention weights.
_ENDS = 3


class PScoreLogits(NamedTuple):
  """Before the sigmoid."""

  p: Float[Array, 'B W']  # of the P-Score
  towers: Float[Array, 'B W X']  # in the order of config.towers


def feature_dim(config: config_lib.PScoreConfig) -> int:
  """Returns the width of all features but those of items."""
  return max(1, config.embed_dim // 4)


def pathways_of(
  config: config_lib.PScoreConfig, pathways: config_lib.PathwaysConfig
) -> config_lib.PathwaysConfig:
  """Returns what the P-Score model reads of a user: one long pathway.

  Features are those of `pathways`.  Item features are added up with the codes
  and so are as wide; the other widths are made for larger models and become a
  quarter of embed_dim.  The user id is left out: for held-out users it would
  be an untrained vector.

  Args:
    config: of the P-Score model.
    pathways: of the generator.
  """
  narrow = feature_dim(config)
  return dataclasses.replace(
    pathways,
    user_id_buckets=0,
    item_features=tuple(
      dataclasses.replace(f, dim=config.embed_dim)
      for f in pathways.item_features
    ),
    user_features=tuple(
      dataclasses.replace(f, dim=narrow) for f in pathways.user_features
    ),
    event_features=tuple(
      dataclasses.replace(f, dim=narrow) for f in pathways.event_features
    ),
    label_dim=narrow,
    age_dim=narrow if pathways.age_dim else 0,
    short_length=config.history_length,
    positive_length=0,
    lifelong_length=0,
  )


# --- The model --------------------------------------------------------------


class PScore(nn.Module):
  """Logits of every objective and of the P-Score, for W items of each user.

    e_n  = RMSNorm(v_n + W [v_n, age, numbers, labels])    events, oldest first
    G_w  = the search_items events with the largest v_n · v_w, or the latest
           that share a value of the first item feature
    l_w  = MultiHead(v_w; e_n, n in G_w)
    s_w  = Σ_n a(v_w, e_n) e_n over the latest 20
    x_w  = [u, v_w, l_w, s_w, v_w ⊙ l_w, v_w ⊙ s_w, m, v_w ⊙ m]
    b_w  = c_w + M c_w,   for the score M sg(c_w)
    z^x  = MLP^x(x_w) + b^x_w, h^x the network's last hidden state
    p    = σ(MLP([sg'(h^1), …, sg'(h^X), u', v'_w, u' ⊙ v'_w]) + b^p_w)

  with u the user's features, m the mean event, u', v' from tables of their
  own, and c [X + 1] of each item, which does the work of counters of the item;
  by M [X + 1, X + 1] rare labels learn from frequent ones, and teach them.  The
  score and the towers do not teach each other's c: sg stops the gradient, sg'
  only with stop_gradient_towers.  The products are what tells an item the user
  would like from one he would not: attention alone returns an average of the
  events, near to the item or not.

  With linear_strengths, z becomes the mean of it and of what the fitted
  `linear_part.LinearPart` says, except in training: each learns alone.

  Reference: technical report arXiv:2506.13695, section 2.4.1; SIM
  arXiv:2006.05639; fusion arXiv:2505.13894 (Pantheon); linear part
  arXiv:1606.07792 (Wide & Deep).
  """

  config: config_lib.PScoreConfig
  pathways: config_lib.PathwaysConfig  # as `pathways_of` returns them
  sizes: batch_lib.FeatureSizes
  vocabulary: vocabulary_lib.Vocabulary
  dropout_bits: Literal['hash', 'threefry'] = 'hash'
  mesh: jax.sharding.Mesh | None = None  # None or one device: no sharding

  def setup(self) -> None:
    c, embed = self.config, self.config.embed_dim
    if c.search == 'hard' and not self.pathways.item_features:
      raise ValueError(
        "p_score_model.search='hard' looks for events that share a value of"
        ' the first item feature, but model.pathways.item_features is'
        " empty: name one, or set p_score_model.search='soft'."
      )
    make_items = functools.partial(
      candidate_vectors.ItemVectors,
      embed,
      self.pathways,
      self.sizes,
      self.vocabulary,
    )
    make_user = functools.partial(
      candidate_vectors.UserVector, embed, self.pathways, self.sizes
    )
    self.items, self.user = make_items(), make_user()
    self.fusion_items, self.fusion_user = make_items(), make_user()
    # Item features are in the item vector already.
    plain = dataclasses.replace(self.pathways, item_features=())
    self.events = event_embedding.EventEmbedding(
      plain, self.sizes._replace(items=())
    )
    width = embed + self.events.dim
    self.event_kernel = parameters.declare(
      self,
      'event_kernel',
      (width, embed),
      ('embed', 'mlp'),
      parameters.Initializer(stddev=width**-0.5),
    )
    self.item_bias = parameters.declare(
      self,
      'item_bias',
      (self.sizes.num_items, _whole_width(len(c.towers) + 1)),
      ('vocab', 'embed'),
      parameters.Initializer(stddev=0.0),
    )
    self.bias_mix = parameters.declare(
      self,
      'bias_mix',
      (len(c.towers) + 1, len(c.towers) + 1),
      (None, None),
      parameters.Initializer(stddev=0.0),
    )
    if c.linear_strengths:
      self.linear = linear_part.LinearPart(
        len(c.towers), self.pathways, self.sizes
      )
    self.event_norm = layers.RMSNorm(embed)
    self.target_norm = layers.RMSNorm(embed)
    self.search_attention = attention_modules.CrossAttention(
      config_lib.ModelConfig(
        embed_dim=embed,
        num_heads=c.num_heads,
        head_dim=embed // c.num_heads,
        attention_dropout_rate=c.dropout_rate,
      )
    )
    self.short_attention = interest_search.ShortTermAttention(embed)
    self.towers = towers_lib.Towers(
      len(c.towers), _PARTS * embed, c.tower_dims, c.dropout_rate
    )
    last = c.tower_dims[-1] if c.tower_dims else _PARTS * embed
    self.fusion = towers_lib.Towers(
      1,
      len(c.towers) * last + _FUSION_PARTS * embed,
      c.fusion_dims,
      c.dropout_rate,
    )

  def _seeds(self, deterministic: bool) -> list[Any]:
    """Returns dropout seeds of all sites, or Nones."""
    c = self.config
    sites = _ENDS + len(c.tower_dims) + len(c.fusion_dims)
    if deterministic or c.dropout_rate == 0:
      return [None] * sites
    return list(
      dropout.site_seeds(
        self.make_rng('dropout'), (sites,), bits=self.dropout_bits
      )
    )

  def _found(
    self,
    items: Int[Array, 'B W'],
    targets: Float[Array, 'B W D'],
    events: batch_lib.EventSequence,
    vectors: Float[Array, 'B N D'],
    catalogue: batch_lib.Catalogue,
  ) -> Bool[Array, 'B W N']:
    """Returns the events that the general search unit finds."""
    count, mask = self.config.search_items, events.mask[:, None]
    if self.config.search == 'hard':
      assert catalogue.features is not None
      values = catalogue.features.values[0]
      shared = interest_search.shares_value(values[events.items], values[items])
      return interest_search.latest_events(shared & mask, count=count)
    # What is found is a choice, which has no gradient.
    scores = jnp.einsum(
      'bwd,bnd->bwn',
      jax.lax.stop_gradient(targets),
      jax.lax.stop_gradient(vectors),
    )
    return interest_search.nearest_events(scores, mask, count=count)

  def __call__(
    self,
    context: batch_lib.UserContext,
    user: Int[Array, ' B'],
    items: Int[Array, 'B W'],
    catalogue: batch_lib.Catalogue,
    *,
    deterministic: bool,
  ) -> PScoreLogits:
    """Scores items for users.

    Args:
      context: with the latest events in `short`.
      user: dense user indices. [B]
      items: candidates, dense indices. [B, W]
      catalogue: codes and features of all items.
      deterministic: False: training, with dropout, which needs
        rngs={'dropout': key}, and without the linear part.
    """
    events = context.short
    if events is None:
      raise ValueError(
        'The P-Score model needs a context with recent events: make it with'
        ' the pathways of p_score.pathways_of and p_score_model.history_length'
        ' above 0.'
      )
    seeds = self._seeds(deterministic)
    drop = functools.partial(dropout.drop, rate=self.config.dropout_rate)
    shard = functools.partial(layers.shard_batch, mesh=self.mesh)
    mask = events.mask
    # --- Once per user ---
    vectors = shard(self.items(events.items, catalogue))
    vectors = jnp.where(mask[..., None], vectors, 0)
    raw = self.events(events, vectors, batch_lib.ItemFeatures(()))
    states = self.event_norm(
      vectors + jnp.einsum('bnf,fd->bnd', raw, self.event_kernel)
    )
    # Padding is zero, and stays so through the biasless values of attention.
    states = jnp.where(mask[..., None], drop(states, seeds[0]), 0)
    count = jnp.maximum(jnp.sum(mask, axis=1), 1).astype(jnp.float32)
    mean = jnp.sum(states, axis=1) / count[:, None]
    about = self.user(context.features, user)
    # --- Once per candidate ---
    targets = shard(self.items(items, catalogue))
    found = self._found(items, targets, events, vectors, catalogue)
    targets = self.target_norm(drop(targets, seeds[1]))
    bias = jnp.where(found, 0.0, attention.MASK_VALUE)[:, None]
    interest = self.search_attention(targets, states, bias, seeds[2])
    # Without a single event found the attention is a mean over all events.
    interest = jnp.where(jnp.any(found, axis=-1)[..., None], interest, 0)
    short = self.short_attention(
      targets,
      states[:, -interest_search.SHORT_EVENTS :],
      mask[:, -interest_search.SHORT_EVENTS :],
    )
    of_user = (
      jnp.broadcast_to(x[:, None], targets.shape) for x in (about, mean)
    )
    about, mean = of_user
    x = jnp.concatenate(
      [
        about,
        targets,
        interest,
        short,
        targets * interest,
        targets * short,
        mean,
        targets * mean,
      ],
      axis=-1,
    )
    first_fusion = _ENDS + len(self.config.tower_dims)
    towers, hidden = self.towers(shard(x), seeds[_ENDS:first_fusion])
    biases = _BIAS_SPEED * self.item_bias[items][..., : towers.shape[-1] + 1]
    # What one objective has learned of an item is a feature to the others.
    stopped = jax.lax.stop_gradient(biases)
    known = jnp.concatenate([biases[..., :-1], stopped[..., -1:]], axis=-1)
    mixed = jnp.einsum('bwx,xy->bwy', known, self.bias_mix[:, :-1])
    to_score = jnp.einsum('bwx,x->bw', stopped, self.bias_mix[:, -1])
    biases = biases + jnp.concatenate([mixed, to_score[..., None]], axis=-1)
    # --- Fusion ---
    if self.config.stop_gradient_towers:
      hidden = jax.lax.stop_gradient(hidden)
    own = self.fusion_items(items, catalogue)
    about = jnp.broadcast_to(
      self.fusion_user(context.features, user)[:, None], own.shape
    )
    x = jnp.concatenate(
      [hidden.reshape(*items.shape, -1), about, own, about * own], axis=-1
    )
    p, _ = self.fusion(shard(x), seeds[first_fusion:])
    towers = towers + biases[..., :-1]
    if self.config.linear_strengths and deterministic:
      # It remembers the users that the towers train on: beside it these would
      # find nothing left to learn.
      linear = self.linear(context.features, events, items)
      towers = (towers + linear) / 2
    return PScoreLogits(p[..., 0] + biases[..., -1], towers)


def _whole_width(width: int) -> int:
  """Returns a multiple of 8, so that usual meshes can split a large table."""
  return -(-width // 8) * 8


def abstract_params(model: PScore) -> Any:
  """Returns the tree of `parameters.Parameter` boxes without computing any."""
  rows = 1 if model.mesh is None else model.mesh.size
  pathways = model.pathways
  width = max(1, pathways.short_length)
  ids = jnp.zeros((rows, width), jnp.int32)
  context = batch_lib.UserContext(
    features=jnp.zeros((rows, len(pathways.user_features)), jnp.int32),
    short=batch_lib.EventSequence(
      items=ids,
      mask=jnp.ones((rows, width), bool),
      age=ids,
      numbers=jnp.zeros((rows, width, len(pathways.event_features)), jnp.int32),
      labels=jnp.zeros((rows, width, len(pathways.labels))),
      label_mask=jnp.ones((rows, width, len(pathways.labels)), bool),
    ),
    positive=None,
    lifelong=None,
  )
  catalogue = batch_lib.Catalogue(
    codes=jnp.zeros(
      (model.sizes.num_items, model.vocabulary.levels), jnp.int32
    ),
    features=batch_lib.ItemFeatures(
      tuple(
        jnp.zeros((model.sizes.num_items, f.max_values), jnp.int32)
        for f in pathways.item_features
      )
    ),
  )
  variables = jax.eval_shape(
    lambda key: model.init(
      key, context, ids[:, 0], ids[:, :1], catalogue, deterministic=True
    ),
    jax.random.key(0),
  )
  return variables['params']
