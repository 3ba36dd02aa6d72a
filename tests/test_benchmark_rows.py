"""Rows of the public benchmark and of its ablations are what they say."""

import dataclasses
from typing import Any

import pytest

from experiments import benchmark_ablations
from experiments import onerec_amazon
from experiments import public_benchmark
from experiments import sasrec_amazon
from experiments import session_ablations
from experiments import tiger_amazon
from onerec_jax import config
from onerec_jax.model import flops
from onerec_jax.semantic_ids import vocabulary
from onerec_jax.stages import runner
from onerec_jax.stages import sweep


def _experiments(recipe):
  base = config.from_config_dict(recipe)
  return {
    row.name: sweep.row_experiment(base, row, seed=0) for row in base.sweep.rows
  }


def _alone(recipe, *, steps):
  """The recipe as it is trained without a table, but for the steps."""
  found = config.from_config_dict(recipe)
  return dataclasses.replace(
    found, pretrain=dataclasses.replace(found.pretrain, num_steps=steps)
  )


# Recipe, its variant, steps, and the weight of counts where it is another.
_RECIPES = {
  'OneRec': (onerec_amazon, '', 2500, None),
  'OneRec, the model alone': (onerec_amazon, '', 2500, 0.0),
  'SASRec, cross-entropy, and transitions': (sasrec_amazon, '', 8000, 0.5),
  'SASRec, cross-entropy': (sasrec_amazon, '', 8000, None),
  'TIGER': (tiger_amazon, '', 30_000, None),
  'SASRec, as published': (sasrec_amazon, '_bce', 8000, None),
}


@pytest.mark.parametrize('data', ['beauty', 'sports'])
def test_every_row_is_its_recipe_but_for_the_steps(data):
  found = _experiments(public_benchmark.get_config(data))
  assert list(found) == list(_RECIPES)
  for name, (module, suffix, steps, counts) in _RECIPES.items():
    alone = _alone(module.get_config(data + suffix), steps=steps)
    row = found[name]
    for field in ('architecture', 'data', 'embed', 'tokenizer', 'pretrain'):
      assert getattr(row, field) == getattr(alone, field), (name, field)
    model = 'model' if row.architecture == 'onerec' else 'sequential'
    assert getattr(row, model) == getattr(alone, model)
    decoding = alone.evaluate.decoding
    if counts is not None:
      decoding = dataclasses.replace(decoding, transition_weight=counts)
    assert row.evaluate.decoding == decoding


@pytest.mark.parametrize('data', ['beauty', 'sports'])
def test_what_a_cpu_trains_are_the_recipes_of_onerec_and_sasrec(data):
  found = _experiments(public_benchmark.get_config(f'{data}_cpu'))
  assert list(found) == list(_RECIPES)[:4]
  for name, module in (
    ('OneRec', onerec_amazon),
    ('SASRec, cross-entropy', sasrec_amazon),
  ):
    alone = config.from_config_dict(module.get_config(data))
    for field in ('data', 'embed', 'tokenizer', 'model', 'pretrain'):
      assert getattr(found[name], field) == getattr(alone, field), (name, field)
    assert found[name].evaluate.decoding == alone.evaluate.decoding


def test_rows_that_differ_in_their_decoding_alone_train_once():
  found = _experiments(public_benchmark.get_config('beauty'))
  for one, other in (
    ('OneRec', 'OneRec, the model alone'),
    ('SASRec, cross-entropy', 'SASRec, cross-entropy, and transitions'),
  ):
    first, second = (
      runner.stage_digest(found[n], 'pretrain') for n in (one, other)
    )
    assert first == second
    assert found[one].evaluate != found[other].evaluate


def test_what_the_command_line_changes_reaches_the_rows():
  recipe: Any = public_benchmark.get_config('beauty')
  recipe.data.path = 'elsewhere'
  found = _experiments(recipe)
  assert {e.data.path for e in found.values()} == {'elsewhere'}


def test_all_rows_of_a_table_ask_the_same_users():
  for variant in public_benchmark.VARIANTS:
    base = config.from_config_dict(public_benchmark.get_config(variant))
    assert base.sweep.judge == 'next_item'
    assert base.evaluate.top_k == (5, 10)
    for row in _experiments(public_benchmark.get_config(variant)).values():
      assert row.data.split == base.data.split
      assert row.data.variant == base.data.variant
      assert row.data.min_user_positives == base.data.min_user_positives


def test_settings_are_chosen_on_validation_users_with_equal_effort():
  recipe: Any = public_benchmark.get_config('tuning')
  assert recipe.evaluate.split == 'valid'
  found = _experiments(recipe)
  kinds = [e.architecture for e in found.values()]
  assert kinds.count('sasrec') == kinds.count('onerec') == 6
  assert recipe.sweep.base in found
  # The recipe's own settings are among those that are tried.
  own = config.from_config_dict(onerec_amazon.get_config('beauty'))
  tried = [(e.tokenizer, e.model, e.pretrain) for e in found.values()]
  assert (own.tokenizer, own.model, own.pretrain) in tried


# --- Ablations --------------------------------------------------------------


def _forward(experiment):
  codes = (experiment.tokenizer.codes_per_level,) * experiment.tokenizer.levels
  return flops.forward_flops(
    experiment.model,
    vocabulary.Vocabulary(codes),
    history_items=20,
    items_per_session=10,
  )


def test_the_dense_row_costs_what_the_experts_cost_but_for_the_router():
  found = _experiments(benchmark_ablations.get_config('experts'))
  moe, dense = found['8 experts'], found['dense']
  assert not dense.model.moe.enabled
  # 10 items of 2 codes and a BOS, 2 layers; 2 x 128 x 8 FLOPs a token.
  router = 10 * 3 * 2 * (2 * 128 * 8)
  assert _forward(moe) - _forward(dense) == router
  assert router < 0.01 * _forward(dense)


def test_codes_are_compared_at_one_size():
  found = _experiments(benchmark_ablations.get_config('codes'))
  sizes = {
    name: (e.tokenizer.levels, e.tokenizer.codes_per_level)
    for name, e in found.items()
  }
  assert sizes.pop('balanced k-means, 2 x 2,048') == (2, 2048)
  assert set(sizes.values()) == {(3, 256)}
  assert len({e.tokenizer.quantizer for e in found.values()}) == 3
  assert len({e.embed for e in found.values()}) == 1


@pytest.mark.parametrize('variant', benchmark_ablations.VARIANTS)
def test_the_model_alone_is_taken_apart(variant):
  found = _experiments(benchmark_ablations.get_config(variant))
  assert {e.evaluate.decoding.transition_weight for e in found.values()} == {0}


def test_vectors_are_behaviour_text_and_both():
  found = _experiments(benchmark_ablations.get_config('vectors'))
  kinds = [tuple(p.kind for p in e.embed.parts) for e in found.values()]
  assert kinds == [('cooccurrence', 'text'), ('cooccurrence',), ('text',)]


@pytest.mark.parametrize('variant', session_ablations.VARIANTS)
def test_session_rows_differ_in_their_length_alone(variant):
  found = _experiments(session_ablations.get_config(variant))
  lengths = [e.data.sessions.items_per_session for e in found.values()]
  assert lengths == [1, 2, 5]
  one, *others = found.values()
  for other in others:
    same = dataclasses.replace(other, name=one.name, data=one.data)
    assert same == one
