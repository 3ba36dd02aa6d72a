"""The paper-scale recipes have the sizes and settings that are published."""

import pytest

from experiments import onerec_tr_paper
from experiments import onerec_v1_paper
from experiments import paper_sizes
from onerec_jax.model import pathways

_PUBLISHED = paper_sizes.published()
_TR = [name for name in _PUBLISHED if name.startswith('onerec_tr')]


def test_every_size_of_both_papers_is_counted():
  assert set(_PUBLISHED) == {
    *(f'onerec_v1_paper:{size}' for size in onerec_v1_paper.VARIANTS),
    *(f'onerec_tr_paper:{size}' for size in onerec_tr_paper.VARIANTS),
  }


@pytest.mark.parametrize('name', _PUBLISHED)
def test_a_recipe_has_the_parameters_it_is_named_after(name):
  paper = _PUBLISHED[name]
  billions = float(name.split(':')[1].removesuffix('b'))
  assert paper.total == pytest.approx(1e9 * billions)
  found = paper_sizes.count(paper_sizes.experiment(name))
  total = found.total(paper)
  assert total == pytest.approx(paper.total, rel=0.05)
  if paper.active_share is not None:
    assert found.active(paper) / total == pytest.approx(
      paper.active_share, abs=0.01
    )


def test_parameters_are_those_that_the_published_widths_make():
  # D = 1024, 4 + 4 layers, two-matrix feed-forwards of 2048, 8 heads of 128:
  # the encoder's layer has four D x D matrices and two norms, the decoder's
  # eight and three.
  d, mlp, hidden, layers = 1024, 2048, 512, 4
  norms = (2 + 3) * layers * d + 2 * d  # and one at the end of each stack
  stacks = layers * (4 * d * d + 2 * d * mlp) + layers * (8 * d * d)
  stacks += layers * 2 * d * mlp + norms
  # Events: the item's D, author 512, tag, play time, duration, age and
  # labels 128 each; three pathways and the user's (64 each: id, gender, age).
  event = d + 512 + 5 * 128
  perceptrons = 3 * (event * hidden + hidden * d) + 3 * 64 * hidden + hidden * d
  # Two tables of 64 buckets and the unknown, the ages, nine labels with masks.
  numbers = 3 * 65 * 128 + 2 * 9 * 128
  # Two layers that read the clusters into 128 queries.
  queries = 2 * (4 * d * d + 2 * d * hidden + 2 * d) + 128 * d
  codes = 3 * 8192 * d
  positions = (1 + 20 + 256 + 128) * d
  # PAD, BOS, SEP; the decoder's 32 relative positions of 8 heads.
  rest = 3 * d + 32 * 8
  found = paper_sizes.count(paper_sizes.experiment('onerec_tr_paper:0.121b'))
  assert found.dense == (
    stacks + perceptrons + numbers + queries + codes + positions + rest
  )
  # The mixture of experts in place of the decoder's feed-forwards.
  moe = paper_sizes.count(paper_sizes.experiment('onerec_tr_paper:0.935b'))
  assert moe.experts == layers * 24 * 3 * d * 2816
  assert moe.active_experts == moe.experts * 2 // 24
  router = layers * 24 * d
  assert moe.dense == found.dense - layers * 2 * d * mlp + router
  # Users, authors and tags; two features of users, of 32 buckets or, the age,
  # 32 texts and one for the rare ones, and a row for the unknown each.
  assert found.id_tables == (
    2**18 * 64 + (33 + 34) * 64 + 2**18 * 512 + 2**14 * 128
  )


@pytest.mark.parametrize('name', _PUBLISHED)
def test_widths_fill_the_matrix_units(name):
  model = paper_sizes.experiment(name).model
  assert model.num_heads * model.head_dim == model.embed_dim
  if name != 'onerec_tr_paper:0.015b':  # its four heads are published
    assert model.head_dim == 128
  widths = [model.embed_dim, model.mlp_dim, model.moe.expert_dim]
  assert [w % 128 for w in widths] == [0, 0, 0]
  if _PUBLISHED[name].total >= 0.9e9:
    assert model.embed_dim % 256 == 0


# arXiv:2506.13695, table 1.
@pytest.mark.parametrize(
  ('size', 'layers', 'embed_dim', 'mlp_dim', 'heads', 'experts'),
  [
    ('0.015b', 4, 128, 256, 4, None),
    ('0.121b', 8, 1024, 2048, 8, None),
    ('0.935b', 8, 1024, 2048, 8, (24, 2, 'decoder')),
    ('2.633b', 24, 1024, 2048, 8, (24, 4, 'both')),
  ],
)
def test_the_reports_models_are_those_of_its_table(
  size, layers, embed_dim, mlp_dim, heads, experts
):
  model = paper_sizes.experiment(f'onerec_tr_paper:{size}').model
  assert model.encoder_layers == model.decoder_layers == layers // 2
  assert (model.embed_dim, model.mlp_dim) == (embed_dim, mlp_dim)
  assert model.num_heads == heads
  moe = model.moe
  found = (moe.num_experts, moe.top_k, moe.location) if moe.enabled else None
  assert found == experts


@pytest.mark.parametrize('name', _TR)
def test_the_reports_recipes_read_and_reinforce_as_published(name):
  made = paper_sizes.experiment(name)
  p = made.model.pathways
  assert (p.short_length, p.positive_length, p.lifelong_length) == (
    20, 256, 2000,
  )  # fmt: skip
  assert pathways.num_tokens(p) == 405
  assert made.tokenizer.codes_per_level == 8192
  assert made.tokenizer.quantizer == 'kmeans'
  assert made.stages[-4:] == ('p_score', 'reinforce', 'evaluate', 'report')
  assert made.reinforcement.group_size == 512
  assert made.reinforcement.early_clip == 0.1
  assert made.reinforcement.user_share == 0.01
  assert made.reinforcement.sync_every_steps == 1000
  assert made.reinforce.optimizer.peak_learning_rate == 8e-5
  assert made.evaluate.decoding.num_beams == 512


@pytest.mark.parametrize('name', _PUBLISHED)
def test_batches_divide_by_any_slice_of_up_to_256_devices(name):
  made = paper_sizes.experiment(name)
  sizes = [made.pretrain.batch_size, made.evaluate.batch_size]
  if 'align' in made.stages:
    sizes += [made.align.batch_size, made.preference.rollout_batch_size]
  else:
    sizes += [made.reinforce.batch_size, made.reinforcement.rollout_batch_size]
  assert [size % 256 for size in sizes] == [0, 0, 0, 0]
  assert made.mesh.preset == 'by_size'
  if made.model.moe.enabled:
    assert made.mesh.expert == 8


def test_the_table_has_a_line_for_every_size():
  lines = paper_sizes.table().splitlines()
  assert [line.split()[0] for line in lines[1:]] == list(_PUBLISHED)
  line = next(x for x in lines if x.startswith('onerec_tr_paper:0.935b'))
  assert '935.0' in line
  assert '+0.5%' in line
