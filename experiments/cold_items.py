"""Items that came after training, on Amazon Beauty: are they recommended?

  python -m experiments.cold_items --data=DIR --workdir=runs/cold_items

A tenth of the items is taken out of all sequences before anything is made of
them; onerec_amazon.py:beauty is trained on the rest (1,000 steps), the model
alone; `add-items` gives the items semantic IDs, `export` a program, and every
user whose last item is one of them asks it, the whole catalogue ranked.  Beside
it what a text alone does: the items nearest to the last one by the vectors of
`add-items`.  Users with another last item say what new items cost the others.

Measured, one seed (experiments/README.md): recall@10 .045 behind IDs that the
model knows, .027 under new ones, .045 by vectors; that of other users goes from
.084 to .072 and .079.  DIR holds Beauty.sequences.txt and Beauty.items.jsonl.
Twenty minutes on one CPU core.
"""

import argparse
import json
import pathlib
import shutil
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np
import polars as pl
from absl import logging

from experiments import amazon_data
from experiments import onerec_amazon
from onerec_jax import bootstrap
from onerec_jax import config as config_lib
from onerec_jax import exported
from onerec_jax import huge_pages
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import amazon
from onerec_jax.data import catalog
from onerec_jax.stages import added_items
from onerec_jax.stages import export
from onerec_jax.stages import runner

_STAGES: tuple[config_lib.Stage, ...] = (
  'prepare', 'embed', 'tokenize', 'pretrain',
)  # fmt: skip
_FILE = amazon_data.FILES['beauty']
_SHARE = 0.1  # of the items
_AT = (10, 50)
_WARM_USERS = 4000
# How new items get their IDs, in the order of the table.
WAYS = {'shared': True, 'own': False}


class Case(NamedTuple):
  """A user's last item, and what came before it of items in the training."""

  history: list[str]
  target: str


class Cases(NamedTuple):
  cold: list[Case]  # the target came after training
  warm: list[Case]


# --- Data -------------------------------------------------------------------


def split(source: pathlib.Path, folder: pathlib.Path, *, seed: int) -> Cases:
  """Writes the data set without a tenth of its items, and a table of these.

  Args:
    source: folder of the whole data set.
    folder: gets Beauty.sequences.txt, Beauty.items.jsonl and new.parquet.
    seed: of the items that are taken out.

  Returns:
    The last item of every user who has another one in the training.
  """
  whole = amazon.read_sequences(source, variant=_FILE)
  ids = whole.items['item_id'].to_list()
  rng = np.random.default_rng(seed)
  taken = rng.permutation(len(ids))[: round(_SHARE * len(ids))]
  new = {ids[i] for i in taken.tolist()}
  folder.mkdir(parents=True, exist_ok=True)
  sequences = whole.interactions.group_by('user_id', maintain_order=True).agg(
    'item_id'
  )
  cases, lines = Cases([], []), []
  for user, items in sequences.iter_rows():
    kept = [item for item in items if item not in new]
    before = [item for item in items[:-1] if item not in new]
    if kept:
      lines.append(' '.join([user, *kept]))
    if before:
      group = cases.cold if items[-1] in new else cases.warm
      group.append(Case(before, items[-1]))
  (folder / f'{_FILE}.sequences.txt').write_text('\n'.join(lines) + '\n')
  with (folder / f'{_FILE}.items.jsonl').open('w') as file:
    for line in (source / f'{_FILE}.items.jsonl').read_text().splitlines():
      row = json.loads(line)
      if row['asin'] not in new:
        file.write(json.dumps({**row, 'id': row['asin']}) + '\n')
  whole.items.filter(pl.col('item_id').is_in(list(new))).select(
    'item_id', 'title', 'text', 'categories'
  ).write_parquet(folder / 'new.parquet')
  return cases


def experiment(
  folder: pathlib.Path, *, steps: int, toy: bool
) -> config_lib.Experiment:
  """Returns onerec_amazon.py:beauty on the reduced data, the model alone."""
  config: Any = onerec_amazon.get_config('beauty')
  config.name = 'cold_items_beauty'
  config.stages = _STAGES
  config.data.path = str(folder)
  config.pretrain.num_steps = steps
  # Counted transitions know nothing of new items.
  config.evaluate.decoding.transition_weight = 0.0
  if toy:
    config.tokenizer.codes_per_level = 8
    config.model.embed_dim = 8
    config.model.normalise_over = 'codes'
    config.model.encoder_layers = config.model.decoder_layers = 1
    config.model.id_buckets = 64
    config.model.moe.num_experts = 2
    config.pretrain.batch_size = 8
    config.pretrain.evaluate_every_steps = 0
    config.evaluate.batch_size = 8
    config.evaluate.decoding.num_beams = 8
  return config_lib.from_config_dict(config)


# --- Lists ------------------------------------------------------------------


class Lists(NamedTuple):
  """Of one way to answer, best items first."""

  cold: list[list[str]]
  warm: list[list[str]]


def figures(
  lists: Lists, cases: Cases, new: set[str]
) -> dict[str, dict[str, float]]:
  """Returns recall on both groups of users and how many new items are listed.

  Args:
    lists: one list per case.
    cases: the users.
    new: items that came after training.

  Returns:
    name -> mean, low, high (95 %, bootstrap over users): 'cold/recall@k',
    'warm/recall@k', and 'warm/new@10', new items among the first ten of users
    whose next item is none.
  """
  found: dict[str, np.ndarray] = {}
  for group in Lists._fields:
    answers: Sequence[list[str]] = getattr(lists, group)
    targets = [case.target for case in getattr(cases, group)]
    for k in _AT:
      found[f'{group}/recall@{k}'] = np.array(
        [t in a[:k] for a, t in zip(answers, targets, strict=True)], float
      )
  found['warm/new@10'] = np.array(
    [sum(item in new for item in answer[:10]) for answer in lists.warm], float
  )
  return {
    name: bootstrap.interval(values, samples=1000, seed=0)._asdict()
    for name, values in found.items()
  }


def answer(
  made: config_lib.Experiment,
  workdir: workdir_lib.Workdir,
  cases: Cases,
  folder: pathlib.Path,
) -> Lists:
  """Returns the lists of the model by its exported program."""
  shutil.rmtree(folder, ignore_errors=True)
  export.run(made, workdir, top_k=max(_AT), output=folder)
  program = exported.load(folder)
  return Lists(
    *(
      [
        [a.item_id for a in row]
        for row in program.recommend([case.history for case in group])
      ]
      for group in cases
    )
  )


def nearest(workdir: workdir_lib.Workdir, cases: Cases) -> Lists:
  """Returns the items nearest to the last one by the vectors, history out."""
  items = added_items.catalogue(workdir)
  assert items.added is not None
  with workdir.embeddings.open('rb') as file, np.load(file) as stored:
    vectors = np.concatenate([stored['embeddings'], items.added.vectors])
  vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
  place = {item: i for i, item in enumerate(items.item_ids.tolist())}

  def listed(case: Case) -> list[str]:
    cosine = vectors @ vectors[place[case.history[-1]]]
    cosine[[place[item] for item in case.history]] = -np.inf
    best = np.argsort(-cosine, kind='stable')[: max(_AT)]
    return items.item_ids[best].tolist()

  return Lists(*([listed(case) for case in group] for group in cases))


def measure(
  source: pathlib.Path, root: pathlib.Path, *, steps: int, seed: int, toy: bool
) -> Mapping[str, Any]:
  """Trains and answers; returns figures by way: before, shared, own, nearest.

  A training that was cut off goes on.

  Args:
    source: folder of the whole data set.
    root: work directory.
    steps: of the training.
    seed: of the items that are taken out.
    toy: a small model, for tests.
  """
  cases = split(source, root / 'reduced', seed=seed)
  made = experiment(root / 'reduced', steps=steps, toy=toy)
  workdir = workdir_lib.Workdir(root)
  runner.run_stages(made, workdir, _STAGES, resume=True)
  # What cleaning has dropped cannot be asked for.
  known = set(catalog.item_ids(workdir.data).tolist())
  table = root / 'reduced' / 'new.parquet'
  new = set(pl.read_parquet(table)['item_id'].to_list())
  cases = Cases(
    *(
      [
        case._replace(history=kept)
        for case in group
        if (kept := [i for i in case.history if i in known])
      ]
      for group in cases
    )
  )
  # Users of one part of the file are like each other.
  some = np.random.default_rng(seed).permutation(len(cases.warm))[:_WARM_USERS]
  cases = cases._replace(warm=[cases.warm[i] for i in np.sort(some).tolist()])
  kept = pathlib.Path(added_items.path_of(workdir))
  kept.unlink(missing_ok=True)
  lists = {'before': answer(made, workdir, cases, root / 'export')}
  for name, share_ids in WAYS.items():
    kept.unlink(missing_ok=True)
    added_items.run(made, workdir, path=table, share_ids=share_ids)
    lists[name] = answer(made, workdir, cases, root / 'export')
  lists['nearest'] = nearest(workdir, cases)
  return {
    'items': len(known),
    'new_items': len(new),
    'users': {name: len(group) for name, group in cases._asdict().items()},
    'figures': {name: figures(x, cases, new) for name, x in lists.items()},
  }


def main() -> None:
  """Command line."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--data', type=pathlib.Path, required=True)
  parser.add_argument('--workdir', type=pathlib.Path, required=True)
  parser.add_argument('--steps', type=int, default=1000)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--toy', action='store_true')
  arguments = parser.parse_args()
  logging.set_verbosity(logging.INFO)
  root = arguments.workdir.absolute()
  found = measure(
    arguments.data,
    root,
    steps=arguments.steps,
    seed=arguments.seed,
    toy=arguments.toy,
  )
  print(json.dumps(found, indent=1))
  workdir_lib.Workdir(root).finish('cold_items', dict(found))
  print(f'Keep it: python -m experiments.results --collect {root}')


if __name__ == '__main__':
  huge_pages.restart_with()  # as the project's own commands
  main()
