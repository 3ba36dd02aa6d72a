"""Config: unknown keys, wrong types and contradictions are named by path."""

import dataclasses
import subprocess
import sys

import pytest

from onerec_jax import config


def test_defaults_are_valid_and_survive_a_round_trip():
  experiment = config.from_config_dict(config.default_config())
  assert experiment == config.Experiment()
  again = config.from_config_dict(config.to_dict(experiment))
  assert again == experiment


def test_unknown_key_names_its_path_and_the_nearest_known_one():
  with pytest.raises(ValueError, match=r"'model\.moe\.topk'.*moe\.top_k'"):
    config.from_config_dict({'model': {'moe': {'topk': 3}}})


def test_a_recipe_cannot_set_an_unknown_field():
  recipe = config.default_config()
  with pytest.raises(AttributeError, match='embed_dim'):
    recipe.model.embed_dimm = 3


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'seed': 'x'}, r"seed='x' has type str, expected int"),
    ({'seed': True}, 'seed=True has type bool, expected int'),
    ({'data': {'source': 'movielenz'}}, "Did you mean 'movielens'"),
    ({'model': 3}, 'model=3 must be a group'),
    ({'evaluate': {'top_k': 5}}, 'evaluate.top_k=5 must be a tuple'),
    ({'evaluate': {'top_k': (1.5,)}}, r'evaluate\.top_k\[0\]=1.5'),
  ],
)
def test_wrong_type_names_the_path(values, message):
  with pytest.raises(ValueError, match=message):
    config.from_config_dict(values)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'model': {'moe': {'top_k': 30}}}, r'model\.moe\.top_k=30'),
    ({'pretrain': {'batch_size': 0}}, 'pretrain.batch_size=0'),
    ({'data': {'source': 'kuairand'}}, 'needs data.path'),
    ({'data': {'split': {'kind': 'by_time'}}}, 'validation_start'),
    ({'mesh': {'data': -1, 'expert': -1}}, 'at most one'),
    ({'mesh': {'data': 1, 'expert': 5}}, 'not divisible by mesh.expert=5'),
    ({'stages': ('embed', 'prepare')}, 'must follow the order'),
    (
      {
        'model': {'normalise_over': 'catalogue'},
        'evaluate': {'decoding': {'constrain': 'none'}},
      },
      "set evaluate.decoding.constrain='trie'",
    ),
    (
      {
        'model': {'normalise_over': 'catalogue'},
        'stages': ('pretrain', 'reward', 'align'),
      },
      r"does not go with stages \['align'\]",
    ),
    ({'embed': {'parts': ({'kind': 'array'},)}}, r'parts\[0\]\.path'),
    (
      {'pretrain': {'pipeline': {'length_buckets': (10, 20)}}},
      'must rise and end at data.history_length=50',
    ),
  ],
)
def test_contradiction_says_what_to_set(values, message):
  with pytest.raises(ValueError, match=message):
    config.from_config_dict(values)


def test_all_problems_are_listed_at_once():
  with pytest.raises(ValueError) as error:
    config.from_config_dict(
      {'model': {'dropout_rate': 2.0}, 'pretrain': {'num_steps': 0}}
    )
  assert 'dropout_rate' in str(error.value)
  assert 'num_steps' in str(error.value)


def test_integers_are_accepted_where_floats_are_meant():
  experiment = config.from_config_dict({'model': {'dropout_rate': 0}})
  assert isinstance(experiment.model.dropout_rate, float)


def test_digest_changes_with_any_value_and_only_then():
  base = config.Experiment()
  assert config.digest(base) == config.digest(config.Experiment())
  changed = dataclasses.replace(base, seed=1)
  assert config.digest(base) != config.digest(changed)


def test_reading_a_recipe_does_not_import_jax():
  code = (
    'import sys; from onerec_jax import config;'
    'config.from_config_dict(config.default_config());'
    'sys.exit("jax" in sys.modules)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
