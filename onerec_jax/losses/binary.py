"""Binary cross-entropy with soft labels.

Arrays in, per-element losses out: nothing is reduced, no batch, no model.
"""

import optax
from jaxtyping import Array
from jaxtyping import Float


def binary_cross_entropy(
  logits: Float[Array, '*shape'], labels: Float[Array, '*shape']
) -> Float[Array, '*shape']:
  """Cross-entropy between labels and the sigmoid of the logits, per element.

    loss = -y log σ(z) - (1 - y) log(1 - σ(z))

  Its least value is the entropy of y, which is above 0 for soft labels.

  Args:
    logits: z, float32; any finite value gives a finite loss and gradient.
    labels: y in [0, 1].

  Returns:
    Loss in nats, not reduced. [*shape]
  Reference: OneRec, arXiv:2502.18965, section 3.3 (loss of the reward model).
  """
  return optax.sigmoid_binary_cross_entropy(logits, labels)
