"""Parameter boxes and their NumPy initialisation."""

import jax
import numpy as np
import pytest
from flax import errors
from flax import linen as nn

from onerec_jax.model import onerec
from onerec_jax.model import parameters


@pytest.fixture(scope='module')
def abstract_of(make_case):
  """Function (**model fields) -> tree of boxes."""
  return lambda **changes: onerec.abstract_params(make_case(**changes).model)


def test_values_depend_on_seed_and_path_only(abstract_of):
  abstract = abstract_of()
  first = parameters.materialize(abstract, seed=3)
  again = parameters.materialize(abstract_of(), seed=3)
  jax.tree.map(np.testing.assert_array_equal, first, again)
  other = parameters.materialize(abstract, seed=4)
  assert (first['embedding'] != other['embedding']).any()
  # Two parameters of one shape and spread differ.
  cross = first['decoder']['layers']['cross']
  assert (cross['key'] != cross['value']).any()


def test_values_do_not_depend_on_the_mesh(abstract_of):
  mesh = jax.make_mesh(
    (2, 1, 4),
    ('data', 'fsdp', 'expert'),
    axis_types=(jax.sharding.AxisType.Auto,) * 3,
  )
  one, many = (
    parameters.materialize(abstract_of(mesh=m), seed=0) for m in (None, mesh)
  )
  jax.tree.map(np.testing.assert_array_equal, one, many)


def test_a_new_parameter_leaves_the_others_unchanged(abstract_of):
  tied, untied = (
    parameters.materialize(abstract_of(tie_head=t), seed=0)
    for t in (True, False)
  )
  assert untied.pop('head').shape == (3, 16, 7)
  jax.tree.map(np.testing.assert_array_equal, tied, untied)


def test_values_have_the_declared_shape_and_spread(abstract_of):
  abstract = abstract_of()
  params = parameters.materialize(abstract, seed=0)
  shapes = parameters.shapes(abstract)
  jax.tree.map(
    lambda p, s: np.testing.assert_equal(
      (p.shape, p.dtype), (s.shape, s.dtype)
    ),
    params,
    shapes,
  )
  wi = params['decoder']['layers']['experts']['wi']
  # D = 16: stddev 1/4; 4096 draws: relative error 1 %.
  assert abs(wi.std() - 0.25) < 0.02
  norm = params['encoder']['final_norm']['scale']
  np.testing.assert_array_equal(norm, np.ones(16))


def test_every_parameter_names_its_axes_from_the_known_list(abstract_of):
  known = {
    None, 'vocab', 'embed', 'heads', 'head_dim', 'mlp', 'expert',
    'expert_mlp', 'layers', 'codes', 'buckets',
  }  # fmt: skip
  abstract = abstract_of(tie_head=False, moe={'activation': 'swiglu'})
  names = parameters.logical_names(abstract)
  shapes = parameters.shapes(abstract)

  def check(names, shape):
    assert set(names) <= known
    assert len(names) == len(shape.shape)

  jax.tree.map(check, names, shapes, is_leaf=lambda x: isinstance(x, tuple))
  experts = names['decoder']['layers']['experts']
  assert experts['wo'] == ('layers', 'expert', 'expert_mlp', 'embed')


def test_plain_arrays_are_refused_where_boxes_are_expected():
  with pytest.raises(TypeError, match=r'parameters\.declare'):
    parameters.materialize({'w': np.zeros(3)}, seed=0)


def test_count_adds_all_elements():
  assert parameters.count({'a': np.zeros((2, 3)), 'b': np.zeros(5)}) == 11


class _Doubled(nn.Module):
  """One parameter, declared once or twice."""

  size: int
  times: int = 1

  @nn.compact
  def __call__(self):
    start = parameters.Initializer('ones')
    return sum(
      parameters.declare(self, 'scale', (self.size,), ('embed',), start)
      for _ in range(self.times)
    )


def test_parameters_of_another_shape_are_refused():
  params = {'params': {'scale': np.ones(3, np.float32)}}
  np.testing.assert_array_equal(_Doubled(3).apply(params), np.ones(3))
  with pytest.raises(
    ValueError, match=r'scale has shape \(3,\).* make it \(4,\)'
  ):
    _Doubled(4).apply(params)


def test_a_name_stands_for_one_parameter_of_a_module():
  with pytest.raises(errors.NameInUseError):
    _Doubled(3, times=2).init(jax.random.key(0))


def test_reading_a_parameter_traces_nothing_of_its_start(monkeypatch):
  params = {'params': {'scale': np.ones(3, np.float32)}}
  monkeypatch.setattr(jax, 'eval_shape', None)
  _Doubled(3).apply(params)
