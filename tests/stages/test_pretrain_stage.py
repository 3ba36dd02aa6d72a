import dataclasses

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import catalog
from onerec_jax.model import onerec
from onerec_jax.model import parameters
from onerec_jax.semantic_ids import table
from onerec_jax.stages import prepare
from onerec_jax.stages import pretrain

_EXPERIMENT = config.Experiment(
  data=config.DataConfig(
    source='synthetic',
    synthetic=config.SyntheticConfig(num_users=12, num_items=20),
    history_length=4,
    sessions=config.SessionsConfig(items_per_session=1),
  ),
  model=config.ModelConfig(
    embed_dim=8,
    num_heads=1,
    head_dim=4,
    encoder_layers=1,
    decoder_layers=2,
    mlp_dim=8,
    moe=config.MoEConfig(num_experts=4, top_k=1, expert_dim=5),
  ),
)


def _ids(num_items):
  codes = np.stack([np.arange(num_items) // 6, np.arange(num_items) % 6], 1)
  return table.from_codes(
    codes.astype(np.int32),
    codes_per_level=(8, 6),
    popularity=np.ones(num_items),
  )


def _write(workdir, ids):
  workdir.tokenizer.mkdir(parents=True, exist_ok=True)
  catalog.write_semantic_ids(
    workdir.tokenizer / 'semantic_ids.parquet',
    item_ids=np.arange(ids.num_items).astype(str),
    codes=ids.codes,
    rank_in_bucket=ids.rank_in_bucket,
    codes_per_level=ids.codes_per_level,
  )


def test_missing_semantic_ids_name_the_stage_that_makes_them(tmp_path):
  with pytest.raises(FileNotFoundError, match="'tokenize'"):
    pretrain.run(_EXPERIMENT, workdir_lib.Workdir(tmp_path))


def test_semantic_ids_of_another_catalogue_are_refused(tmp_path):
  workdir = workdir_lib.Workdir(tmp_path)
  prepare.run(_EXPERIMENT, workdir)
  num_items = catalog.num_items(workdir.data)
  _write(workdir, _ids(num_items + 1))
  with pytest.raises(ValueError, match=f'has {num_items + 1} items') as error:
    pretrain.read_semantic_ids(workdir)
  assert 'run the stages `embed` and `tokenize` again' in str(error.value)
  _write(workdir, _ids(num_items))
  ids = pretrain.read_semantic_ids(workdir)
  assert ids.digest() == _ids(num_items).digest()


def test_active_parameters_leave_out_the_experts_not_chosen():
  model = pretrain.make_model(_EXPERIMENT, _ids(20), None)
  boxes = onerec.abstract_params(model)
  params = parameters.materialize(boxes, seed=0)
  total = parameters.count(boxes)
  active = pretrain._active_parameters(
    params, parameters.logical_names(boxes), _EXPERIMENT.model
  )
  # 2 decoder layers, 3 of 4 experts idle, each 2 matrices of 8 x 5.
  assert total - active == 2 * 3 * 2 * 8 * 5


def test_codebooks_are_asked_for_where_there_are_none(tmp_path):
  workdir = workdir_lib.Workdir(tmp_path)
  prepare.run(_EXPERIMENT, workdir)
  _write(workdir, _ids(catalog.num_items(workdir.data)))
  model = dataclasses.replace(_EXPERIMENT.model, code_init='codebook')
  experiment = dataclasses.replace(_EXPERIMENT, model=model)
  with pytest.raises(FileNotFoundError, match=r"codebooks\.npz.*'tokenize'"):
    pretrain.run(experiment, workdir)
