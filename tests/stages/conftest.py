"""A finished tiny run: real data files, an untrained but saved model.

And what reads a report.
"""

import dataclasses
import html.parser
import pathlib
import shutil

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import meshes
from onerec_jax import sharding
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import table
from onerec_jax.stages import prepare
from onerec_jax.stages import pretrain
from onerec_jax.stages import report_canvas
from onerec_jax.stages import report_words
from onerec_jax.train import checkpoints
from onerec_jax.train import contract
from onerec_jax.train import optimizer
from onerec_jax.train import state

_HERE = pathlib.Path(__file__).parent
CODES = 6  # per level; 6 * 6 IDs for 30 items, with planted collisions


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory, tiny_experiment):
  """(experiment, workdir) with data, IDs, embeddings and a checkpoint.

  Tests may add stages' outputs, but must not change what is there.
  """
  tiny = tiny_experiment()
  moe = config.MoEConfig(num_experts=2, expert_dim=8)
  experiment = config.validate(
    dataclasses.replace(
      tiny,
      tokenizer=config.TokenizerConfig(levels=2, codes_per_level=CODES),
      model=dataclasses.replace(tiny.model, moe=moe),
      evaluate=dataclasses.replace(
        tiny.evaluate,
        top_k=(1, 5, 10),
        bootstrap_samples=50,
        num_example_users=3,
        decoding=config.DecodingConfig(num_beams=8),
      ),
    )
  )
  workdir = workdir_lib.Workdir(tmp_path_factory.mktemp('tiny_run'))
  prepared = prepare.run(experiment, workdir)
  workdir.finish('prepare', {**prepared, 'seconds': 1.5})
  num_items = catalog.num_items(workdir.data)
  rng = np.random.default_rng(0)
  codes = np.stack(np.divmod(np.arange(num_items), CODES), axis=1)
  codes[1] = codes[0]  # two items with one ID
  ids = table.from_codes(
    codes,
    codes_per_level=(CODES, CODES),
    popularity=catalog.train_counts(workdir.data),
  )
  workdir.stage('tokenize')
  catalog.write_semantic_ids(
    workdir.tokenizer / 'semantic_ids.parquet',
    item_ids=catalog.item_ids(workdir.data),
    codes=ids.codes,
    rank_in_bucket=ids.rank_in_bucket,
    codes_per_level=ids.codes_per_level,
  )
  workdir.stage('embed')
  with workdir.embeddings.open('wb') as file:
    np.savez(file, embeddings=rng.normal(size=(num_items, 4)))
  save_untrained(experiment, workdir, ids)
  return experiment, workdir


def save_untrained(experiment, workdir, ids) -> None:
  """Saves a checkpoint of step 0 of the experiment's model."""
  mesh = meshes.make_mesh(experiment.mesh)
  boxes = onerec.abstract_params(pretrain.make_model(experiment, ids, mesh))
  names = parameters.logical_names(boxes)
  params = parameters.materialize(boxes, seed=experiment.seed)
  made = optimizer.make_optimizer(
    experiment.pretrain.optimizer,
    num_steps=1,
    decay=optimizer.decay_mask(names),
  )
  begin = state.create(
    params,
    onerec.initial_router_bias(experiment.model),
    made.transformation,
    ema=False,
    mesh=mesh,
    shardings=sharding.parameter_shardings(mesh, names, params),
  )
  agreed = contract.make_contract(
    stage=pretrain.STAGE,
    experiment=experiment,
    semantic_ids=ids.digest(),
    params=params,
    names=names,
  )
  with checkpoints.Checkpointer(
    workdir.stage(pretrain.STAGE), agreed, keep=1
  ) as saver:
    saver.save(0, begin, data={}, progress={}, best_step=None)


@pytest.fixture(scope='session')
def copied():
  """Function: workdir, folder that is not there -> the workdir's copy."""

  def copy(workdir, folder):
    shutil.copytree(workdir.root, folder)
    return workdir_lib.Workdir(folder)

  return copy


@pytest.fixture
def with_settings():
  """Returns a function that changes evaluate settings of an experiment."""

  def change(experiment, **settings):
    evaluate = dataclasses.replace(experiment.evaluate, **settings)
    return dataclasses.replace(experiment, evaluate=evaluate)

  return change


# --- Reports ----------------------------------------------------------------


class Page(html.parser.HTMLParser):
  """What a reader finds on a page.

  Attributes:
    open: tags that were never closed.
    pictures: attributes of each.
    headings: of the sections.
    sections: ids of the sections.
    jumps: ids that the links of the page lead to.
    links: where it leads or loads from, in the page or outside.
    text: all words.
  """

  def __init__(self, text: str):
    super().__init__()
    self.open, self.pictures, self.headings = [], [], []
    self.sections, self.jumps, self.links = [], [], []
    self._words = []
    self.feed(text)
    self.text = ' '.join(' '.join(self._words).split())

  def handle_starttag(self, tag, attrs):
    found = dict(attrs)
    if tag not in ('meta', 'img'):
      self.open.append(tag)
    if tag == 'img':
      self.pictures.append(found)
    if tag == 'section':
      self.sections.append(found['id'])
    if tag == 'a':
      self.jumps.append(found['href'].removeprefix('#'))
    self.links += [found[k] for k in ('href', 'src') if k in found]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] != 'style':
      self._words.append(data)
    if self.open and self.open[-1] == 'h2':
      self.headings.append(data)


@pytest.fixture(scope='session')
def read_page():
  """Function: HTML -> Page."""
  return Page


@pytest.fixture(scope='session')
def aligned_run(load_module):
  """Module that makes up what an aligned run leaves."""
  return load_module(_HERE / 'aligned_run.py')


@pytest.fixture(scope='session')
def reinforced_run(load_module):
  """Module that makes up what the technical report's system leaves."""
  return load_module(_HERE / 'reinforced_run.py')


@pytest.fixture(scope='session')
def made_sweep(load_module):
  """Module that makes up what a sweep leaves that sessions judge."""
  return load_module(_HERE / 'made_sweep.py')


@pytest.fixture
def coarse_pictures(monkeypatch):
  monkeypatch.setattr(report_canvas, 'DPI', 20)


@pytest.fixture
def pictures(tmp_path):
  """An empty set of pictures, in the report's folder below tmp_path."""
  folder = workdir_lib.Workdir(tmp_path).stage('report')
  return report_words.Pictures(folder)
