"""The programs of all modes, lowered for eight fake devices."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import rich.console

from onerec_jax import accelerators
from onerec_jax import config as config_lib
from onerec_jax import meshes
from onerec_jax.aot import assumed
from onerec_jax.aot import compilation
from onerec_jax.aot import findings
from onerec_jax.aot import programs
from onerec_jax.aot import report
from onerec_jax.aot import table
from onerec_jax.semantic_ids import prefix_trie

_ITEMS = 500
_MODEL = {
  'embed_dim': 16,
  'num_heads': 2,
  'head_dim': 8,
  'encoder_layers': 1,
  'decoder_layers': 1,
  'mlp_dim': 32,
  'moe': {'num_experts': 4, 'expert_dim': 24},
}
_PATHWAYS = {
  'user_features': ({'column': 'age', 'dim': 4},),
  'item_features': ({'name': 'tag', 'dim': 4, 'average': True},),
  'event_features': ({'column': 'rating', 'dim': 4},),
  'labels': ('like',),
  'label_dim': 4,
  'age_dim': 4,
  'short_length': 3,
  'positive_length': 5,
  'lifelong_length': 6,
  'lifelong_queries': 2,
}


def _experiment(encoder='history', **changes):
  model = dict(_MODEL, encoder=encoder)
  if encoder == 'pathways':
    model['pathways'] = _PATHWAYS
  values = {
    'name': 'tiny',
    'model': model,
    'stages': (
      'prepare',
      'embed',
      'tokenize',
      'lifelong',
      'pretrain',
      'evaluate',
    )
    if encoder == 'pathways'
    else config_lib.BASE_STAGES,
    'data': {
      'history_length': 6,
      'sessions': {'items_per_session': 1 if encoder == 'pathways' else 2},
    },
    'tokenizer': {'codes_per_level': 8},
    'mesh': {'expert': 2},
    'pretrain': {'batch_size': 16, 'evaluate_every_steps': 0},
    'align': {'batch_size': 16, 'num_steps': 10},
    'preference': {'rollout': {'num_beams': 4, 'num_items': 2}},
    'reinforce': {'batch_size': 16, 'num_steps': 10},
    'reinforcement': {'group_size': 4, 'user_share': 0.1},
    'evaluate': {
      'batch_size': 8,
      'top_k': (1, 5),
      'decoding': {'num_beams': 4, 'num_items': 1},
    },
    **changes,
  }
  return config_lib.from_config_dict(values)


@pytest.fixture(autouse=True, scope='module')
def shapes_in_place_of_arrays():
  """Lets the trie's dataclasses hold shapes, as only aot makes them do."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)


def _build(mode, **kwargs):
  experiment = _experiment(**kwargs)
  mesh = meshes.make_mesh(experiment.mesh)
  return programs.build(experiment, mesh, mode=mode, num_items=_ITEMS)


@pytest.mark.parametrize(
  ('mode', 'encoder'),
  [
    ('train', 'pathways'),  # with 'history' it is compiled below
    ('dpo', 'history'),
    ('ecpo', 'pathways'),
    ('decode', 'history'),
    ('decode', 'pathways'),
  ],
)
def test_every_mode_is_lowered_from_the_experiment_alone(mode, encoder):
  program = _build(mode, encoder=encoder)
  text = program.function.lower(*program.arguments).as_text()
  assert ('jit_recommend' in text) == (mode == 'decode')
  assert ('jit_train_step' in text) == (mode != 'decode')
  assert program.model_flops > 0
  assert program.sizes['encoder_tokens'] == (
    11 if encoder == 'pathways' else 24
  )


def test_preference_pairs_and_groups_cost_more_than_a_training_step():
  flops = {mode: _build(mode).model_flops for mode in ('train', 'dpo', 'ecpo')}
  assert flops['dpo'] > flops['train']
  assert flops['ecpo'] > flops['train']


def test_an_assumed_trie_has_the_room_that_build_gives():
  codes = (8, 8, 8)
  trie = assumed.trie(codes, num_items=_ITEMS, sharding=None)
  generator = np.random.default_rng(5)
  built = prefix_trie.PrefixTrie.build(
    generator.integers(0, 8, (_ITEMS, 3)).astype(np.int32), codes
  )
  # Levels, their kind and their room; not what the codes decide.
  assert [type(level) for level in trie.levels] == [
    type(level) for level in built.levels
  ]
  assert trie.items.shape == built.items.shape
  assert jax.tree.leaves(trie.levels[0])[0].shape == (
    jax.tree.leaves(built.levels[0])[0].shape
  )


def test_assumed_users_have_the_context_that_the_encoder_expects():
  experiment = _experiment(encoder='pathways')
  users = assumed.Users(experiment, None).sessions(4, items=1)
  assert users.context is not None
  lifelong = users.context.lifelong
  assert lifelong.items.shape == (4, 6)
  assert lifelong.categories.shape == (4, 6, 1, 4)
  assert users.context.positive.categories is None
  assert users.context.features.shape == (4, 1)


def test_counted_transitions_are_among_the_arguments_of_decoding():
  alone = _build('decode')
  counted = _build('decode', evaluate={'decoding': {'transition_weight': 0.5}})
  extra = counted.arguments[len(alone.arguments) :]
  assert [x.shape for x in jax.tree.leaves(extra)] == [(_ITEMS, 64)] * 2
  counted.function.lower(*counted.arguments)


def test_an_unknown_mode_and_a_batch_that_does_not_divide_are_refused():
  with pytest.raises(ValueError, match=r'--mode=serve is not one of train'):
    _build('serve')
  with pytest.raises(ValueError, match=r'evaluate\.batch_size=4 is not div'):
    _build('decode', evaluate={'batch_size': 4, 'decoding': {'num_beams': 4}})


def test_ids_whose_levels_depend_on_the_data_are_refused():
  with pytest.raises(ValueError, match=r"collision='append' adds a level"):
    _build('train', tokenizer={'codes_per_level': 8, 'collision': 'append'})


# --- Compiled ---------------------------------------------------------------


@pytest.fixture(scope='module')
def compiled():
  experiment = _experiment()
  mesh = meshes.make_mesh(experiment.mesh)
  return compilation.compile_on_mesh(
    experiment,
    mesh,
    generation=accelerators.generation('v5e'),
    mode='train',
    num_items=_ITEMS,
    flags=None,
  )


def test_a_compiled_step_fits_and_its_collectives_are_counted(compiled):
  result, _ = compiled
  assert result.fits
  assert report.exit_status(result) == 0
  assert 0 < result.memory['used'] < result.hbm_bytes
  assert result.mesh == {'data': 4, 'fsdp': 1, 'expert': 2}
  # Tokens move to the experts, whose gradients are summed over data.
  assert result.findings.collectives['all-gather'].executions > 0
  assert result.findings.collectives['all-reduce'].bytes > 0
  assert not result.findings.expert_weight_gathers
  assert result.roofline_seconds == result.model_flops / (8 * 197e12)


def test_an_executable_is_written_and_runs_when_read_back(compiled, tmp_path):
  import pickle

  from jax.experimental import serialize_executable

  _, executable = compiled
  path = tmp_path / 'step.bin'
  size = compilation.write_executable(executable, str(path))
  assert path.stat().st_size == size
  loaded = serialize_executable.deserialize_and_load(
    *pickle.loads(path.read_bytes())
  )
  experiment = _experiment()
  mesh = meshes.make_mesh(experiment.mesh)
  arguments = programs.build(
    experiment, mesh, mode='train', num_items=_ITEMS
  ).arguments
  zeros = jax.tree.map(
    lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding),
    arguments,
  )
  state, totals = loaded(*zeros)
  assert int(totals.steps) == 1
  assert int(state.step) == 1


def test_the_report_is_read_by_people_and_by_the_table(compiled, tmp_path):
  result, _ = compiled
  result = dataclasses.replace(result, topology='v5e-8')
  buffer = io.StringIO()
  report.show(result, rich.console.Console(file=buffer, width=100))
  text = buffer.getvalue()
  assert 'FITS' in text
  assert 'all-gather' in text
  report.write(result, tmp_path / 'a.json')
  values = json.loads((tmp_path / 'a.json').read_text())
  assert values['findings']['asynchronous_share']['all-gather'] is not None
  row = table.markdown([values]).splitlines()[2]
  assert row.startswith('| tiny | train | v5e-8 | 4 x 1 x 2 | 16 |')


# --- Verdicts ---------------------------------------------------------------


def test_out_of_memory_is_a_verdict_with_what_was_wanted(compiled):
  assert compilation.oom_memory(
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM,'
    ' the total memory required for HLO temporaries (33.5G) exceeds'
    ' available HBM (15.75G). HLO module: jit_train_step'
  ) == {'used': 33.5 * 2**30, 'usable': 15.75 * 2**30}
  memory = compilation.oom_memory(
    'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: XLA:TPU compile permanent'
    ' error. Ran out of memory in memory space hbm. Used 836.03G of 15.75G hbm.'
  )
  assert memory == {'used': 836.03 * 2**30, 'usable': 15.75 * 2**30}
  result = dataclasses.replace(
    compiled[0], fits=False, memory=memory, findings=None
  )
  assert report.exit_status(result) == 2
  assert report.verdict(result).startswith('OUT OF MEMORY: wants 897.7 GB')
  assert 'out of memory' in table.markdown([report.to_json(result)])


def test_other_failures_are_no_verdict():
  # A kernel that wants too much of the chip's fast memory is a defect.
  message = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.'
  assert compilation.oom_memory(message) is None


def test_what_a_program_should_not_do_is_said(compiled):
  result, _ = compiled
  bad = findings.Found('bf16[24,768,6400]', 'decoder/experts', 4.0, 1e9)
  worse = dataclasses.replace(
    result.findings,
    expert_weight_gathers=(bad,),
    score_arrays=(bad,),
    wide_float_sorts=(bad,),
    unknown_loops=2,
  )
  lines = report.warnings(dataclasses.replace(result, findings=worse))
  assert 'all-gathered in every layer: 4.00 GB' in lines[0]
  assert len(lines) == 4
