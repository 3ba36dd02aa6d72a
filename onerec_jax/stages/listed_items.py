"""Which items may be recommended: a file of ids, e.g. what is in stock.

For the commands recommend and export.
"""

import os

import numpy as np
from absl import logging
from etils import epath

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.stages import served
from onerec_jax.stages import trained as trained_lib


def restrict(
  trained: trained_lib.Trained,
  path: str | os.PathLike[str],
  item_ids: np.ndarray,
  decoding: config.DecodingConfig,
) -> trained_lib.Trained:
  """Returns the model with a catalogue of the items that a file names.

  Ids that the run does not know, such as of newer items, are left out, and
  counted in the log.

  Args:
    trained: the model.
    path: text file, local or gs://: an original id a line; empty lines do not
      count.
    item_ids: original ids by dense item.
    decoding: how lists will be made.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it names no item of the run, or decoding is free to generate
      others.
  """
  if trained.router_bias is not None and decoding.constrain != 'trie':
    raise ValueError(
      "--items needs evaluate.decoding.constrain='trie', got"
      f' {decoding.constrain!r}: without the trie a model generates IDs of any'
      ' item. Add --config.evaluate.decoding.constrain=trie.'
    )
  workdir_lib.check_reachable(os.fspath(path))
  file = epath.Path(path)
  if not file.exists():
    raise FileNotFoundError(
      f'--items={path} is missing; expected a text file with an item id a line.'
    )
  lines = [line.strip() for line in file.read_text().splitlines()]
  wanted = dict.fromkeys(line for line in lines if line)
  known = {item_id: item for item, item_id in enumerate(item_ids.tolist())}
  found = sorted(known[i] for i in wanted if i in known)
  unknown = [i for i in wanted if i not in known]
  examples = ', '.join(list(known)[:3])
  if not found:
    raise ValueError(
      f'--items={path} names none of the {len(known):,} items of the run, but'
      f' {len(unknown):,} others ({", ".join(unknown[:3]) or "it is empty"});'
      f' expected an original id a line, e.g. {examples}.'
    )
  if unknown:
    logging.warning(
      '%s: %d of %d ids are unknown to the run and left out, e.g. %s',
      path,
      len(unknown),
      len(wanted),
      ', '.join(unknown[:3]),
    )
  logging.info('Recommending from %d of %d items', len(found), len(known))
  return served.restricted(trained, np.array(found, np.int64))
