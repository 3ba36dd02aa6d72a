"""The adapter of every data.source; the only place that knows them all."""

from onerec_jax import config
from onerec_jax.data import amazon
from onerec_jax.data import fetch
from onerec_jax.data import kuairand
from onerec_jax.data import movielens
from onerec_jax.data import schema
from onerec_jax.data import synthetic
from onerec_jax.data import tables


def read(data: config.DataConfig, *, seed: int) -> schema.Dataset:
  """Returns the data set that `data` names.

  Args:
    data: source, path, variant and the settings of the source.
    seed: of the simulated world; other sources ignore it.

  Raises:
    DataError: a file is wrong.
    FileNotFoundError: a file is missing.
    ValueError: the settings do not name a data set.
  """
  if data.source == 'synthetic':
    return synthetic.read(data.synthetic, seed=seed)
  if data.source == 'movielens':
    variant = data.variant or '100k'
    if data.path is None and variant == '100k':
      return movielens.read(fetch.movielens_100k(), variant=variant)
    if data.path is None:
      raise ValueError(
        f"data.source='movielens', data.variant={variant!r} needs data.path:"
        ' only 100k can be fetched. Unpack ml-1m.zip of'
        ' grouplens.org/datasets/movielens/1m and pass its folder.'
      )
    return movielens.read(data.path, variant=variant)
  if data.source == 'tables':
    return tables.read(data.tables)
  if data.path is None:
    raise ValueError(
      f'data.source={data.source!r} needs data.path, the folder of its files.'
    )
  if data.source == 'kuairand':
    return kuairand.read(data.path, variant=data.variant or 'pure')
  if data.source == 'amazon_sequences':
    return amazon.read_sequences(data.path, variant=data.variant)
  return amazon.read_reviews(data.path, variant=data.variant)
