"""The program with every path in a bucket; see fake_bucket.py."""

import dataclasses
import json

import fsspec
import numpy as np
import polars as pl
import pytest
from etils import epath

from onerec_jax import config
from onerec_jax import workdir as workdir_lib
from onerec_jax.data import amazon
from onerec_jax.data import kuairand
from onerec_jax.data import movielens
from onerec_jax.stages import recommend
from onerec_jax.stages import runner
from onerec_jax.train import log
from onerec_jax.train import profile

_USERS, _ITEMS, _EVENTS = 24, 12, 8


def _write_tables(folder: epath.Path) -> None:
  """Writes a log and an item table, and vectors of the items."""
  rng = np.random.default_rng(0)
  rows = [
    {'user_id': f'u{u}', 'item_id': f'i{i}', 'timestamp': 1_000_000 + t}
    for u in range(_USERS)
    for t, i in enumerate(rng.permutation(_ITEMS)[:_EVENTS])
  ]
  (folder / 'log.csv').write_bytes(pl.DataFrame(rows).write_csv().encode())
  items = pl.DataFrame(
    {
      'item_id': [f'i{i}' for i in range(_ITEMS)],
      'title': [f'Item {i}' for i in range(_ITEMS)],
    }
  )
  with (folder / 'items.parquet').open('wb') as file:
    items.write_parquet(file)
  with (folder / 'vectors.npz').open('wb') as file:
    np.savez(
      file,
      embeddings=rng.normal(size=(_ITEMS, 6)),
      item_ids=np.array([f'i{i}' for i in range(_ITEMS)]),
    )


@pytest.fixture(name='make', scope='module')
def fixture_make(bucket, tiny_experiment):
  """Function (num_steps=2) -> an experiment on what lies in bucket/raw."""
  tiny = tiny_experiment()
  raw = f'{bucket}/raw'
  moe = config.MoEConfig(num_experts=2, expert_dim=8, dispatch='dense')

  def make(num_steps=2):
    return config.validate(
      dataclasses.replace(
        tiny,
        data=dataclasses.replace(
          tiny.data,
          source='tables',
          tables=config.TablesConfig(
            interactions=f'{raw}/log.csv', items=f'{raw}/items.parquet'
          ),
          sessions=config.SessionsConfig(items_per_session=1),
        ),
        embed=config.EmbedConfig(
          parts=(config.EmbedPart(kind='array', path=f'{raw}/vectors.npz'),)
        ),
        tokenizer=config.TokenizerConfig(levels=2, codes_per_level=4),
        model=dataclasses.replace(tiny.model, moe=moe),
        pretrain=dataclasses.replace(
          tiny.pretrain,
          num_steps=num_steps,
          log_every_steps=1,
          evaluate_every_steps=2,
          checkpoint_every_steps=1,
          keep_checkpoints=1,
          profile_steps=(2, 2),
        ),
        evaluate=dataclasses.replace(
          tiny.evaluate,
          top_k=(1, 5),
          num_example_users=2,
          decoding=config.DecodingConfig(num_beams=8),
        ),
      )
    )

  return make


@pytest.fixture(scope='module')
def run(bucket, make):
  """(experiment, workdir) after every stage."""
  _write_tables(epath.Path(bucket) / 'raw')
  experiment = make()
  workdir = workdir_lib.Workdir(f'{bucket}/run')
  runner.run_stages(experiment, workdir, experiment.stages, resume=True)
  return experiment, workdir


def test_every_stage_completes_in_a_bucket(run, fake_bucket):
  experiment, workdir = run
  results = {s: workdir.result(s) for s in experiment.stages}
  assert results['prepare']['users'] == _USERS
  assert results['pretrain']['steps'] == 2
  assert results['evaluate']['metrics']
  assert '<html' in (workdir.folder('report') / 'report.html').read_text()
  names = fake_bucket.objects()
  assert 'bucket/run/pretrain/metrics.jsonl' in names
  assert any(n.startswith('bucket/run/pretrain/events.') for n in names)
  assert any(n.endswith('.png') for n in names)
  # One checkpoint is kept, with its mark of completeness.
  steps = {
    n.split('/')[4] for n in names if n.startswith('bucket/run/pretrain/che')
  }
  assert steps == {'2'}
  assert 'bucket/run/pretrain/checkpoints/2/commit_success.txt' in names
  # Nothing temporary is left.
  assert not [n for n in names if '/.' in n or 'tmp' in n]
  assert profile.slowest(
    profile.read_trace(profile.find_traces(workdir.folder('pretrain'))[0])
  )


def test_nothing_is_written_beside_the_bucket(run, fake_bucket, tmp_path):
  # A path that was taken for a local one would make a folder 'gs:' here.
  experiment, workdir = run
  del experiment, workdir
  assert not epath.Path('gs:').exists()
  assert {n.split('/')[1] for n in fake_bucket.objects()} <= {
    'raw', 'run', 'recommended.csv', 'sources',
  }  # fmt: skip


def test_training_continues_from_the_bucket(run, make):
  _, workdir = run
  longer = make(num_steps=3)
  runner.run_stages(longer, workdir, ('pretrain',), resume=True)
  assert workdir.result('pretrain')['steps'] == 3
  records = log.read_metrics(workdir.folder('pretrain') / log.METRICS)
  assert [r['step'] for r in records] == [1, 2, 3]
  assert workdir.result('pretrain')['final']['goodput'] > 0


def test_a_finished_run_is_skipped_and_answers_users(run, bucket, capsys):
  experiment, workdir = run
  output = f'{bucket}/recommended.csv'
  recommend.run(
    experiment, workdir, users=['u3'], history=None, top_k=3, output=output
  )
  rows = epath.Path(output).read_text().splitlines()
  assert len(rows) == 1 + 3
  assert 'u3' in rows[1]


def test_what_another_host_writes_is_seen(bucket):
  # gcsfs remembers listings unless it is told not to.
  store = fsspec.filesystem('gcs')
  assert store.dircache.use_listings_cache is False
  del bucket


# --- Sources ------------------------------------------------------------------


def test_data_sets_are_read_from_a_bucket(bucket):
  folder = epath.Path(bucket) / 'sources'
  (folder / 'Beauty.txt').write_text('1 10 11\n2 11 12\n')
  found = amazon.read_sequences(f'{bucket}/sources', variant='Beauty')
  assert found.interactions['item_id'].to_list() == ['10', '11', '11', '12']
  review = {'reviewerID': 'a', 'asin': 'b', 'overall': 5, 'unixReviewTime': 9}
  (folder / 'reviews_Toys_5.json').write_text(json.dumps(review) + '\n')
  (folder / 'meta_Toys.json').write_text("{'asin': 'b', 'title': 'Bear'}\n")
  found = amazon.read_reviews(f'{bucket}/sources', variant='Toys')
  assert found.items['title'].to_list() == ['Bear']
  (folder / 'u.data').write_text('1\t2\t3\t4\n')
  (folder / 'u.item').write_text('|'.join(['2', 'Film', *[''] * 22]) + '\n')
  (folder / 'u.user').write_text('1|24|M|writer|85711\n')
  found = movielens.read(f'{bucket}/sources', variant='100k')
  assert found.interactions['rating'].to_list() == [3.0]
  with pytest.raises(FileNotFoundError, match=r'gs://bucket/sources/log_'):
    kuairand.read(f'{bucket}/sources', variant='pure')


# --- Metrics ------------------------------------------------------------------


def test_metrics_are_sent_now_and_then_and_at_checkpoints(bucket, fake_bucket):
  now = [0.0]
  folder = epath.Path(bucket) / 'log'
  writer = log.MetricsWriter(folder, resume_step=0, clock=lambda: now[0])

  def steps():
    return [r['step'] for r in log.read_metrics(folder / log.METRICS)]

  writer.write(1, {'loss': 1.0})
  assert steps() == []
  now[0] = 59.0
  writer.write(2, {'loss': 1.0})
  assert steps() == []
  now[0] = 60.0
  writer.write(3, {'loss': 1.0})
  assert steps() == [1, 2, 3]
  writer.write(4, {'loss': 1.0})
  writer.flush()  # a checkpoint
  assert steps() == [1, 2, 3, 4]
  writer.write(5, {'loss': 1.0})
  writer.close()
  assert steps() == [1, 2, 3, 4, 5]
  events = [n for n in fake_bucket.objects() if '/log/events.' in n]
  assert len(events) == 1
