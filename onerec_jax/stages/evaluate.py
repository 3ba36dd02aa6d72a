"""Stage `evaluate`: full-catalogue ranking of held-out targets, with floors.

The model and the counting floors answer the same users from the same
histories and are judged by the same code (comparison.py).  Trains nothing.
"""

import time
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
from absl import logging

from onerec_jax import batch as batch_lib
from onerec_jax import config
from onerec_jax import metrics
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import baselines
from onerec_jax.data import catalog
from onerec_jax.data import examples
from onerec_jax.data import pipeline
from onerec_jax.decoding import recommend
from onerec_jax.objectives import pretrain
from onerec_jax.semantic_ids import table
from onerec_jax.stages import comparison
from onerec_jax.stages import trained as trained_lib

OURS = 'onerec'
_TITLE = 'OneRec'
_HISTORY_SHOWN, _LIST_SHOWN = 6, 10  # items of an example user


class Cases(NamedTuple):
  """The evaluated users and what each of them has seen, in example order."""

  example: np.ndarray  # int [B]
  user: np.ndarray  # int [B]; dense
  targets: np.ndarray  # int [B, M]
  target_mask: np.ndarray  # bool [B, M]
  offsets: np.ndarray  # int [B + 1]; row b saw seen[offsets[b]:offsets[b+1]]
  seen: np.ndarray  # int; all earlier positives, oldest first

  @property
  def previous(self) -> np.ndarray:
    """Last item before the target, NO_ITEM without any. [B]"""
    has = np.diff(self.offsets) > 0
    last = self.seen[np.maximum(self.offsets[1:] - 1, 0)]
    return np.where(has, last, metrics.NO_ITEM)


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
  trained = trained_lib.load(experiment, workdir, which=settings.checkpoint)
  store = examples.ExampleStore(
    workdir.data / 'examples' / f'{settings.split}.arrayrecord'
  )
  if not store.index.num_examples:
    raise ValueError(
      f'The split {settings.split!r} has no users to evaluate. Set'
      " evaluate.split='valid', or change data.split and run `prepare` again."
    )
  logging.info(
    'Evaluating the checkpoint of step %d on %d %s users.',
    trained.step,
    min(store.index.num_examples, settings.max_examples or 2**62),
    settings.split,
  )
  cases, ours, decoding = _decode(experiment, trained, store)
  lists = {OURS: ours.items}
  titles = {OURS: (_TITLE, f'checkpoint of step {trained.step}')}
  for floor in _floors(workdir):
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
  _write_predictions(workdir, cases, ours)
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
    **decoding,
    'teacher_forced': _teacher_forced(experiment, trained, store),
    'examples': _example_users(experiment, workdir, cases, ours),
  }
  print_table(result)
  return result


# --- The model --------------------------------------------------------------


def _decode(
  experiment: config.Experiment,
  trained: trained_lib.Trained,
  store: examples.ExampleStore,
) -> tuple[Cases, trained_lib.Answers, dict[str, Any]]:
  """Returns the users, their lists, and what decoding itself showed."""
  settings = experiment.evaluate
  index = store.index
  longest = int(index.history_counts.max(initial=0))
  recommender = trained_lib.Recommender(
    trained,
    settings.decoding,
    # Every hypothesis has room for one item: the by-ID figures need them.
    top_k=max(*settings.top_k, settings.decoding.num_beams),
    batch_size=settings.batch_size,
    max_excluded=longest,
  )
  rows, answers, seen = [], [], []
  start = first = time.perf_counter()
  total = min(index.num_examples, settings.max_examples or index.num_examples)
  for batch in _batches(experiment, trained, store, recommender.batch_size):
    kept = np.asarray(batch.example_mask)
    found = pipeline.seen_items(store, batch)
    answer = recommender(batch, found)
    answers.append(trained_lib.Answers(*(a[kept] for a in answer)))
    rows.append(jax.tree.map(lambda x, kept=kept: np.asarray(x)[kept], batch))
    seen += [items for items, keep in zip(found, kept, strict=True) if keep]
    done = len(seen)
    if len(rows) == 1:
      first = time.perf_counter()
      logging.info('first batch, compilation included: %.1f s', first - start)
    elif len(rows) % 50 == 0:
      logging.info('%d of %d users', done, total)
  spent = time.perf_counter() - first
  ours = trained_lib.Answers(
    *(np.concatenate(parts) for parts in zip(*answers, strict=True))
  )
  cases = Cases(
    example=np.concatenate([b.example_id for b in rows]).astype(np.int64),
    user=np.concatenate([b.user for b in rows]).astype(np.int64),
    targets=np.concatenate([b.target_items for b in rows]).astype(np.int64),
    target_mask=np.concatenate([b.target_mask for b in rows]),
    offsets=np.concatenate([[0], np.cumsum([len(s) for s in seen])]),
    seen=np.concatenate([*seen, np.zeros(0)]).astype(np.int64),
  )
  listed = (ours.items != metrics.NO_ITEM).sum(axis=1)
  generated = int(ours.generated.sum())
  after_first = len(cases.user) - len(rows[0].user)
  return (
    cases,
    ours,
    {
      'legality': int(ours.legal.sum()) / max(generated, 1),
      'hypotheses': generated,
      'empty_results': int((listed == 0).sum()),
      'short_results': int((listed < max(settings.top_k)).sum()),
      'users_with_cut_exclusions': int(
        (np.diff(cases.offsets) > recommend.MAX_EXCLUDED).sum()
      ),
      'entropy_per_level': ours.entropy.mean(axis=0).tolist(),
      'codes_per_level': list(trained.ids.codes_per_level),
      # None: a single batch, compilation cannot be told apart.
      'users_per_second': after_first / spent if after_first else None,
    },
  )


def _batches(
  experiment: config.Experiment,
  trained: trained_lib.Trained,
  store: examples.ExampleStore,
  batch_size: int,
):
  return pipeline.eval_batches(
    store,
    batch_size=batch_size,
    history_length=trained.experiment.data.history_length
    + experiment.evaluate.decoding.continue_items,
    items_per_session=trained.experiment.data.sessions.items_per_session,
    max_examples=experiment.evaluate.max_examples,
  )


def _teacher_forced(
  experiment: config.Experiment,
  trained: trained_lib.Trained,
  store: examples.ExampleStore,
) -> dict[str, float]:
  """Returns loss per token and accuracy per level, given the true prefixes."""
  objective = pretrain.make_objective(
    trained.model, trained.experiment.pretrain
  )

  @jax.jit
  def step(params: Any, bias: Any, codes: Any, batch: batch_lib.SessionBatch):
    frozen: pretrain.Frozen = {'item_codes': codes}
    return objective(params, bias, frozen, batch, None).metrics

  shards = trained.mesh.size
  size = -(-experiment.evaluate.batch_size // shards) * shards
  total: dict[str, batch_lib.Mean] = {}
  for batch in _batches(experiment, trained, store, size):
    placed = sharding.place_batch(batch, trained.mesh)
    found = jax.device_get(
      step(trained.params, trained.router_bias, trained.item_codes, placed)
    )
    for name, value in found.items():
      if np.ndim(value.total) == 0:
        total[name] = total[name] + value if name in total else value
  return {
    name: float(value.total) / max(float(value.count), 1e-9)
    for name, value in total.items()
    if name == 'token_loss' or name.startswith('accuracy')
  }


# --- The catalogue ----------------------------------------------------------


def _floors(
  workdir: workdir_lib.Workdir,
) -> tuple[baselines.CountingFloor, ...]:
  sequences = catalog.training_sequences(workdir.data)
  return baselines.fit_floors(
    sequences.offsets,
    sequences.items,
    num_items=catalog.num_items(workdir.data),
  )


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


# --- What is written and shown ----------------------------------------------


def _write_predictions(
  workdir: workdir_lib.Workdir, cases: Cases, ours: trained_lib.Answers
) -> None:
  user_ids = np.array(catalog.read_users(workdir.data)['user_id'].to_list())
  ranks = metrics.target_ranks(ours.items, cases.targets)
  found = cases.target_mask & (ranks != metrics.NOT_RANKED)
  catalog.write_predictions(
    workdir.stage('evaluate') / 'predictions.parquet',
    {
      'example': cases.example,
      'user': cases.user,
      'user_id': user_ids[cases.user],
      'seen_items': np.diff(cases.offsets),
      'target_items': np.where(cases.target_mask, cases.targets, -1),
      'target_ranks': np.where(found, ranks, -1),  # -1: not in the list
      'items': ours.items,
      'scores': ours.scores.astype(np.float32),
    },
  )


def _example_users(
  experiment: config.Experiment,
  workdir: workdir_lib.Workdir,
  cases: Cases,
  ours: trained_lib.Answers,
) -> list[dict[str, Any]]:
  """Returns a random sample of users in words; not chosen by success."""
  count = min(experiment.evaluate.num_example_users, len(cases.user))
  rng = np.random.default_rng(experiment.seed)
  chosen = np.sort(rng.choice(len(cases.user), count, replace=False))
  titles = catalog.item_titles(workdir.data)
  ids = catalog.item_ids(workdir.data)
  user_ids = catalog.read_users(workdir.data)['user_id'].to_list()
  ranks = metrics.target_ranks(ours.items, cases.targets)

  def named(item: int) -> dict[str, Any]:
    return {'item_id': str(ids[item]), 'title': titles[item]}

  result = []
  for row in chosen.tolist():
    seen = cases.seen[cases.offsets[row] : cases.offsets[row + 1]]
    targets = cases.targets[row][cases.target_mask[row]].tolist()
    found = ranks[row][cases.target_mask[row]].tolist()
    listed = ours.items[row, :_LIST_SHOWN].tolist()
    result.append(
      {
        'user_id': user_ids[cases.user[row]],
        'seen_items': len(seen),
        'history': [named(i) for i in seen[-_HISTORY_SHOWN:].tolist()],
        'targets': [
          {
            **named(item),
            'rank': None if rank == metrics.NOT_RANKED else rank,
          }
          for item, rank in zip(targets, found, strict=True)
        ],
        'recommended': [
          {
            **named(item),
            'score': float(ours.scores[row, place]),
            'is_target': item in targets,
          }
          for place, item in enumerate(listed)
          if item != metrics.NO_ITEM
        ],
      }
    )
  return result


def print_table(
  result: dict[str, Any], console: rich.console.Console | None = None
) -> None:
  """Prints the comparison of a result of `run`, ours first."""
  if console is None:
    console = rich.console.Console()
    if not console.is_terminal:  # a log file has no width of its own
      console = rich.console.Console(width=100)
  k = result['headline_k']
  shown = [
    name
    for name in result['metrics'][OURS]
    if name == f'ndcg@{k}' or name.startswith('recall')
  ]
  if console.width < 100:
    shown = [f'recall@{k}', f'ndcg@{k}']
  by_id = f'recall@{k}'
  history = 'excluded' if result['history_excluded'] else 'not excluded'
  grid = rich.table.Table(
    box=rich.box.SIMPLE,
    padding=(0, 1, 0, 0),
    title=(
      f'{result["split"]}: {result["users"]:,} users, all'
      f' {result["candidates"]:,} items ranked, history {history};'
      ' R = Recall, N = NDCG, by item'
    ),
    title_justify='left',
  )
  grid.add_column('method', no_wrap=True)
  for name in shown:
    short = name.replace('recall', 'R').replace('ndcg', 'N')
    grid.add_column(short, justify='right', no_wrap=True)
    if name == by_id:
      grid.add_column('95 %', justify='right', no_wrap=True)
      grid.add_column('by ID', justify='right', no_wrap=True)
  for method, figures in result['metrics'].items():
    cells = []
    for name in shown:
      cells.append(f'{figures[name]["mean"]:.4f}')
      if name == by_id:
        cells.append(f'{figures[name]["low"]:.3f}-{figures[name]["high"]:.3f}')
        by_id_mean = result['metrics_by_id'][method][name]['mean']
        cells.append(f'{by_id_mean:.4f}')
    grid.add_row(
      result['methods'][method]['title'],
      *cells,
      style='bold' if method == OURS else None,
    )
  console.print(grid)
  difference = result['difference_to_best_floor'][by_id]
  best = result['methods'][result['best_floor']]['title']
  console.print(
    f'{_TITLE} - {best}, {by_id}: {difference["mean"]:+.4f} (95 %:'
    f' {difference["low"]:+.4f} to {difference["high"]:+.4f}) · legal'
    f' {100 * result["legality"]:.1f} % · empty answers'
    f' {result["empty_results"]}'
  )
