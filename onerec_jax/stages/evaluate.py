"""Stage `evaluate`: full-catalogue ranking of held-out targets, with floors.

The model and the counting floors answer the same users from the same
histories and are judged by the same code (comparison.py).  Trains nothing.
"""

import dataclasses
from typing import Any

import numpy as np
from absl import logging

from onerec_jax import config
from onerec_jax import distributed
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.semantic_ids import table
from onerec_jax.stages import align
from onerec_jax.stages import comparison
from onerec_jax.stages import item_evaluation
from onerec_jax.stages import predictions
from onerec_jax.stages import pretrain
from onerec_jax.stages import ranking
from onerec_jax.stages import reinforce
from onerec_jax.stages import session_comparison
from onerec_jax.stages import trained as trained_lib

OURS, BEFORE = predictions.OURS, predictions.BEFORE
ALONE = predictions.ALONE
_TITLES = {
  'onerec': 'OneRec',
  'sasrec': 'SASRec',
  'bert4rec': 'BERT4Rec',
  'fdsa': 'FDSA',
}


def run(
  experiment: config.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, Any]:
  """Evaluates the trained model and writes predictions.parquet.

  Returns:
    Figures of all methods with 95 % intervals, slices, list quality,
    legality, entropy per level, and example users for the report.

  Raises:
    FileNotFoundError: a stage before this one has not run.
    ValueError: the split has no users.
  """
  settings = experiment.evaluate
  models = _load_models(experiment, workdir)
  trained = models[OURS]
  store = pretrain.open_examples(experiment, workdir, settings.split)
  if not store.index.num_examples:
    raise ValueError(
      f'The split {settings.split!r} has no users to evaluate. Set'
      " evaluate.split='valid', or change data.split and run `prepare` again."
    )
  cases = ranking.read_cases(
    store,
    items_per_session=trained.experiment.data.sessions.items_per_session,
    max_examples=settings.max_examples,
  )
  titles, decoded = {}, {}
  for name, model in models.items():
    logging.info(
      'Evaluating %s, checkpoint of step %d, on %d %s users.',
      name,
      model.step,
      len(cases.user),
      settings.split,
    )
    decoded[name] = ranking.rank_users(model, store, cases, settings)
    titles[name] = _title(experiment, model, aligned=name != BEFORE)
  if settings.decoding.transition_weight and BEFORE not in models:
    alone = dataclasses.replace(settings.decoding, transition_weight=0.0)
    decoded[ALONE] = ranking.rank_users(
      trained, store, cases, dataclasses.replace(settings, decoding=alone)
    )
    titles[ALONE] = (
      f'{_TITLES[trained.experiment.architecture]} alone',
      'the same model without counted transitions',
    )
  ours = decoded[OURS].answers
  lists = {name: found.answers.items for name, found in decoded.items()}
  for floor in ranking.fit_floors(workdir):
    titles[floor.name] = (floor.title, floor.description)
    lists[floor.name] = floor.recommend(
      cases.offsets,
      cases.seen,
      top_k=ours.items.shape[1],
      exclude_history=settings.decoding.exclude_history,
    )
  figures = comparison.compare(
    lists,
    ours=OURS,
    before=predictions.earlier(decoded),
    targets=cases.targets,
    target_mask=cases.target_mask,
    previous=cases.previous,
    top_k=settings.top_k,
    id_of_item=table.bucket_of(trained.ids.codes),
    train_counts=catalog.train_counts(workdir.data),
    item_ids=catalog.item_ids(workdir.data),
    embeddings=_embeddings(workdir),
    category_of_item=_categories(workdir),
    samples=settings.bootstrap_samples,
    seed=experiment.seed,
  )
  if distributed.is_main():
    predictions.write_predictions(workdir, cases, ours)
  result = {
    'split': settings.split,
    'users': len(cases.user),
    'candidates': trained.ids.num_items,
    'history_excluded': settings.decoding.exclude_history,
    'num_beams': settings.decoding.num_beams,
    'constrained': settings.decoding.constrain,
    'checkpoint': settings.checkpoint,
    'step': trained.step,
    'semantic_ids': trained.ids.digest(),
    'differences_to_training': trained.differences,
    'methods': {
      name: {'title': title, 'description': text}
      for name, (title, text) in titles.items()
    },
    **figures,
    **decoded[OURS].figures,
    'legality_by_model': {
      name: found.figures['legality'] for name, found in decoded.items()
    },
    'session_rewards': _session_rewards(experiment, workdir, models),
    'item_rewards': _item_rewards(experiment, workdir, models),
    'teacher_forced': trained_lib.teacher_forced(
      trained,
      ranking.session_batches(
        trained,
        store,
        cases,
        settings,
        batch_size=-(-settings.batch_size // trained.mesh.size)
        * trained.mesh.size,
      ),
    ),
    'examples': predictions.example_users(experiment, workdir, cases, ours),
  }
  if distributed.is_main():
    _print(result)
  return result


def _print(result: dict[str, Any]) -> None:
  predictions.print_table(result)
  if result['session_rewards']:
    predictions.print_session_rewards(result)
  if result['item_rewards']:
    predictions.print_item_rewards(result)


# --- The models -------------------------------------------------------------


def _load_models(
  experiment: config.Experiment, workdir: workdir_lib.Workdir
) -> dict[str, trained_lib.Trained]:
  """Returns the final model, and the pre-trained one if training went on."""
  final = reinforce.load_final(experiment, workdir)
  if not {align.STAGE, reinforce.STAGE} & set(experiment.stages):
    return {OURS: final}
  pretrained = trained_lib.load(
    experiment,
    workdir,
    which=experiment.evaluate.checkpoint,
    parameter_dtype=experiment.evaluate.parameter_dtype,
  )
  return {OURS: final, BEFORE: pretrained}


def _title(
  experiment: config.Experiment, model: trained_lib.Trained, *, aligned: bool
) -> tuple[str, str]:
  """Returns a model's title and description."""
  title = _TITLES[model.experiment.architecture]
  names, texts = [], []
  if align.STAGE in experiment.stages:
    preference = experiment.preference
    is_ipa = preference.pairs == 'beam_rm'
    names.append('IPA' if is_ipa else preference.loss.upper())
    texts.append(
      f'{preference.rounds} round(s) of {experiment.align.num_steps} steps,'
      f' {preference.loss} on {preference.pairs} pairs'
    )
  if reinforce.STAGE in experiment.stages:
    settings = experiment.reinforcement
    names.append(settings.loss.upper() if settings.weight else 'RSFT')
    texts.append(
      f'{experiment.reinforce.num_steps} steps, groups of'
      f' {settings.group_size} by {settings.rollouts}'
    )
  if names and not aligned:
    return f'{title}, pre-trained', f'step {model.step}, not trained further'
  if not names:
    texts.append(f'checkpoint of step {model.step}')
  counts = experiment.evaluate.decoding.transition_weight
  if counts:
    names.append('transitions')
    texts.append(f'counted transitions, weight {counts:g}')
  return ' + '.join((title, *names)), '; '.join(texts)


def _session_rewards(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  models: dict[str, trained_lib.Trained],
) -> dict[str, Any] | None:
  """Returns the rewards of generated sessions, None without the stage."""
  if 'reward' not in experiment.stages:
    return None
  return session_comparison.compare(
    session_comparison.make_judge(
      experiment,
      workdir,
      split=experiment.evaluate.split,
      max_users=experiment.evaluate.sessions.max_users,
    ),
    models,
    base=BEFORE if BEFORE in models else OURS,
  )


def _item_rewards(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  models: dict[str, trained_lib.Trained],
) -> dict[str, Any] | None:
  """Returns the P-Scores of generated items, None without the stage."""
  if 'p_score' not in experiment.stages:
    return None
  return item_evaluation.compare(
    item_evaluation.make_judge(
      experiment,
      workdir,
      split=experiment.evaluate.split,
      max_users=experiment.evaluate.p_score.max_users,
    ),
    models,
    base=BEFORE if BEFORE in models else OURS,
  )


# --- The catalogue ----------------------------------------------------------


def _embeddings(workdir: workdir_lib.Workdir) -> np.ndarray | None:
  if not workdir.embeddings.exists():
    return None
  with workdir.embeddings.open('rb') as file, np.load(file) as stored:
    return stored['embeddings']


def _categories(workdir: workdir_lib.Workdir) -> np.ndarray:
  """Returns the number of each item's most specific category, -1: none."""
  last = [c[-1] if c else '' for c in catalog.item_categories(workdir.data)]
  _, numbers = np.unique(last, return_inverse=True)
  return np.where(np.array(last) == '', -1, numbers.reshape(-1))
