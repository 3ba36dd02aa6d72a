"""Command add-items: IDs that stay, and a model that serves what came later."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from onerec_jax import config
from onerec_jax import exported
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import new_items
from onerec_jax.data import schema
from onerec_jax.stages import added_items
from onerec_jax.stages import export
from onerec_jax.stages import pretrain
from onerec_jax.stages import recommend
from onerec_jax.stages import reinforce
from onerec_jax.stages import runner

_BUCKETS = 1024


@pytest.fixture(scope='module')
def trained(tiny_experiment, tiny_model, tmp_path_factory):
  """(experiment, workdir) after two steps, with IDs of the run's own."""
  experiment = tiny_experiment(
    embed=config.EmbedConfig(
      (
        config.EmbedPart(kind='cooccurrence', dim=4),
        config.EmbedPart(kind='text', dim=4),
      )
    ),
    model=tiny_model(code_init='codebook', id_buckets=_BUCKETS),
  )
  experiment = dataclasses.replace(
    experiment,
    evaluate=dataclasses.replace(
      experiment.evaluate,
      batch_size=8,
      decoding=config.DecodingConfig(num_beams=8, transition_weight=0.5),
    ),
  )
  workdir = workdir_lib.Workdir(tmp_path_factory.mktemp('trained') / 'run')
  stages = ('prepare', 'embed', 'tokenize', 'pretrain')
  runner.run_stages(experiment, workdir, stages, resume=True)
  return experiment, workdir


@pytest.fixture
def run(trained, copied, tmp_path):
  """(experiment, a copy of the workdir that may be changed)."""
  experiment, workdir = trained
  return experiment, copied(workdir, tmp_path / 'run')


def _table(folder, texts, first=0, **columns):
  path = folder / f'new{first}.csv'
  ids = [f'new{first + i}' for i in range(len(texts))]
  pl.DataFrame({'item_id': ids, 'text': texts} | columns).write_csv(path)
  return path


def _texts(workdir, *items):
  texts = catalog.item_texts(workdir.data)
  return [texts[item] for item in items]


def _add(run, tmp_path, *items, first=0, share_ids=False):
  """Adds items with the texts of old ones."""
  path = _table(tmp_path, _texts(run[1], *items), first)
  return added_items.run(*run, path=path, share_ids=share_ids)


# --- Adding -----------------------------------------------------------------


def test_old_ids_stay_and_new_ones_are_kept(run, tmp_path, capsys):
  _, workdir = run
  before = pretrain.read_semantic_ids(workdir)
  found = _add(run, tmp_path, 3, 7)
  assert found is not None
  assert found.item_ids.tolist() == ['new0', 'new1']
  assert found.titles == ['new0', 'new1']  # the table has none
  assert found.version.tolist() == [1, 1]
  after = pretrain.read_semantic_ids(workdir)
  np.testing.assert_array_equal(after.codes, before.codes)
  served = added_items.catalogue(workdir)
  assert served.item_ids.tolist() == [
    *catalog.item_ids(workdir.data).tolist(),
    'new0',
    'new1',
  ]
  shown = capsys.readouterr().out
  assert 'new1' in shown and '2 items added, version 1' in shown


def test_an_item_gets_the_codes_of_what_it_is_like(run, tmp_path):
  """Of 36 IDs 30 are taken: what finds none free comes behind the others."""
  _, workdir = run
  before = pretrain.read_semantic_ids(workdir)
  found = _add(run, tmp_path, *range(6))
  assert found is not None
  near = before.codes[:6, 0] == found.codes[:, 0]
  assert near.sum() >= 3, 'by chance one in six would agree'
  taken = {tuple(code) for code in before.codes.tolist()}
  for code, rank in zip(
    found.codes.tolist(), found.rank_in_bucket, strict=True
  ):
    assert (rank > 0) == (tuple(code) in taken)
    taken.add(tuple(code))


def test_by_default_an_id_is_shared_that_the_model_knows(run, tmp_path):
  _, workdir = run
  before = pretrain.read_semantic_ids(workdir)
  path = _table(tmp_path, _texts(workdir, *range(6)))
  found = added_items.run(*run, path=path)
  assert found is not None
  taken = {tuple(code) for code in before.codes.tolist()}
  assert {tuple(code) for code in found.codes.tolist()} <= taken
  assert (found.rank_in_bucket > 0).all()
  # The lists have an item behind the older one of its ID.
  served, items = added_items.serve(reinforce.load_final(*run), workdir)
  assert served.ids.num_items == len(items.titles) == before.num_items + 6
  old = items.item_ids.tolist()
  shared = old[before.codes.tolist().index(found.codes[0].tolist())]
  listed = tmp_path / 'listed.txt'
  listed.write_text(f'{shared}\nnew0\n')
  other = next(i for i in old if i != shared)
  rows = _recommend(run, history=[other], items=listed)
  assert [row['item_id'] for row in rows] == [shared, 'new0']


def test_items_that_come_later_still_do_not_move_those_before(run, tmp_path):
  first = _add(run, tmp_path, 3, 7)
  second = _add(run, tmp_path, 3, 9, first=2)
  assert first is not None and second is not None
  assert second.version.tolist() == [2, 2]
  kept = new_items.read(added_items.path_of(run[1]))
  assert kept is not None
  np.testing.assert_array_equal(
    kept.codes, np.concatenate([first.codes, second.codes])
  )
  assert kept.item_ids.tolist() == ['new0', 'new1', 'new2', 'new3']
  assert kept.base == pretrain.read_semantic_ids(run[1]).digest()


def test_what_is_there_keeps_its_id(run, tmp_path):
  first = _add(run, tmp_path, 3, 7)
  assert _add(run, tmp_path, 3, 7) is None
  old = catalog.item_ids(run[1].data)[0]
  path = tmp_path / 'old.csv'
  pl.DataFrame({'item_id': [old], 'text': ['any']}).write_csv(path)
  assert added_items.run(*run, path=path) is None
  kept = new_items.read(added_items.path_of(run[1]))
  assert kept is not None and first is not None
  np.testing.assert_array_equal(kept.codes, first.codes)


def test_an_rq_vae_encodes_new_items(tiny_experiment, tmp_path):
  experiment = tiny_experiment(
    embed=config.EmbedConfig((config.EmbedPart(kind='text', dim=6),))
  )
  experiment = dataclasses.replace(
    experiment,
    tokenizer=dataclasses.replace(
      experiment.tokenizer,
      quantizer='rqvae',
      collision='append',
      rqvae=dataclasses.replace(
        experiment.tokenizer.rqvae, num_steps=4, batch_size=8
      ),
    ),
  )
  workdir = workdir_lib.Workdir(tmp_path / 'run')
  stages = ('prepare', 'embed', 'tokenize')
  runner.run_stages(experiment, workdir, stages, resume=True)
  ids = pretrain.read_semantic_ids(workdir)
  found = _add((experiment, workdir), tmp_path, 5)
  assert found is not None
  # Of the same text are the same codes, but for the number at the end.
  np.testing.assert_array_equal(found.codes[0, :2], ids.codes[5, :2])


# --- Serving ----------------------------------------------------------------


def _recommend(run, **changes):
  arguments = {'users': None, 'history': None, 'top_k': 4, 'output': None}
  return recommend.run(*run, **{**arguments, **changes})


def test_new_items_are_recommended_and_read(run, tmp_path):
  found = _add(run, tmp_path, 3, 7, 11)
  assert found is not None
  listed = tmp_path / 'listed.txt'
  listed.write_text('new0\nnew2\n')
  old = catalog.item_ids(run[1].data).tolist()
  rows = _recommend(run, history=[old[0], 'new1'], items=listed)
  assert {row['item_id'] for row in rows} == {'new0', 'new2'}
  assert {row['title'] for row in rows} == {'new0', 'new2'}
  assert all(np.isfinite(row['score']) for row in rows)
  # What is in the history is not recommended.
  rows = _recommend(run, history=['new0', 'new1'], items=listed)
  assert [row['item_id'] for row in rows] == ['new2']


def test_without_added_items_nothing_changes(run, tmp_path):
  old = catalog.item_ids(run[1].data).tolist()
  listed = tmp_path / 'listed.txt'
  listed.write_text('\n'.join(old))
  before = _recommend(run, history=old[:2], items=listed)
  _add(run, tmp_path, 3, 7)
  after = _recommend(run, history=old[:2], items=listed)
  assert [r['item_id'] for r in after] == [r['item_id'] for r in before]
  np.testing.assert_allclose(
    [r['score'] for r in after], [r['score'] for r in before], rtol=1e-5
  )


def test_served_arrays_have_a_row_for_every_item(run, tmp_path):
  found = _add(run, tmp_path, 3, 7)
  assert found is not None
  loaded = reinforce.load_final(*run)
  served, items = added_items.serve(loaded, run[1])
  num_items = loaded.ids.num_items
  assert served.ids.num_items == len(items.item_ids) == num_items + 2
  np.testing.assert_array_equal(served.catalogue.codes[num_items:], found.codes)
  assert served.transitions is not None
  assert len(served.transitions.successors) == num_items + 2
  # Embeddings of the new IDs alone are others.
  before, after = (
    np.asarray(t.params['id_embedding']) for t in (loaded, served)
  )
  assert 1 <= np.any(before != after, axis=1).sum() <= 2
  assert (
    served.params['embedding'].sharding == loaded.params['embedding'].sharding
  )


def test_an_export_answers_as_recommend_does(run, tmp_path):
  _add(run, tmp_path, 3, 7)
  listed = tmp_path / 'listed.txt'
  listed.write_text('new0\nnew1\n')
  old = catalog.item_ids(run[1].data).tolist()
  expected = _recommend(run, history=[old[4], old[5]], items=listed)
  export.run(*run, top_k=4, output=tmp_path / 'export', items=listed)
  (answer,) = exported.load(tmp_path / 'export').recommend([[old[4], old[5]]])
  assert [a.item_id for a in answer] == [r['item_id'] for r in expected]
  np.testing.assert_allclose(
    [a.score for a in answer], [r['score'] for r in expected], rtol=1e-4
  )


# --- Mistakes ---------------------------------------------------------------


def test_a_table_must_be_named(run):
  with pytest.raises(ValueError, match='--new_items=FILE'):
    added_items.run(*run, path=None)


def test_mistakes_of_the_table_are_listed(run, tmp_path):
  path = tmp_path / 'bad.csv'
  pl.DataFrame({'item': ['a'], 'text': ['b']}).write_csv(path)
  with pytest.raises(schema.DataError, match='item_id'):
    added_items.run(*run, path=path)
  with pytest.raises(schema.DataError, match='does not exist'):
    added_items.run(*run, path=tmp_path / 'nowhere.csv')
  assert not added_items.path_of(run[1]).exists()


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda e: dataclasses.replace(e, architecture='sasrec'), 'sasrec'),
    (
      lambda e: dataclasses.replace(
        e, model=dataclasses.replace(e.model, encoder='pathways')
      ),
      'pathways',
    ),
    (
      lambda e: dataclasses.replace(
        e,
        embed=dataclasses.replace(
          e.embed, alignment=config.ItemAlignmentConfig(enabled=True)
        ),
      ),
      'embed.alignment',
    ),
  ],
)
def test_what_only_training_gives_is_refused(run, tmp_path, change, message):
  experiment, workdir = run
  with pytest.raises(ValueError, match=message):
    _add((change(experiment), workdir), tmp_path, 3)


def test_items_of_other_semantic_ids_are_refused(run, tmp_path):
  _add(run, tmp_path, 3)
  path = added_items.path_of(run[1])
  kept = new_items.read(path)
  assert kept is not None
  new_items.write(path, kept._replace(base='another'))
  with pytest.raises(ValueError, match='delete it and add them'):
    _add(run, tmp_path, 5, first=1)
  with pytest.raises(ValueError, match='delete it and add them'):
    _recommend(run, history=['new0'])
