"""Which events matter for a candidate item: search units and DIN attention.

Search-based interest modelling of the P-Score model.  Candidates are an axis
W beside the events N, which are never repeated per candidate.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

from onerec_jax.model import parameters

# Latest events that the short-term attention reads, as many as L_s of
# 2506.13695, section 2.2.1.
SHORT_EVENTS = 20
# Its hidden units are the embedding's width over this.
_SHORT_SHARE = 2

# --- General search unit ----------------------------------------------------


def nearest_events(
  scores: Float[Array, 'B W N'], mask: Bool[Array, 'B 1 N'], *, count: int
) -> Bool[Array, 'B W N']:
  """Returns which events score highest; of equal ones the latest.

  Args:
    scores: of each event for each candidate, oldest first. [B, W, N]
    mask: False: no event. [B, 1, N]
    count: events found, at most.
  """
  where = jnp.broadcast_to(mask, scores.shape)
  if count >= scores.shape[-1]:
    return where
  scores = jnp.where(where, scores, -jnp.inf)
  least = jax.lax.top_k(scores, count)[0][..., -1:]
  above = scores > least
  equal = (scores == least) & where
  left = count - jnp.sum(above, axis=-1, keepdims=True)
  return (above & where) | (equal & (_places_from_end(equal) <= left))


def latest_events(
  chosen: Bool[Array, 'B W N'], *, count: int
) -> Bool[Array, 'B W N']:
  """Returns the last `count` True entries of the last axis."""
  return chosen & (_places_from_end(chosen) <= count)


def _places_from_end(chosen: Bool[Array, 'B W N']) -> Int[Array, 'B W N']:
  """Returns the number of True entries from each one to the end."""
  return jnp.cumsum(chosen[..., ::-1], axis=-1)[..., ::-1]


def shares_value(
  events: Int[Array, 'B N V'], candidates: Int[Array, 'B W V']
) -> Bool[Array, 'B W N']:
  """Returns whether an event has a value of the candidate; 0 is none."""
  left, right = candidates[:, :, None, :, None], events[:, None, :, None, :]
  return jnp.any((left == right) & (left > 0), axis=(-2, -1))


# --- Short term ---


class ShortTermAttention(nn.Module):
  """Sum of the latest events, weighted by a small network.

    u = Σ_n a(v, e_n) e_n,   a(v, e) = w · ReLU(W_v v + W_e e + W_p (v ⊙ e))

  The weights are no softmax: their sum says how much the user cares.

  Reference: Zhou et al. 2018, arXiv:1706.06978 (DIN), eq. 3.
  """

  embed_dim: int

  def setup(self) -> None:
    embed, hidden = self.embed_dim, max(1, self.embed_dim // _SHORT_SHARE)
    self.inner = parameters.declare(
      self,
      'inner',
      (3, embed, hidden),
      (None, 'embed', 'mlp'),
      parameters.Initializer(stddev=(3 * embed) ** -0.5),
    )
    self.bias = parameters.declare(
      self, 'bias', (hidden,), ('mlp',), parameters.Initializer(stddev=0.0)
    )
    self.outer = parameters.declare(
      self,
      'outer',
      (hidden,),
      ('mlp',),
      parameters.Initializer(stddev=1 / (SHORT_EVENTS * hidden**0.5)),
    )

  def __call__(
    self,
    candidates: Float[Array, 'B W D'],
    events: Float[Array, 'B N D'],
    mask: Bool[Array, 'B N'],
  ) -> Float[Array, 'B W D']:
    item = jnp.einsum('bwd,df->bwf', candidates, self.inner[0])
    event = jnp.einsum('bnd,df->bnf', events, self.inner[1])
    both = jnp.einsum('bwd,bnd,df->bwnf', candidates, events, self.inner[2])
    hidden = item[:, :, None] + event[:, None] + both
    hidden = jax.nn.relu(hidden + self.bias[None, None, None])
    weights = jnp.einsum('bwnf,f->bwn', hidden, self.outer)
    weights = jnp.where(mask[:, None], weights, 0)
    return jnp.einsum('bwn,bnd->bwd', weights, events)
