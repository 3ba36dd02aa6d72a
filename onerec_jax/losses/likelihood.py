"""Next-code likelihood of semantic IDs, level by level.

Arrays in, per-token values out: nothing is reduced, no batch, no model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int


class TokenLoss(NamedTuple):
  """Loss and hit of every predicted code; zero and False where masked."""

  loss: Float[Array, 'B M L']  # nats
  correct: Bool[Array, 'B M L']  # the most likely code is the target
  mask: Bool[Array, 'B M L']  # True: the token counts


def next_code_loss(
  logits: Float[Array, 'B M L C'],
  codes: Int[Array, 'B M L'],
  mask: Bool[Array, 'B M'],
  *,
  codes_per_level: tuple[int, ...],
  allowed: Bool[Array, 'B M L C'] | None = None,
  label_smoothing: float = 0.0,
) -> TokenLoss:
  """Negative log-likelihood of each target code, per token.

    loss = -(1 - eps) log p(code) - eps mean_c log p(c)

  p is the softmax over the codes of the token's own level, or over those that
  are allowed; so is the mean; the m·L tokens
  that follow a BOS or an earlier code are predicted, the token after s^L (the
  next BOS) is not: 2502.18965 prints these indices one too high.

  Args:
    logits: entries at or beyond codes_per_level[l] are ignored. [B, M, L, C]
    codes: targets, 0 <= code < codes_per_level[l]. [B, M, L]
    mask: False: the item is padding. [B, M]
    codes_per_level: sizes of the L codebooks.
    allowed: the codes that p gives mass to, the target among them; None: all.
    label_smoothing: eps in [0, 1): mass spread evenly over these codes.

  Returns:
    Per-token values. [B, M, L]
  Reference: 2502.18965 eq. 4; Szegedy et al. 2016, arXiv:1512.00567, sec. 7.
  """
  num_codes = logits.shape[-1]
  sizes = np.asarray(codes_per_level)
  real = np.arange(num_codes)[None, :] < sizes[:, None]  # [L, C]
  real = real[None, None]
  if allowed is not None:
    real = real & allowed
  logits = jnp.where(real, logits.astype(jnp.float32), -jnp.inf)
  log_norm = jax.nn.logsumexp(logits, axis=-1)
  hit = codes[..., None] == np.arange(num_codes)[None, None, None, :]
  target = jnp.sum(jnp.where(hit, logits, 0), axis=-1)
  loss = log_norm - target
  if label_smoothing:
    mean = jnp.mean(logits, axis=-1, where=real)
    loss = (1 - label_smoothing) * loss + label_smoothing * (log_norm - mean)
  keep = jnp.broadcast_to(mask[..., None], codes.shape)
  correct = jnp.argmax(logits, axis=-1) == codes
  return TokenLoss(jnp.where(keep, loss, 0), correct & keep, keep)
