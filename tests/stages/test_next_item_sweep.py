"""Sweeps that the next item judges: floors, slices, seeds, what is resumed."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import examples
from onerec_jax.data import records
from onerec_jax.stages import next_item
from onerec_jax.stages import ranking
from onerec_jax.stages import runner
from onerec_jax.stages import sweep
from onerec_jax.stages import sweep_table

_USERS, _ITEMS = 24, 12
_STAGES: tuple[config.Stage, ...] = (
  'prepare', 'embed', 'tokenize', 'pretrain',
)  # fmt: skip


def _sequences():
  """Item numbers of every user, 1.., without repeats; the last is the test."""
  rng = np.random.default_rng(0)
  return [
    (rng.permutation(_ITEMS)[: rng.integers(5, 9)] + 1).tolist()
    for _ in range(_USERS)
  ]


def _asin(number):
  # Not in the order of the numbers.
  return f'B{(number * 5) % 13:09d}'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('amazon')
  lines = (
    f'{user} ' + ' '.join(map(str, items))
    for user, items in enumerate(_sequences(), 1)
  )
  (path / 'Tiny.sequences.txt').write_text('\n'.join(lines) + '\n')
  items = (
    {'id': n, 'asin': _asin(n), 'title': f't{n}', 'categories': [f'c{n % 3}']}
    for n in range(1, _ITEMS + 1)
  )
  (path / 'Tiny.items.jsonl').write_text(
    ''.join(json.dumps(item) + '\n' for item in items)
  )
  return path


@pytest.fixture(name='make', scope='module')
def fixture_make(folder, tiny_experiment):
  """Function (rows) -> a sweep of seed 0."""
  tiny = tiny_experiment()

  def make(rows):
    return dataclasses.replace(
      tiny,
      stages=_STAGES,
      data=dataclasses.replace(
        tiny.data, source='amazon_sequences', path=str(folder), variant='Tiny'
      ),
      tokenizer=dataclasses.replace(tiny.tokenizer, codes_per_level=4),
      pretrain=dataclasses.replace(
        tiny.pretrain, evaluate_every_steps=1, evaluate_examples=8
      ),
      evaluate=dataclasses.replace(
        tiny.evaluate,
        top_k=(2, 5),
        decoding=config.DecodingConfig(num_beams=6),
      ),
      sweep=config.SweepConfig(
        title='Tiny', rows=rows, base='OneRec', judge='next_item'
      ),
    )

  return make


_ROWS = (
  config.SweepRow('OneRec', published='Beauty/TIGER'),
  config.SweepRow('SASRec', overrides={'architecture': 'sasrec'}),
)


@pytest.fixture(scope='module')
def finished(make, tmp_path_factory):
  experiment = make(_ROWS)
  workdir = workdir_lib.Workdir(tmp_path_factory.mktemp('sweep'))
  return experiment, workdir, sweep.run(experiment, workdir)


# --- The table --------------------------------------------------------------


def test_rows_are_judged_by_the_last_item_of_every_sequence(finished):
  _, workdir, result = finished
  assert [row['name'] for row in result['rows']] == ['OneRec', 'SASRec']
  assert result['columns'] == ['recall@2', 'ndcg@2', 'recall@5', 'ndcg@5']
  sequences = _sequences()
  for row in result['rows']:
    place = workdir.root / 'rows' / sweep.slug(row['name']) / 'seed_0'
    with np.load(place / 'users.npz') as stored:
      lists = stored['items'].tolist()
    # Items keep the order of their numbers, users that of the file.
    for listed, (*seen, _) in zip(lists, sequences, strict=True):
      assert not {x + 1 for x in listed if x >= 0} & set(seen)
    hits = [
      items[-1] - 1 in listed[:5]
      for listed, items in zip(lists, sequences, strict=True)
    ]
    assert row['figures']['recall@5']['mean'] == pytest.approx(np.mean(hits))
    assert row['users'] == _USERS
  moved = result['rows'][1]['difference']['recall@5']['mean']
  one, other = (row['figures']['recall@5']['mean'] for row in result['rows'])
  assert moved == pytest.approx(other - one)


def test_floors_are_rows_of_the_same_table(finished):
  _, _, result = finished
  popular = result['floors'][0]
  assert popular['name'] == 'Popularity'
  sequences = _sequences()
  counts = np.zeros(_ITEMS + 1)
  for items in sequences:
    counts[items[:-2]] += 1  # the last but one validates
  # Most frequent first, then by number; what the user has is left out.
  order = sorted(range(1, _ITEMS + 1), key=lambda n: (-counts[n], n))
  hits = [
    items[-1] in [n for n in order if n not in items[:-1]][:5]
    for items in sequences
  ]
  assert popular['figures']['recall@5']['mean'] == pytest.approx(np.mean(hits))
  base = result['rows'][0]['figures']['recall@5']['mean']
  assert popular['difference']['recall@5']['mean'] == pytest.approx(
    np.mean(hits) - base
  )


def test_the_slice_by_asin_order_has_every_method(finished):
  _, _, result = finished
  larger, smaller = result['slices']['order of the original ids']
  count = sum(_asin(s[-1]) > _asin(s[-2]) for s in _sequences())
  assert (larger['users'], smaller['users']) == (count, _USERS - count)
  names = {r['name'] for r in (*result['rows'], *result['floors'])}
  assert set(larger['methods']) == names


def test_rows_say_what_they_cost_and_how_validation_went(finished):
  _, _, result = finished
  for row in result['rows']:
    (training,) = row['training']
    assert training['steps'] == 2
    assert training['device'] == 'cpu'
    steps, seen, values = zip(*training['curve'], strict=True)
    assert steps == (1, 2)
    assert seen[1] == training['examples_seen']
    assert all(0 <= v <= 1 for v in values)
    assert row['by_id'][0]['recall@5'] >= row['figures']['recall@5']['mean']
  onerec, sasrec = (row['legality'][0] for row in result['rows'])
  assert onerec['as_decoded'] == 1.0  # in the trie
  assert 0 <= onerec['free_items'] <= 1
  assert sasrec == {}


def test_the_report_shows_the_table_its_floors_and_the_curves(finished):
  _, workdir, _ = finished
  folder = workdir.root / 'sweep'
  text = (folder / 'report.html').read_text()
  for word in ('SASRec', 'paper: TIGER', 'Popularity', 'smaller or equal'):
    assert word in text
  assert {p.name for p in folder.glob('*.png')} == {
    'ranking.png', 'order.png', 'curves.png',
  }  # fmt: skip


# --- Resumption -------------------------------------------------------------


def test_a_finished_sweep_trains_ranks_and_counts_nothing_again(
  finished, monkeypatch, tmp_path
):
  experiment, workdir, result = finished
  wanted = runner.run_stages

  def judge_only(experiment, workdir, stages, *, resume):
    assert tuple(stages) == ('prepare',)
    wanted(experiment, workdir, stages, resume=resume)

  def never(*_, **__):
    raise AssertionError('asked again')

  monkeypatch.setattr(runner, 'run_stages', judge_only)
  monkeypatch.setattr(next_item, 'measure_floors', never)
  monkeypatch.setattr(ranking, 'rank_users', never)
  assert sweep.run(experiment, workdir) == result
  # On another machine what the rows have answered is enough.
  elsewhere = workdir_lib.Workdir(tmp_path)
  shutil.copytree(workdir.root / 'rows', elsewhere.root / 'rows')
  assert sweep.run(experiment, elsewhere) == result


def test_other_decoding_is_measured_again_but_not_trained(
  finished, monkeypatch
):
  experiment, workdir, _ = finished
  wider = dataclasses.replace(
    experiment.evaluate, decoding=config.DecodingConfig(num_beams=7)
  )
  asked = []

  def measure(judge, trained, decoding):
    asked.append(decoding.num_beams)
    raise InterruptedError  # enough is known

  monkeypatch.setattr(next_item, 'measure', measure)
  stages = sorted(p.name for p in (workdir.root / 'stages').iterdir())
  with pytest.raises(InterruptedError):
    sweep.run(dataclasses.replace(experiment, evaluate=wider), workdir)
  assert asked == [7]
  assert stages == sorted(p.name for p in (workdir.root / 'stages').iterdir())


# --- Seeds ------------------------------------------------------------------


def _judge(finished, **changes):
  experiment, workdir, _ = finished
  base = sweep.row_experiment(experiment, config.SweepRow('j'), seed=0)
  shared = sweep.shared_workdir(base, workdir, 'judge/seed_0')
  return next_item.make_judge(base, shared)._replace(**changes)


def test_seeds_are_averaged_per_user_not_counted_as_more_users(finished):
  judge = _judge(finished)
  rng = np.random.default_rng(0)
  one = rng.random((_USERS, 4))
  other = 1 - one
  found = next_item.of_methods(
    judge, {'a': [one, other], 'b': [one], 'c': [one, one]}, base='b'
  )['methods']
  # 1/2 for every user: nothing is left to be uncertain of.
  assert found['a']['figures']['recall@5'] == pytest.approx(
    {'mean': 0.5, 'low': 0.5, 'high': 0.5}
  )
  # The same answers twice are as certain as once.
  assert found['c']['figures'] == found['b']['figures']
  assert found['a']['users'] == _USERS


def test_seeds_with_other_users_are_refused(finished):
  judge = _judge(finished)
  targets = judge.cases.targets.copy()
  targets[3] += 1
  other = judge._replace(cases=judge.cases._replace(targets=targets))
  next_item.check_same(judge, judge)
  with pytest.raises(ValueError, match='cannot be averaged'):
    next_item.check_same(judge, other)


# --- Errors -----------------------------------------------------------------


def test_a_row_that_holds_out_other_events_is_refused(finished, tmp_path):
  judge = _judge(finished)
  row = workdir_lib.Workdir(tmp_path)
  path = row.data / 'examples' / 'test.arrayrecord'
  sequences = _sequences()

  def write(place):
    examples.write_examples(
      path,
      [
        records.UserRecord(
          user=u,
          items=np.array(items) - 1,
          positive=np.ones(len(items), bool),
          timestamps=np.arange(len(items)),
          target_starts=np.array([len(items) + place]),
          target_lengths=np.array([1]),
        )
        for u, items in enumerate(sequences)
      ],
    )

  write(-1)
  next_item.check_users('good', row, judge)
  write(-2)
  with pytest.raises(ValueError, match="row 'early' has other test users or"):
    next_item.check_users('early', row, judge)


def test_an_unknown_judge_is_refused_with_the_known_ones():
  with pytest.raises(ValueError, match=r"sweep\.judge='nobody'.*'next_item'"):
    config.from_config_dict({'sweep': {'judge': 'nobody'}})


def test_an_unknown_published_row_is_refused_before_training(make, tmp_path):
  rows = (config.SweepRow('OneRec', published='OneRec-1B'),)
  with pytest.raises(ValueError, match="no row of TIGER's Table 1"):
    sweep.run(make(rows), workdir_lib.Workdir(tmp_path))


def test_a_row_named_as_a_floor_is_refused(finished):
  _, workdir, _ = finished
  place = workdir.root / 'rows' / 'onerec' / 'seed_0'
  with pytest.raises(ValueError, match=r"\['Popularity'\] as counting floors"):
    sweep_table.make(
      config.SweepConfig(
        rows=(config.SweepRow('Popularity'),),
        base='Popularity',
        judge='next_item',
      ),
      {0: _judge(finished)},
      {'Popularity': [place]},
      floors=workdir.root / 'rows' / 'floors',
      judging=('prepare',),
    )


def test_a_split_without_users_says_so(finished, monkeypatch):
  experiment, workdir, _ = finished
  base = sweep.row_experiment(experiment, config.SweepRow('j'), seed=0)
  shared = sweep.shared_workdir(base, workdir, 'judge/seed_0')

  class Empty:
    index = dataclasses.make_dataclass('Index', ['num_examples'])(0)

  monkeypatch.setattr(examples, 'ExampleStore', lambda path: Empty())
  with pytest.raises(ValueError, match=r"evaluate\.split='valid'"):
    next_item.make_judge(base, shared)
