"""Amazon sequence files and review files in their official layouts."""

import gzip
import json

import pytest

from onerec_jax.data import amazon
from onerec_jax.data import schema

REVIEWS = [
  {
    'reviewerID': 'A1',
    'asin': 'B1',
    'reviewerName': 'a',
    'helpful': [0, 0],
    'overall': 5.0,
    'unixReviewTime': 1400000000,
  },
  {
    'reviewerID': 'A2',
    'asin': 'B2',
    'overall': 2.0,
    'unixReviewTime': 1400086400,
  },
]


def write_sequences(folder, text='1 1 2 3\n2 3 1\n'):
  folder.joinpath('Toys.txt').write_text(text)


def test_sequences_become_ranked_events_in_file_order(tmp_path):
  write_sequences(tmp_path, '1 1 2 10\n\n2 10  1\n')
  data = schema.validate(amazon.read_sequences(tmp_path, variant='Toys'))
  assert data.interactions.rows() == [
    ('1', '1', 0),
    ('1', '2', 1),
    ('1', '10', 2),
    ('2', '10', 0),
    ('2', '1', 1),
  ]
  assert not data.has_time
  assert not data.has_item_table
  # By number, not by text: a row of an embedding file stays a row.
  assert data.items['item_id'].to_list() == ['1', '2', '10']


def test_item_lines_name_items_by_asin_and_give_text(tmp_path):
  write_sequences(tmp_path)
  rows = [
    {'id': 1, 'asin': 'Z', 'title': 'Red paint', 'categories': ['Art', 'Oil']},
    {'id': 2, 'asin': 'Y', 'tags': 'ball game', 'attribute_ids': [7]},
    {'id': 3, 'asin': 'X', 'title': 'Blue paint', 'categories': ['Art']},
  ]
  tmp_path.joinpath('Toys.items.jsonl').write_text(
    ''.join(json.dumps(r) + '\n' for r in rows)
  )
  data = schema.validate(amazon.read_sequences(tmp_path, variant='Toys'))
  assert data.interactions['item_id'].to_list() == ['Z', 'Y', 'X', 'X', 'Z']
  assert data.items.rows() == [
    ('Z', 'Red paint', 'Red paint Art Oil', ['Art', 'Oil']),
    ('Y', 'ball game', 'ball game', ['attribute:7']),
    ('X', 'Blue paint', 'Blue paint Art', ['Art']),
  ]


def test_s3rec_attributes_become_categories(tmp_path):
  write_sequences(tmp_path)
  tmp_path.joinpath('Toys_item2attributes.json').write_text(
    json.dumps({'1': [4, 5], '3': [4]})
  )
  data = schema.validate(amazon.read_sequences(tmp_path, variant='Toys'))
  assert data.items['categories'].to_list() == [
    ['attribute:4', 'attribute:5'],
    [],
    ['attribute:4'],
  ]


def test_all_bad_sequence_lines_are_named(tmp_path):
  write_sequences(tmp_path, '1 1 2\n2\n1 3\n')
  with pytest.raises(schema.DataError) as error:
    amazon.read_sequences(tmp_path, variant='Toys')
  assert [p.line for p in error.value.problems] == [2, 3]
  assert 'expected a user and its items' in str(error.value)
  assert "user '1' has a line already" in str(error.value)


def test_a_missing_sequence_file_names_the_candidates(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'Toys\.sequences\.txt, Toys'):
    amazon.read_sequences(tmp_path, variant='Toys')


@pytest.mark.parametrize('name', ['reviews_Toys_5.json.gz', 'Toys_5.json'])
def test_reviews_are_read_plain_or_compressed(tmp_path, name):
  text = ''.join(json.dumps(r) + '\n' for r in REVIEWS)
  data = gzip.compress(text.encode()) if name.endswith('gz') else text.encode()
  tmp_path.joinpath(name).write_bytes(data)
  dataset = schema.validate(amazon.read_reviews(tmp_path, variant='Toys'))
  assert dataset.interactions.rows() == [
    ('A1', 'B1', 1400000000_000_000, 5.0),
    ('A2', 'B2', 1400086400_000_000, 2.0),
  ]
  assert dataset.feedback == ('rating',)


def test_python_literals_of_2014_are_read_as_well(tmp_path):
  tmp_path.joinpath('reviews_Toys.json').write_text(
    ''.join(repr(r) + '\n' for r in REVIEWS)
  )
  meta = [
    {
      'asin': 'B2',
      'title': "Kid's ball",
      'brand': 'Acme',
      'categories': [['Toys', 'Balls'], ['Toys', 'Sport']],
    },
    {'asin': 'B9', 'title': 'never reviewed'},
    {'asin': 'B2', 'title': 'again'},
  ]
  with gzip.open(tmp_path / 'meta_Toys.json.gz', 'wt') as file:
    file.writelines(repr(m) + '\n' for m in meta)
  dataset = schema.validate(amazon.read_reviews(tmp_path, variant='Toys'))
  assert dataset.interactions['rating'].to_list() == [5.0, 2.0]
  assert dataset.items.rows() == [
    (
      'B2',
      "Kid's ball",
      "Kid's ball Acme Toys Balls Sport",
      ['Toys', 'Balls', 'Sport'],
    )
  ]
  assert dataset.counts == {
    'metadata_lines_of_other_items': 1,
    'metadata_lines_repeated': 1,
  }


def test_broken_review_lines_are_named(tmp_path):
  lines = [json.dumps(REVIEWS[0]), '{"reviewerID": "A2"', '[1, 2]']
  tmp_path.joinpath('Toys.json').write_text('\n'.join(lines))
  with pytest.raises(schema.DataError) as error:
    amazon.read_reviews(tmp_path, variant='Toys')
  assert [p.line for p in error.value.problems] == [2, 3]
  assert 'is no JSON object' in str(error.value)


def test_a_review_without_time_is_named_by_key(tmp_path):
  rows = [REVIEWS[0], {'reviewerID': 'A', 'asin': 'B', 'overall': 1.0}]
  tmp_path.joinpath('Toys.json').write_text(
    ''.join(json.dumps(r) + '\n' for r in rows)
  )
  with pytest.raises(
    schema.DataError, match=r"row 2 \(line 2\).*'unixReviewTime': is empty"
  ):
    amazon.read_reviews(tmp_path, variant='Toys')


def test_reviews_need_a_variant(tmp_path):
  with pytest.raises(ValueError, match=r'needs data\.variant'):
    amazon.read_reviews(tmp_path, variant=None)


def test_beauty_has_the_published_size(real_data_root):
  data = schema.validate(
    amazon.read_sequences(real_data_root / 'amazon2014', variant='Beauty')
  )
  # TIGER, arXiv:2305.05065, table of data sets; 5-core.
  assert len(data.users) == 22_363
  assert len(data.items) == 12_101
  assert len(data.interactions) == 198_502
  assert data.items['title'].null_count() == 0
