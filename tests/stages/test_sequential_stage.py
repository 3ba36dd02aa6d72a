"""Item-level baselines through the stages, on a small simulated world."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import exported
from onerec_jax import metrics
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import pipeline
from onerec_jax.decoding import catalogue_ranking
from onerec_jax.objectives import sequential as objective_lib
from onerec_jax.stages import evaluate
from onerec_jax.stages import export
from onerec_jax.stages import prepare
from onerec_jax.stages import pretrain
from onerec_jax.stages import recommend
from onerec_jax.stages import sequential
from onerec_jax.stages import trained as trained_lib
from onerec_jax.train import contract

_STEPS = 6


def _experiment(kind, **settings) -> config.Experiment:
  return config.validate(
    config.Experiment(
      architecture=kind,
      data=config.DataConfig(
        synthetic=config.SyntheticConfig(
          num_users=40, num_items=30, num_clusters=3, events_per_user=10
        ),
        sessions=config.SessionsConfig(items_per_session=2),
        history_length=6,
      ),
      sequential=config.SequentialConfig(
        embed_dim=8, num_heads=2, num_layers=1, mlp_dim=8, **settings
      ),
      pretrain=config.TrainConfig(
        batch_size=16,
        num_steps=_STEPS,
        optimizer=config.OptimizerConfig(
          peak_learning_rate=0.03, warmup_steps=0
        ),
        log_every_steps=2,
        evaluate_every_steps=_STEPS,
        evaluate_examples=16,
        checkpoint_every_steps=_STEPS,
      ),
      evaluate=config.EvaluateConfig(
        batch_size=16,
        top_k=(1, 5, 10),
        # One of them has counts in its lists, from training to exporting.
        decoding=config.DecodingConfig(
          transition_weight=0.5 if kind == 'bert4rec' else 0.0
        ),
      ),
    )
  )


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  """A work directory with prepared data and no semantic IDs."""
  root = tmp_path_factory.mktemp('baselines')
  workdir = workdir_lib.Workdir(root)
  prepare.run(_experiment('sasrec'), workdir)
  return workdir


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
  """Function kind -> (experiment, workdir, result), trained once."""
  done = {}

  def train(kind):
    if kind not in done:
      workdir = workdir_lib.Workdir(
        tmp_path_factory.mktemp(kind), folders={'prepare': data.data}
      )
      experiment = _experiment(kind)
      done[kind] = experiment, workdir, pretrain.run(experiment, workdir)
    return done[kind]

  return train


# --- Attributes -------------------------------------------------------------


def test_attributes_are_numbered_and_the_specific_ones_kept():
  table, count = sequential.attribute_table(
    [['all', 'b', 'c'], [], ['all', 'all', 'a']], max_attributes=2
  )
  # 'all' remains where there is room; in order: a, all, b, c.
  assert count == 4
  np.testing.assert_array_equal(
    table.mask, [[True, True], [False, False], [True, True]]
  )
  np.testing.assert_array_equal(table.ids[0], [2, 3])
  np.testing.assert_array_equal(table.ids[2], [1, 0])


def test_fdsa_without_any_category_is_refused(data, monkeypatch):
  num_items = catalog.num_items(data.data)
  monkeypatch.setattr(catalog, 'item_categories', lambda _: [[]] * num_items)
  with pytest.raises(ValueError, match='item_category_columns'):
    sequential.read_catalogue(_experiment('fdsa'), data)


# --- Training and answering -------------------------------------------------


@pytest.mark.parametrize('kind', ['sasrec', 'bert4rec', 'fdsa'])
def test_each_baseline_learns_in_the_same_loop(run, kind):
  _, workdir, result = run(kind)
  assert json.loads(json.dumps(result)) == result
  assert result['steps'] == _STEPS
  assert result['semantic_ids'] is None
  assert result['best']['metric'] == pretrain.BEST_METRIC
  assert result['num_active_parameters'] == result['num_parameters']
  lines = (workdir.folder('pretrain') / 'metrics.jsonl').read_text()
  losses = [
    record['loss']
    for record in map(json.loads, lines.splitlines())
    if 'loss' in record
  ]
  assert len(losses) == _STEPS // 2
  assert losses[-1] < losses[0]
  assert result['final']['model_flops_per_second'] > 0


@pytest.mark.parametrize('kind', ['sasrec', 'bert4rec', 'fdsa'])
def test_an_exported_baseline_answers_as_recommend_does(run, kind, tmp_path):
  experiment, workdir, _ = run(kind)
  export.run(experiment, workdir, top_k=5, output=tmp_path)
  history = catalog.item_ids(workdir.data).tolist()[3:6]
  (answer,) = exported.load(tmp_path).recommend([history])
  rows = recommend.run(
    experiment, workdir, users=None, history=history, top_k=5, output=None
  )
  assert [a.item_id for a in answer] == [r['item_id'] for r in rows]
  np.testing.assert_allclose(
    [a.score for a in answer], [r['score'] for r in rows], rtol=1e-5
  )


@pytest.mark.parametrize('kind', ['sasrec', 'bert4rec', 'fdsa'])
def test_a_trained_baseline_answers_like_any_model(run, kind):
  experiment, workdir, result = run(kind)
  trained = trained_lib.load(experiment, workdir, which='best')
  assert (trained.step, trained.differences) == (_STEPS, [])
  # No tokenizer has run: every item is its own ID.
  assert trained.ids.num_items == len(np.unique(trained.ids.codes))
  store = pretrain.open_examples(experiment, workdir, 'valid')
  recommender = trained_lib.Recommender(
    trained,
    experiment.evaluate.decoding,
    top_k=10,
    batch_size=16,
    max_excluded=int(store.index.history_counts.max()),
  )
  ranks, masks, batches = [], [], []
  for batch in pipeline.eval_batches(
    store,
    batch_size=16,
    history_length=6,
    items_per_session=2,
    max_examples=16,
  ):
    seen = pipeline.seen_items(store, batch)
    answers = recommender(batch, seen)
    assert answers.entropy.shape == (16, 0)
    np.testing.assert_array_equal(answers.generated, [10] * 16)
    np.testing.assert_array_equal(answers.legal, [10] * 16)
    for items, scores, gone in zip(
      answers.items, answers.scores, seen, strict=True
    ):
      assert len(set(items.tolist())) == 10
      assert not set(items.tolist()) & set(gone.tolist())
      assert (np.diff(scores) <= 0).all()
    ranks.append(metrics.target_ranks(answers.items, batch.target_items))
    masks.append(batch.target_mask)
    batches.append(batch)
  recall = metrics.recall_at_k(
    np.concatenate(ranks), np.concatenate(masks), k=10
  )
  # What the training measured on the same users.
  assert recall.mean() == pytest.approx(result['best']['value'])
  forced = trained_lib.teacher_forced(trained, batches)
  assert set(forced) == {'item_loss', 'accuracy'}
  assert forced['item_loss'] == pytest.approx(
    result['best']['values']['valid/item_loss'], rel=1e-4
  )


def test_the_stage_evaluate_judges_a_baseline_beside_the_floors(run, tmp_path):
  experiment, workdir, _ = run('fdsa')
  place = workdir_lib.Workdir(
    tmp_path,
    folders={
      'prepare': workdir.data,
      'pretrain': workdir.folder('pretrain'),
    },
  )
  result = evaluate.run(experiment, place)
  assert json.loads(json.dumps(result, allow_nan=False)) == result
  assert 'popularity' in result['metrics']
  assert result['legality'] == 1.0
  assert result['entropy_per_level'] == []
  assert set(result['teacher_forced']) == {'item_loss', 'accuracy'}
  # Every item is its own ID here.
  assert result['metrics_by_id'] == result['metrics']


@pytest.mark.parametrize('kind', ['sasrec', 'bert4rec', 'fdsa'])
def test_the_validation_loss_is_that_of_the_ranking_scores(run, kind):
  """Two ways to the probability of the next item agree."""
  experiment, workdir, _ = run(kind)
  trained = trained_lib.load(experiment, workdir, which='latest')
  store = pretrain.open_examples(experiment, workdir, 'valid')
  batch = pipeline.session_batch(
    store, np.arange(8), history_length=6, items_per_session=1
  )
  batch = jax.tree.map(jax.numpy.asarray, batch)
  params, attributes = jax.tree.map(
    jax.numpy.asarray, jax.device_get((trained.params, trained.attributes))
  )
  alone = dataclasses.replace(trained.model, mesh=None)
  log_probs = jax.jit(catalogue_ranking.score_items, static_argnums=0)(
    alone, params, attributes, batch
  )
  objective = objective_lib.make_objective(alone, config.TrainConfig())
  output = jax.jit(
    lambda p, b: objective(p, None, {'attributes': attributes}, b, None)
  )(params, batch)
  of_target = np.take_along_axis(
    np.asarray(log_probs), np.asarray(batch.target_items), axis=1
  )
  np.testing.assert_allclose(
    output.metrics['item_loss'].total, -of_target.sum(), rtol=1e-4
  )
  assert output.metrics['item_loss'].count == 8


def test_bce_trains_too(data, tmp_path):
  workdir = workdir_lib.Workdir(tmp_path, folders={'prepare': data.data})
  experiment = _experiment('sasrec', loss='bce', num_negatives=3)
  result = pretrain.run(experiment, workdir)
  assert math.isfinite(result['final']['loss'])
  # ln 2 for the positive and each negative, at the start.
  assert result['best']['values']['valid/item_loss'] < 4 * math.log(2) + 1
  assert 0 <= result['best']['values']['valid/accuracy'] <= 1


# --- What a checkpoint belongs to -------------------------------------------


def test_another_catalogue_is_refused(run, tmp_path):
  experiment, workdir, _ = run('sasrec')
  other = workdir_lib.Workdir(
    tmp_path, folders={'pretrain': workdir.folder('pretrain')}
  )
  smaller = dataclasses.replace(experiment.data.synthetic, num_items=20)
  prepare.run(
    dataclasses.replace(
      experiment, data=dataclasses.replace(experiment.data, synthetic=smaller)
    ),
    other,
  )
  with pytest.raises(ValueError, match='was trained on 30 items'):
    trained_lib.load(experiment, other, which='best')


def test_changed_settings_of_the_baseline_are_named(run):
  experiment, workdir, _ = run('sasrec')
  changed = dataclasses.replace(
    experiment,
    sequential=dataclasses.replace(experiment.sequential, embed_dim=16),
    model=dataclasses.replace(experiment.model, embed_dim=16),  # not its own
  )
  found = trained_lib.load(changed, workdir, which='best')
  assert found.differences == ['sequential.embed_dim: 8 -> 16']
  assert found.model.config.embed_dim == 8


def test_a_model_is_loaded_from_the_folder_that_is_named(tiny_run, tmp_path):
  experiment, workdir = tiny_run
  other = workdir_lib.Workdir(
    tmp_path,
    folders={'prepare': workdir.data, 'tokenize': workdir.tokenizer},
  )
  folder = other.root / 'align' / 'round_03'
  shutil.copytree(workdir.folder('pretrain'), folder)
  with pytest.raises(FileNotFoundError, match="'pretrain'"):
    trained_lib.load(experiment, other, which='best')
  found = trained_lib.load(experiment, other, which='best', folder=folder)
  assert found.step == 0


def test_onerec_with_other_semantic_ids_is_refused(tiny_run, tmp_path):
  experiment, workdir = tiny_run
  other = workdir_lib.Workdir(
    tmp_path,
    folders={
      'prepare': workdir.data,
      'pretrain': workdir.folder('pretrain'),
    },
  )
  ids = pretrain.read_semantic_ids(workdir)
  other.stage('tokenize')
  catalog.write_semantic_ids(
    other.tokenizer / 'semantic_ids.parquet',
    item_ids=catalog.item_ids(workdir.data),
    codes=ids.codes[::-1],
    rank_in_bucket=ids.rank_in_bucket,
    codes_per_level=ids.codes_per_level,
  )
  with pytest.raises(contract.Mismatch, match='other items'):
    trained_lib.load(experiment, other, which='best')
