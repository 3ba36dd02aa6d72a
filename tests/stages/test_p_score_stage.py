"""Stage `p_score` on the simulated world, and the model it leaves behind."""

import copy
import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.data import event_table
from onerec_jax.data import impressions
from onerec_jax.data import logistic_baseline
from onerec_jax.data import user_context
from onerec_jax.semantic_ids import table
from onerec_jax.stages import p_score
from onerec_jax.stages import p_score_judgement
from onerec_jax.stages import p_score_model
from onerec_jax.stages import prepare
from onerec_jax.train import contract
from onerec_jax.train import preemption

_CLUSTERS, _NUM_ITEMS, _STEPS = 6, 60, 100
_EXPERIMENT = config.validate(
  config.Experiment(
    data=config.DataConfig(
      source='synthetic',
      synthetic=config.SyntheticConfig(
        num_users=250, num_items=_NUM_ITEMS, num_clusters=_CLUSTERS
      ),
      sessions=config.SessionsConfig(items_per_session=2),
    ),
    model=config.ModelConfig(
      pathways=config.PathwaysConfig(
        user_features=(config.UserFeature('favourite'),),
        item_features=(config.ItemFeature('tag', max_values=2),),
        event_features=(config.EventFeature('watch_time', buckets=8),),
        labels=('is_like', 'long_view'),
      )
    ),
    p_score_model=config.PScoreConfig(
      towers=(
        config.PScoreTower('lvtr', column='long_view'),
        config.PScoreTower('ltr', column='is_like', weight=2.0),
      ),
      held_out_share=0.25,
      embed_dim=16,
      num_heads=2,
      history_length=24,
      search_items=12,
      tower_dims=(16,),
      fusion_dims=(16,),
    ),
    p_score=config.TrainConfig(
      batch_size=128,
      num_steps=_STEPS,
      optimizer=config.OptimizerConfig(
        peak_learning_rate=1e-2, warmup_steps=10, schedule='cosine'
      ),
      evaluate_every_steps=50,
      checkpoint_every_steps=_STEPS,
    ),
    evaluate=config.EvaluateConfig(
      batch_size=128,
      bootstrap_samples=50,
      p_score=config.ItemEvaluationConfig(num_items=5, pass_at=(1, 5)),
    ),
  )
)


def _ids(num_items, turn=0):
  """The first code is the item's cluster, as a good tokenizer has it."""
  item = np.arange(num_items)
  codes = np.stack([(item + turn) % _CLUSTERS, item // _CLUSTERS], axis=1)
  return table.from_codes(
    codes.astype(np.int32),
    codes_per_level=(_CLUSTERS, _NUM_ITEMS // _CLUSTERS + 1),
    popularity=np.ones(num_items),
  )


def _prepared(folder):
  """A work directory that the stage can run in."""
  workdir = workdir_lib.Workdir(folder)
  prepare.run(_EXPERIMENT, workdir)
  ids = _ids(catalog.num_items(workdir.data))
  workdir.stage('tokenize')
  catalog.write_semantic_ids(
    workdir.tokenizer / 'semantic_ids.parquet',
    item_ids=catalog.item_ids(workdir.data),
    codes=ids.codes,
    rank_in_bucket=ids.rank_in_bucket,
    codes_per_level=ids.codes_per_level,
  )
  return workdir, ids


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(workdir, ids, result) of a finished stage."""
  workdir, ids = _prepared(tmp_path_factory.mktemp('p_score_run'))
  return workdir, ids, p_score.run(_EXPERIMENT, workdir)


@pytest.fixture(scope='module')
def loaded(trained):
  workdir, ids, _ = trained
  mesh = meshes.make_mesh(config.MeshConfig())
  return p_score_model.load(_EXPERIMENT, workdir, ids, mesh, batch_size=8)


def _with_model(**changes):
  model = dataclasses.replace(_EXPERIMENT.p_score_model, **changes)
  return dataclasses.replace(_EXPERIMENT, p_score_model=model)


# --- Training ---------------------------------------------------------------


def test_responses_of_new_users_are_predicted(trained):
  for tower in trained[2]['towers']:
    held_out = tower['held_out']
    # Some 60 users of 38 impressions: the interval is about 0.03 to each side.
    assert held_out['tower']['auc']['value'] > 0.65, tower['name']
    assert held_out['p_score']['auc']['value'] > 0.65, tower['name']
    for baseline in ('logistic', 'logistic_rates'):
      assert held_out[baseline]['auc']['value'] > 0.6, tower['name']
    quality = held_out['tower']
    assert quality['bce']['value'] < quality['bce_constant'], tower['name']


def test_the_result_says_what_was_learnt_and_from_what(trained):
  _, ids, result = trained
  json.dumps(result, allow_nan=False)
  assert result['steps'] == _STEPS
  assert result['semantic_ids'] == ids.digest()
  assert result['checkpoint_step'] == result['best_step']
  lvtr, ltr = result['towers']
  assert (lvtr['name'], ltr['weight']) == ('lvtr', 2.0)
  assert ltr['definition'] == 'is_like > 0'
  assert ltr['train_known_share'] == 1
  assert set(ltr['strengths']) == {'logistic', 'logistic_rates'}
  assert set(ltr['strengths'].values()) <= {0.01, 0.1, 1.0}
  counts = result['impressions']
  events = event_table.read(trained[0].data)
  assert counts['train'] + counts['held_out'] == (events.split == 0).sum()
  assert counts['held_out_users'] == round(0.25 * 250)
  assert counts['held_out_judged'] == counts['held_out']
  held_out = ltr['held_out']
  models, baselines = ('tower', 'p_score'), ('logistic', 'logistic_rates')
  for name in models + baselines:
    assert held_out[name]['sessions'] == counts['held_out']
  for name, baseline in itertools.product(models, baselines):
    np.testing.assert_allclose(
      held_out[f'{name}_over_{baseline}']['auc']['value'],
      held_out[name]['auc']['value'] - held_out[baseline]['auc']['value'],
      rtol=1e-6,
    )
  # Rates are not in the first regression: the two are different.
  assert held_out['logistic']['auc'] != held_out['logistic_rates']['auc']


def test_lists_of_ones_own_are_worth_no_less_than_one_for_all(trained):
  _, ids, result = trained
  found = result['personalisation']
  assert found['users'] == result['impressions']['held_out_users_judged']
  assert found['items'] == ids.num_items
  assert found['items_per_list'] == 5
  assert list(found['scores']) == ['p_score', 'lvtr', 'ltr']
  for figures in found['scores'].values():
    assert 0 < figures['all_items'] < figures['one_list']
    # Tastes differ in the simulated world, and the model has learnt so.
    assert figures['gain']['low'] > 0
    np.testing.assert_allclose(
      figures['gain']['value'],
      figures['own_list'] / figures['one_list'] - 1,
      rtol=1e-6,
    )


def test_all_items_are_scored_whatever_the_size_of_a_group(
  loaded, trained, monkeypatch
):
  parts = impressions.read(
    event_table.read(trained[0].data),
    model=_EXPERIMENT.p_score_model,
    seed=_EXPERIMENT.seed,
  )
  whole = p_score_judgement._personalisation(
    _EXPERIMENT, loaded, parts.held_out
  )
  monkeypatch.setattr(p_score_judgement, '_CANDIDATES_AT_ONCE', 25)
  parted = p_score_judgement._personalisation(
    _EXPERIMENT, loaded, parts.held_out
  )
  for name, figures in whole['scores'].items():
    assert parted['scores'][name]['own_list'] == pytest.approx(
      figures['own_list'], rel=1e-5
    )


def test_the_penalty_before_the_first_larger_loss_is_taken():
  labels = np.array([1.0, 0.0, np.nan])

  def fits(*probabilities):
    for strength, p in zip((0.01, 0.1, 1.0), probabilities, strict=False):
      yield logistic_baseline.Prediction(strength, np.array([p, 1 - p, 0.5]))
    raise AssertionError('asked for more fits than are needed')

  # The larger p, the smaller the loss of a 1 and a 0.
  assert p_score_judgement._best(fits(0.6, 0.7, 0.65), labels).strength == 0.1
  assert p_score_judgement._best(fits(0.6, 0.5), labels).strength == 0.01
  rising = iter(list(itertools.islice(fits(0.6, 0.7, 0.8), 3)))
  assert p_score_judgement._best(rising, labels).strength == 1.0


def test_predictions_begin_at_the_mean_label_of_the_training(trained):
  workdir, _, result = trained
  first = json.loads(
    (workdir.folder('p_score') / 'metrics.jsonl').read_text().splitlines()[0]
  )
  # The mean over the first 50 steps, not the starting value.
  for tower in result['towers']:
    assert first[f'prediction/{tower["name"]}'] == pytest.approx(
      tower['train_mean_label'], abs=0.1
    )
  means = [t['train_mean_label'] for t in result['towers']]
  assert first['p_score'] == pytest.approx(
    (means[0] + 2 * means[1]) / 3, abs=0.1
  )


def test_the_linear_part_is_fitted_kept_and_used(tmp_path):
  workdir, ids = _prepared(tmp_path)
  short = dataclasses.replace(
    _with_model(linear_strengths=(0.1, 1.0)),
    p_score=dataclasses.replace(_EXPERIMENT.p_score, num_steps=2),
  )
  result = p_score.run(short, workdir)
  mesh = meshes.make_mesh(config.MeshConfig())
  restored = p_score_model.checkpoints.restore_for_evaluation(
    workdir.folder('p_score'),
    which='latest',
    mesh=mesh,
    ids_digest=ids.digest(),
  )
  # As fitted: the towers' zeros are what two steps have changed.
  events = event_table.read(workdir.data)
  parts = impressions.read(events, model=short.p_score_model, seed=short.seed)
  contexts = p_score_model.make_contexts(short, workdir, events)
  fitted = p_score._with_linear_part({}, parts.train, ids, contexts, short)
  kept = restored.params['linear']
  assert kept.keys() == fitted['linear'].keys()
  for name, value in fitted['linear'].items():
    np.testing.assert_allclose(kept[name], value, rtol=1e-6, atol=1e-8)
  assert np.abs(kept['item']).max() > 0.1
  # Towers of two steps know nothing yet.
  for tower in result['towers']:
    assert tower['held_out']['tower']['auc']['value'] > 0.6, tower['name']


def test_an_interrupted_stage_ends_with_the_same_parameters(
  trained, tmp_path, monkeypatch
):
  workdir, ids, _ = trained
  other, _ = _prepared(tmp_path)
  polls = iter(range(10_000))
  # SIGTERM arrives in the course of step 30.
  monkeypatch.setattr(
    preemption.StopSignal, 'requested', lambda self: next(polls) == 29
  )
  with pytest.raises(preemption.Preempted):
    p_score.run(_EXPERIMENT, other)
  monkeypatch.undo()
  p_score.run(_EXPERIMENT, other)
  mesh = meshes.make_mesh(config.MeshConfig())
  whole, resumed = (
    p_score_model.checkpoints.restore_for_evaluation(
      w.folder('p_score'), which='latest', mesh=mesh, ids_digest=ids.digest()
    )
    for w in (workdir, other)
  )
  assert whole.step == resumed.step == _STEPS
  for a, b in zip(
    jax.tree.leaves(whole.params), jax.tree.leaves(resumed.params), strict=True
  ):
    np.testing.assert_array_equal(a, b)


# --- Scoring ----------------------------------------------------------------


def test_scores_are_probabilities_and_padding_has_none(loaded):
  users, positions = np.arange(11), np.full(11, 5)
  items = np.arange(33).reshape(11, 3) % _NUM_ITEMS
  items[2, 1] = -1
  found = loaded.score(users, positions, items)
  assert loaded.names == ('lvtr', 'ltr')
  assert found.p.shape == (11, 3) and found.towers.shape == (11, 3, 2)
  none = items < 0
  np.testing.assert_array_equal(np.isnan(found.p), none)
  np.testing.assert_array_equal(
    np.isnan(found.towers), np.repeat(none[..., None], 2, axis=-1)
  )
  real = found.p[~none]
  assert ((real > 0) & (real < 1)).all()


def test_a_score_depends_on_nothing_but_its_user_and_item(loaded):
  users, positions = np.arange(11), np.full(11, 5)
  items = np.arange(33).reshape(11, 3) % _NUM_ITEMS
  together = loaded.score(users, positions, items)
  alone = loaded.score(users[9:10], positions[9:10], items[9:10, ::-1].copy())
  np.testing.assert_allclose(alone.p[:, ::-1], together.p[9:10], rtol=1e-5)
  np.testing.assert_allclose(
    alone.towers[:, ::-1], together.towers[9:10], rtol=1e-5
  )


def test_the_shown_event_and_later_ones_do_not_change_its_score(
  loaded, trained
):
  events = loaded.contexts.events
  later = np.arange(events.num_events) - events.offsets[events.user] >= 5
  changed = dataclasses.replace(
    events,
    items=np.where(later, (events.items + 7) % _NUM_ITEMS, events.items).astype(
      np.int32
    ),
    feedback={
      name: np.where(later, 1 - values, values)
      for name, values in events.feedback.items()
    },
  )
  contexts = p_score_model.make_contexts(_EXPERIMENT, trained[0], changed)
  # What is fitted on the training stretch stays as it was.
  contexts._contexts = user_context.ContextMaker(
    loaded.contexts._contexts.pathways, loaded.contexts.features, changed
  )
  contexts._edges = loaded.contexts._edges
  contexts._means = loaded.contexts._means
  users, shown = np.arange(8), np.arange(8)[:, None]

  def scores(maker, position):
    model = copy.copy(loaded)
    model.contexts = maker
    return model.score(users, np.full(8, position), shown).p

  np.testing.assert_array_equal(scores(contexts, 5), scores(loaded.contexts, 5))
  assert (scores(contexts, 6) != scores(loaded.contexts, 6)).any()


def test_an_item_outside_the_catalogue_is_an_error(loaded):
  users = np.arange(2)
  with pytest.raises(ValueError, match='knows 60 items'):
    loaded.score(users, np.full(2, 5), np.full((2, 3), _NUM_ITEMS))


def test_other_semantic_ids_are_refused(trained):
  workdir, _, _ = trained
  mesh = meshes.make_mesh(config.MeshConfig())
  with pytest.raises(contract.Mismatch, match=r'delete .*p_score'):
    p_score_model.load(_EXPERIMENT, workdir, _ids(_NUM_ITEMS, turn=1), mesh)


# --- Settings ---------------------------------------------------------------


def test_a_column_that_is_not_there_is_named(trained, tmp_path):
  workdir = workdir_lib.Workdir(
    tmp_path,
    folders={s: trained[0].folder(s) for s in ('prepare', 'tokenize')},
  )
  towers = (config.PScoreTower('x', column='nothing'),)
  with pytest.raises(ValueError, match="no feedback column 'nothing'"):
    p_score.run(_with_model(towers=towers), workdir)
