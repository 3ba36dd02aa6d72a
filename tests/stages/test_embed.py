import numpy as np
import polars as pl
import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import schema
from onerec_jax.stages import embed

NUM_ITEMS = 24
PARTS = (
  config.EmbedPart(kind='text', dim=4),
  config.EmbedPart(kind='cooccurrence', dim=6, weight=2.0),
  config.EmbedPart(kind='swing', dim=6),
)


def make_data(folder, *, held_out_item=None, walk_seed=0):
  """Users walk i, i + 1, ...; their last two events validate and test."""
  rng = np.random.default_rng(walk_seed)
  rows, records = [], []
  for user in range(40):
    items = (int(rng.integers(NUM_ITEMS)) + np.arange(7)) % NUM_ITEMS
    if held_out_item is not None:
      items[-2:] = held_out_item
    splits = ['train'] * 5 + ['valid', 'test']
    rows += [
      (user, int(i), t, True, s)
      for t, (i, s) in enumerate(zip(items, splits, strict=True))
    ]
    records.append(
      examples.UserRecord(
        user=user,
        items=items[:6].astype(np.int32),
        positive=np.ones(6, bool),
        timestamps=np.arange(6),
        target_starts=np.array([5], np.int32),
        target_lengths=np.array([1], np.int32),
      )
    )
  interactions = pl.DataFrame(
    rows,
    schema={
      'user': pl.Int32,
      'item': pl.Int32,
      'timestamp': pl.Int64,
      'positive': pl.Boolean,
      'split': schema.SPLIT_DTYPE,
    },
    orient='row',
  )
  items = pl.DataFrame(
    {
      'item': np.arange(NUM_ITEMS, dtype=np.int32),
      'item_id': [f'i{k}' for k in range(NUM_ITEMS)],
      'title': [f'colour{k % 4} shape{k % 3}' for k in range(NUM_ITEMS)],
      'text': pl.Series([None] * NUM_ITEMS, dtype=pl.String),
      'categories': pl.Series([[]] * NUM_ITEMS, dtype=pl.List(pl.String)),
      'train_positives': np.zeros(NUM_ITEMS, np.int32),
    }
  )
  users = pl.DataFrame(
    {
      'user': np.arange(40, dtype=np.int32),
      'user_id': [str(u) for u in range(40)],
    }
  )
  catalog.write_tables(folder, interactions, items, users)
  examples.write_examples(folder / 'examples' / 'valid.arrayrecord', records)


def run(root, **data):
  workdir = workdir_lib.Workdir(root)
  make_data(workdir.data, **data)
  experiment = config.Experiment(embed=config.EmbedConfig(parts=PARTS))
  result = embed.run(experiment, workdir)
  with workdir.embeddings.open('rb') as file, np.load(file) as stored:
    return result, stored['embeddings']


def test_the_stage_writes_vectors_and_reports_each_part(tmp_path):
  result, vectors = run(tmp_path)
  assert vectors.dtype == np.float32
  assert vectors.shape == (NUM_ITEMS, result['dim'])
  assert result['dim'] == sum(p['dim'] for p in result['parts'])
  assert [p['kind'] for p in result['parts']] == [
    'text',
    'cooccurrence',
    'swing',
  ]
  assert result['num_items'] == NUM_ITEMS
  assert result['num_transitions'] == 40
  assert result['empty_share'] == 0
  for figures in result['parts']:
    assert 0 < figures['explained'] <= 1 + 1e-6
    assert figures['seconds'] >= 0
  hits = {p['kind']: p['neighbour_hit@10'] for p in result['parts']}
  # Text says nothing of the walk; neighbours on the ring do.
  assert hits['cooccurrence'] > 0.9 > hits['text']


def test_held_out_events_do_not_change_the_vectors(tmp_path):
  result, vectors = run(tmp_path / 'a')
  changed, same = run(tmp_path / 'b', held_out_item=3)
  np.testing.assert_array_equal(vectors, same)
  # The quality figure does see validation targets.
  assert changed['neighbour_hit@10'] != result['neighbour_hit@10']


def test_training_events_do_change_the_vectors(tmp_path):
  _, vectors = run(tmp_path / 'a')
  _, other = run(tmp_path / 'b', walk_seed=1)
  text_dim = 4
  np.testing.assert_array_equal(vectors[:, :text_dim], other[:, :text_dim])
  # Blocks may be rotated, so their cosines are compared.
  gram, other_gram = (
    v[:, text_dim:] @ v[:, text_dim:].T for v in (vectors, other)
  )
  assert np.abs(gram - other_gram).max() > 0.1


def test_a_workdir_without_data_names_the_stage_to_run(tmp_path):
  with pytest.raises(FileNotFoundError, match='prepare'):
    embed.run(config.Experiment(), workdir_lib.Workdir(tmp_path))
