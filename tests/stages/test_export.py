"""Command export: the program answers as `recommend` does.

The suite has eight devices, the program one: the model is the same.
"""

import ast
import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from onerec_jax import exported
from onerec_jax.data import catalog
from onerec_jax.model import attention
from onerec_jax.stages import export
from onerec_jax.stages import recommend
from onerec_jax.stages import reinforce

_TOP_K = 4


@pytest.fixture(scope='module')
def small_batches(tiny_run):
  """(experiment that answers two users at a time, workdir)."""
  experiment, workdir = tiny_run
  evaluate = dataclasses.replace(experiment.evaluate, batch_size=2)
  return dataclasses.replace(experiment, evaluate=evaluate), workdir


@pytest.fixture(scope='module')
def folder(small_batches, tmp_path_factory):
  folder = tmp_path_factory.mktemp('export') / 'new'
  export.run(*small_batches, top_k=_TOP_K, output=folder)
  return folder


@pytest.fixture(scope='module')
def recommender(folder):
  return exported.load(folder)


@pytest.fixture(scope='module')
def items(tiny_run):
  return catalog.item_ids(tiny_run[1].data).tolist()


def _by_command(run, history, **changes):
  arguments = {'users': None, 'top_k': _TOP_K, 'output': None, **changes}
  rows = recommend.run(*run, history=history, **arguments)
  return [r['item_id'] for r in rows], [r['score'] for r in rows]


def test_answers_are_those_of_the_command(small_batches, recommender, items):
  # Items 0 and 1 share an ID; more requests than a batch has rows.
  histories = [[items[0], items[5]], items[:3], [items[29]]]
  answers = recommender.recommend(histories)
  assert len(answers) == 3
  for history, answer in zip(histories, answers, strict=True):
    names, scores = _by_command(small_batches, history)
    assert [a.item_id for a in answer] == names
    np.testing.assert_allclose([a.score for a in answer], scores, rtol=1e-5)
    assert not {a.item_id for a in answer} & set(history)
  assert [a.item_id for a in answers[0]] != [a.item_id for a in answers[2]]


def test_a_list_of_items_goes_into_the_program(small_batches, items, tmp_path):
  file = tmp_path / 'stock.txt'
  file.write_text('\n'.join([items[0], *items[5:20:2]]))
  export.run(
    *small_batches, top_k=_TOP_K, output=tmp_path / 'stock', items=file
  )
  # Items 0 and 1 share an ID: to have met 1, unlisted, does not use up 0.
  history = [items[1], items[7]]
  (answer,) = exported.load(tmp_path / 'stock').recommend([history])
  names, scores = _by_command(small_batches, history, items=file)
  assert [a.item_id for a in answer] == names
  np.testing.assert_allclose([a.score for a in answer], scores, rtol=1e-5)
  assert set(names) <= set([items[0], *items[5:20:2]]) - {items[7]}


def test_fewer_items_are_the_first_ones(recommender, items):
  (whole,) = recommender.recommend([items[:2]])
  (two,) = recommender.recommend([items[:2]], top_k=2)
  assert two == whole[:2]


def test_no_request_has_no_answer(recommender):
  assert recommender.recommend([]) == []


def test_of_a_long_history_the_latest_items_are_read(recommender, items):
  manifest = recommender.manifest
  # Beyond what is read, but still within what is kept out.
  history = items[: manifest.history_length + 3]
  assert len(history) < manifest.max_excluded
  (long,) = recommender.recommend([history])
  (other,) = recommender.recommend([history[:3][::-1] + history[3:]])
  assert long == other
  assert not {a.item_id for a in long} & set(history)


def test_unknown_ids_are_named_or_left_out(recommender, items):
  with pytest.raises(ValueError, match='Request 1 has unknown item ids: nix'):
    recommender.recommend([[items[0]], [items[0], 'nix']])
  assert recommender.recommend(
    [[items[0], 'nix']], skip_unknown=True
  ) == recommender.recommend([[items[0]]])


@pytest.mark.parametrize(
  ('history', 'options', 'message'),
  [
    ([], {}, 'no known item'),
    (['nix'], {'skip_unknown': True}, 'no known item'),
    ('50', {}, 'expected a list of item ids'),
    (['0'], {'top_k': _TOP_K + 1}, f'in 1..{_TOP_K}'),
    (['0'], {'top_k': 0}, f'in 1..{_TOP_K}'),
  ],
)
def test_what_cannot_be_answered_is_refused(
  recommender, history, options, message
):
  with pytest.raises(ValueError, match=message):
    recommender.recommend([history], **options)


def test_half_precision_parameters_come_back_as_they_were(
  small_batches, with_settings, tmp_path, items
):
  experiment, workdir = small_batches
  half = with_settings(experiment, parameter_dtype='bfloat16')
  manifest = export.run(half, workdir, top_k=_TOP_K, output=tmp_path)
  stored = json.loads((tmp_path / 'manifest.json').read_text())
  assert 'bfloat16' in stored['dtypes'] and manifest.batch_size == 2
  (answer,) = exported.load(tmp_path).recommend([items[:3]])
  names, scores = _by_command((half, workdir), items[:3])
  assert [a.item_id for a in answer] == names
  np.testing.assert_allclose([a.score for a in answer], scores, rtol=1e-5)


def test_what_was_met_may_come_again_where_the_settings_say_so(
  small_batches, with_settings, tmp_path, items
):
  experiment, workdir = small_batches
  decoding = dataclasses.replace(
    experiment.evaluate.decoding, exclude_history=False, num_beams=30
  )
  again = with_settings(experiment, decoding=decoding)
  export.run(again, workdir, top_k=len(items), output=tmp_path)
  (answer,) = exported.load(tmp_path).recommend([items[:3]])
  assert {a.item_id for a in answer} >= set(items[:3])


def test_counted_transitions_go_with_the_program(
  small_batches, with_settings, tmp_path, items
):
  experiment, workdir = small_batches
  decoding = dataclasses.replace(
    experiment.evaluate.decoding, transition_weight=0.9
  )
  counted = with_settings(experiment, decoding=decoding)
  export.run(counted, workdir, top_k=_TOP_K, output=tmp_path)
  (answer,) = exported.load(tmp_path).recommend([items[:3]])
  names, scores = _by_command((counted, workdir), items[:3])
  assert [a.item_id for a in answer] == names
  np.testing.assert_allclose([a.score for a in answer], scores, rtol=1e-5)
  assert scores != _by_command(small_batches, items[:3])[1]


# --- Files ------------------------------------------------------------------


def test_an_export_that_was_not_finished_is_not_loaded(folder, tmp_path):
  for path in folder.iterdir():
    if path.name != 'manifest.json':
      (tmp_path / path.name).write_bytes(path.read_bytes())
  with pytest.raises(FileNotFoundError, match=r'onerec_jax\.main export'):
    exported.load(tmp_path)


def test_another_format_is_refused(folder, tmp_path):
  manifest = json.loads((folder / 'manifest.json').read_text())
  manifest['format'] = 0
  (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(ValueError, match='has format 0'):
    exported.load(tmp_path)


def test_other_peoples_folders_are_left_alone(small_batches, tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(ValueError, match=r"holds \['thesis.tex'\]"):
    export.run(*small_batches, top_k=_TOP_K, output=tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


# --- Limits -----------------------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'message'),
  [({'output': None}, 'needs --output'), ({'top_k': 0}, 'at least 1')],
)
def test_wrong_arguments_are_named(small_batches, tmp_path, changes, message):
  arguments = {'top_k': _TOP_K, 'output': tmp_path, **changes}
  with pytest.raises(ValueError, match=message):
    export.run(*small_batches, **arguments)


def test_a_program_made_on_a_tpu_host_runs_elsewhere(
  small_batches, tmp_path, items, recommender, monkeypatch
):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  monkeypatch.setattr(attention, '_FUSED_FROM', 1)
  export.run(*small_batches, top_k=_TOP_K, output=tmp_path)
  again = exported.load(tmp_path).recommend([items[:3]])
  assert again == recommender.recommend([items[:3]])


def test_a_model_of_users_events_is_refused(
  small_batches, tmp_path, monkeypatch
):
  trained = reinforce.load_final(*small_batches)._replace(contexts=object())
  monkeypatch.setattr(reinforce, 'load_final', lambda *_: trained)
  with pytest.raises(ValueError, match="encoder='pathways'"):
    export.run(*small_batches, top_k=_TOP_K, output=tmp_path)


def test_loading_needs_little():
  tree = ast.parse(pathlib.Path(exported.__file__).read_text())
  modules = {
    (node.module if isinstance(node, ast.ImportFrom) else alias.name)
    for node in ast.walk(tree)
    if isinstance(node, ast.Import | ast.ImportFrom)
    for alias in node.names
  }
  third_party = {m.partition('.')[0] for m in modules if m}
  assert third_party - {'collections', 'json', 'os', 'typing'} == {
    'etils', 'jax', 'ml_dtypes', 'numpy'
  }  # fmt: skip
