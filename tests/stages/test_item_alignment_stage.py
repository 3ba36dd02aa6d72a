"""Alignment inside the stage `embed`: training, files, quality report."""

import dataclasses
import logging as std_logging

import jax
import numpy as np
import polars as pl
import pytest
from etils import epath

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import captions as captions_lib
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import item_pairs
from onerec_jax.data import item_tokens
from onerec_jax.data import schema
from onerec_jax.stages import embed
from onerec_jax.stages import item_alignment
from onerec_jax.stages import item_quality
from onerec_jax.train import log

_NUM_ITEMS = 40
_NUM_USERS = 64
_ALIGNMENT = config.ItemAlignmentConfig(
  enabled=True,
  num_queries=2,
  dim=16,
  num_layers=1,
  num_heads=2,
  mlp_dim=16,
  user_to_item_window=1,
  item_to_item_neighbours=2,
  caption_weight=0.1,
  caption_tokens=3,
  caption_dim=8,
  dropout_rate=0.0,
  batch_size=64,
  num_steps=60,
  peak_learning_rate=1e-2,
)


def _one_device(sizes, make_mesh=meshes.make_mesh):
  return make_mesh(sizes, jax.devices()[:1])


def _write_data(folder, *, held_out_item=None, texts=True):
  """Users walk i, i + 1, ... on a ring; their last two events are held out."""
  rng = np.random.default_rng(0)
  rows, valid, test = [], [], []
  for user in range(_NUM_USERS):
    items = (int(rng.integers(_NUM_ITEMS)) + np.arange(7)) % _NUM_ITEMS
    if held_out_item is not None:
      items[-2:] = held_out_item
    splits = ['train'] * 5 + ['valid', 'test']
    rows += [
      (user, int(i), t, True, s)
      for t, (i, s) in enumerate(zip(items, splits, strict=True))
    ]
    for records, length in ((valid, 6), (test, 7)):
      records.append(
        examples.UserRecord(
          user=user,
          items=items[:length].astype(np.int32),
          positive=np.ones(length, bool),
          timestamps=np.arange(length),
          target_starts=np.array([length - 1], np.int32),
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
  number = np.arange(_NUM_ITEMS)
  titles = [f'colour{k // 10} number{k}' if texts else None for k in number]
  items = pl.DataFrame(
    {
      'item': number.astype(np.int32),
      'item_id': [f'i{k}' for k in number],
      'title': pl.Series(titles, dtype=pl.String),
      'text': pl.Series([None] * _NUM_ITEMS, dtype=pl.String),
      'categories': [['all', f'arc{k // 10}'] for k in number],
      'train_positives': number.astype(np.int32),
    }
  )
  users = pl.DataFrame({'user': np.arange(_NUM_USERS, dtype=np.int32)})
  catalog.write_tables(folder, interactions, items, users)
  for name, records in (('valid', valid), ('test', test)):
    examples.write_examples(
      folder / 'examples' / f'{name}.arrayrecord', records
    )


def _content():
  """The place on the ring, hidden by large numbers that mean nothing."""
  rng = np.random.default_rng(1)
  angle = 2 * np.pi * np.arange(_NUM_ITEMS) / _NUM_ITEMS
  waves = [f(k * angle) for k in (1, 2, 3) for f in (np.cos, np.sin)]
  noise = 2 * rng.standard_normal((_NUM_ITEMS, 4))
  return np.concatenate([np.stack(waves, 1), noise], axis=1)


def _run(root, vectors, *, alignment=_ALIGNMENT, **data):
  workdir = workdir_lib.Workdir(root)
  _write_data(workdir.data, **data)
  path = epath.Path(root) / 'content.npy'
  np.save(path, vectors)
  part = config.EmbedPart(kind='array', dim=10, path=str(path))
  experiment = config.Experiment(
    embed=config.EmbedConfig(parts=(part,), alignment=alignment)
  )
  with pytest.MonkeyPatch.context() as patch:
    # Eight devices compile for longer; a test below uses several.
    patch.setattr(meshes, 'make_mesh', _one_device)
    result = embed.run(experiment, workdir)
  with workdir.embeddings.open('rb') as file, np.load(file) as stored:
    return result, stored['embeddings']


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  return _run(tmp_path_factory.mktemp('aligned'), _content())


def test_aligned_vectors_find_the_next_item_where_content_hides_it(trained):
  result, vectors = trained
  assert vectors.shape == (_NUM_ITEMS, 2 * 16) and result['dim'] == 32
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  quality = result['alignment']['quality']
  for split in ('valid', 'test'):
    before, after = (
      quality['vectors'][name][split] for name in ('unaligned', 'aligned')
    )
    assert before['examples'] == after['examples'] == _NUM_USERS
    # The next four items are unseen, so that ten neighbours of 40 hold it.
    assert after['hit@10'] > 0.95 > 0.8 > before['hit@10']
    assert after['ndcg@10'] > before['ndcg@10']
    ratio = quality['aligned_over_unaligned'][split]
    assert ratio['ratio'] == after['hit@10'] / before['hit@10']
    assert 1 < ratio['low'] <= ratio['ratio'] <= ratio['high']
  assert result['neighbour_hit@10'] > 0.8


def test_neighbours_and_their_categories_are_reported(trained):
  quality = trained[0]['alignment']['quality']
  shares = [
    quality['vectors'][name]['neighbour_category_share']
    for name in ('unaligned', 'aligned')
  ]
  # An arc of ten on the ring is a category.
  assert shares[1] > shares[0] + 0.1
  first = quality['neighbours'][0]
  assert first['item'] == 'colour3 number39'  # the most popular
  assert len(first['aligned']) == len(first['unaligned']) == 5
  near = {f'colour{k // 10} number{k}' for k in (38, 0, 1)}
  assert first['aligned'][0] in near


def test_training_is_summarised(trained):
  summary = trained[0]['alignment']
  assert summary['pairs'] == {
    'user_to_item': _NUM_USERS * 4,
    'item_to_item': summary['pairs']['item_to_item'],
  }
  assert 0 < summary['pairs']['item_to_item'] <= 2 * _NUM_ITEMS
  assert summary['captions'] == {
    'used': True,
    'items': _NUM_ITEMS,
    'vocabulary': 44,
  }
  training = summary['training']
  assert training['steps'] == 60
  assert trained[0]['earlier_seconds'] == training['earlier_seconds']
  assert {'contrastive', 'accuracy', 'caption', 'valid/hit@10'} <= set(
    training['final']
  )


def test_held_out_events_change_the_figures_but_no_vector(trained, tmp_path):
  result, vectors = _run(tmp_path, _content(), held_out_item=3)
  np.testing.assert_array_equal(vectors, trained[1])
  before, after = (
    r['alignment']['quality']['vectors']['aligned']['test']['hit@10']
    for r in (trained[0], result)
  )
  assert before != after


def test_a_tensor_of_tokens_data_without_text_and_unknown_items(
  tmp_path, caplog
):
  content = _content()
  # Half of the place in either token; item 7 is not known.
  tensor = np.stack([content * (np.arange(10) % 2 == k) for k in (0, 1)], 1)
  tensor[7] = 0
  with caplog.at_level(std_logging.WARNING, logger='absl'):
    result, vectors = _run(
      tmp_path,
      tensor,
      texts=False,
      alignment=dataclasses.replace(_ALIGNMENT, num_steps=4),
    )
  assert result['alignment']['captions'] == {
    'used': False,
    'items': 0,
    'vocabulary': 0,
  }
  assert any('caption_weight=0.1 has no effect' in m for m in caplog.messages)
  assert not vectors[7].any() and result['empty_share'] == 1 / _NUM_ITEMS
  assert np.isfinite(vectors).all()


# --- The training alone -----------------------------------------------------


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(2)
  tokens = item_tokens.ItemTokens(
    rng.standard_normal((20, 2, 5), np.float32),
    np.ones((20, 2), bool),
    (1, 1),
    (5, 5),
  )
  pairs = item_pairs.ItemPairs(
    np.arange(20, dtype=np.int32), np.arange(20, dtype=np.int32)[::-1], 20, 0
  )
  captions = captions_lib.make_captions(
    [f'a{i % 3} b' for i in range(20)], num_words=3, vocabulary_size=4
  )
  return tokens, pairs, captions


def _align(inputs, folder, mesh=None, **changes):
  return item_alignment.align(
    *inputs,
    alignment=dataclasses.replace(
      _ALIGNMENT,
      **{'num_steps': 8, 'batch_size': 8, 'dropout_rate': 0.2, **changes},
    ),
    seed=changes.pop('seed', 0),
    mesh=mesh or _one_device(config.MeshConfig()),
    folder=epath.Path(folder),
  )


def _records(folder):
  (run,) = epath.Path(folder).iterdir()
  return [r['loss'] for r in log.read_metrics(run / log.METRICS)]


def test_a_training_that_is_cut_off_ends_with_the_same_bits(
  inputs, tmp_path, monkeypatch
):
  whole = _align(inputs, tmp_path / 'whole')
  original = item_pairs.ItemPairBatches.__next__

  def fail(batches):
    if batches.get_state()['next_index'] == 5:
      raise KeyboardInterrupt
    return original(batches)

  with monkeypatch.context() as patch:
    patch.setattr(item_pairs.ItemPairBatches, '__next__', fail)
    with pytest.raises(KeyboardInterrupt):
      _align(inputs, tmp_path / 'cut')
  cut = _align(inputs, tmp_path / 'cut')
  np.testing.assert_array_equal(cut.vectors, whole.vectors)
  assert _records(tmp_path / 'cut') == _records(tmp_path / 'whole')
  # Once finished, it is not repeated.
  monkeypatch.setattr(
    item_pairs.ItemPairBatches, '__next__', lambda _: pytest.fail('trains')
  )
  again = _align(inputs, tmp_path / 'cut')
  np.testing.assert_array_equal(again.vectors, whole.vectors)


def test_few_pairs_are_one_batch_on_any_number_of_devices(inputs, tmp_path):
  tokens, pairs, _ = inputs
  pairs = pairs._replace(
    triggers=pairs.triggers[:18], targets=pairs.targets[:18]
  )
  made = {
    n: meshes.make_mesh(config.MeshConfig(), jax.devices()[:n]) for n in (1, 4)
  }
  found = {
    n: _align(
      (tokens, pairs, None),
      tmp_path / str(n),
      mesh,
      batch_size=64,
      num_steps=2,
      dropout_rate=0.0,
    )
    for n, mesh in made.items()
  }
  # 18 pairs in 4 equal parts are 20 rows, two of them filler.
  sizes = [found[n].summary['training']['batch_size'] for n in (1, 4)]
  assert sizes == [18, 20]
  losses = [_records(tmp_path / str(n)) for n in (1, 4)]
  np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_batch_that_does_not_fit_the_mesh_names_the_setting(inputs, tmp_path):
  mesh = meshes.make_mesh(config.MeshConfig())
  with pytest.raises(ValueError, match=r'use embed\.alignment\.batch_size=8 '):
    _align(inputs, tmp_path, mesh, batch_size=12)


def test_the_ratio_of_hit_rates_is_paired():
  theirs = np.array([1.0, 0, 1, 0] * 50)
  found = item_quality._ratio(theirs, theirs, seed=0)
  assert found == {'ratio': 1.0, 'low': 1.0, 'high': 1.0}
  ours = np.array([1.0, 1, 1, 0] * 50)
  found = item_quality._ratio(ours, theirs, seed=0)
  assert found is not None
  assert found['ratio'] == 1.5
  assert 1.2 < found['low'] < 1.5 < found['high'] < 1.9
  assert item_quality._ratio(ours, 0 * ours, seed=0) is None
