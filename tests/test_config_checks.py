"""Settings of rewards and pathways that cannot work say what to set."""

import pytest

from onerec_jax import config
from onerec_jax import config_tree

_TR = {
  'stages': config.TR_STAGES,
  'model': {
    'encoder': 'pathways',
    'pathways': {
      'item_features': ({'name': 'aid', 'prefix': 'author:'},),
      'event_features': ({'column': 'watch_time'},),
    },
  },
  'p_score_model': {'towers': ({'name': 'ltr', 'column': 'is_like'},)},
}
_V1 = {
  'stages': config.V1_STAGES,
  'reward_model': {'targets': ({'name': 'ltr', 'column': 'is_like'},)},
}


@pytest.mark.parametrize('values', [_TR, _V1], ids=['tr', 'v1'])
def test_the_settings_that_are_broken_below_are_good(values):
  config.from_config_dict(values)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model': {'pathways': {'lifelong_length': 9}}}, "the stage 'lifelong'"),
    ({'architecture': 'sasrec'}, "architecture='onerec'"),
    (
      {'model': {'pathways': {'short_length': 0, 'positive_length': 0}}},
      'no events to read',
    ),
    ({'model': {'pathways': {'age_dim': -1}}}, 'age_dim=-1'),
    ({'model': {'pathways': {'hidden_dim': 0}}}, 'hidden_dim=0'),
    ({'pretrain': {'profile_steps': (5, 4)}}, r'profile_steps=\(5, 4\)'),
    ({'pretrain': {'profile_steps': (0, 4)}}, 'counted from 1'),
    ({'pretrain': {'profile_steps': (4,)}}, 'must be empty or'),
    ({'evaluate': {'parameter_dtype': 'float16'}}, "'bfloat16'"),
    ({'model': {'history_recency': True}}, 'history_recency=True'),
    ({'model': {'user_buckets': 5}}, 'user_buckets=5'),
    ({'model': {'id_buckets': -1}}, 'id_buckets=-1 must be at least 0'),
    (
      {'model': {'pathways': {'event_features': ({'column': ''},)}}},
      r'event_features\[0\]\.column is empty',
    ),
    (
      {
        'model': {
          'pathways': {'event_features': ({'column': 'x', 'buckets': 70_000},)}
        }
      },
      r'event_features\[0\]\.buckets=70000',
    ),
    (
      {'evaluate': {'decoding': {'continue_items': 1}}},
      'evaluate.decoding.continue_items=1 must be 0',
    ),
    ({'lifelong': {'max_cluster_size': 0}}, 'lifelong.max_cluster_size=0'),
    ({'p_score_model': {'towers': ()}}, 'p_score_model.towers is empty'),
    (
      {'p_score_model': {'towers': ({'name': 'p_score', 'column': 'x'},)}},
      "from 'p_score'",
    ),
    (
      {'p_score_model': {'towers': ({'name': 'x', 'weight': 0.0},)}},
      r'towers\[0\]\.weight=0.0 must be positive',
    ),
    ({'p_score_model': {'num_heads': 5}}, 'not divisible by'),
    (
      {'p_score_model': {'search_items': 9, 'history_length': 8}},
      'search_items=9 exceeds',
    ),
    ({'p_score_model': {'held_out_share': 1.0}}, 'held_out_share=1.0'),
    ({'p_score_model': {'tower_dims': ()}}, 'must not be empty'),
    (
      {'p_score_model': {'linear_strengths': (0.1, 0.01)}},
      'must be positive and ascending',
    ),
    (
      {'p_score_model': {'linear_strengths': (0.0, 0.1)}},
      'must be positive and ascending',
    ),
    (
      {
        'p_score_model': {'search': 'hard'},
        'model': {'pathways': {'item_features': ()}},
      },
      "search='hard'",
    ),
    (
      {'reinforcement': {'reward': 'wtr'}},
      r"must be one of \['p_score', 'ltr'\]",
    ),
    ({'reinforcement': {'group_size': 1}}, 'group_size=1 must be at least 2'),
    ({'reinforcement': {'user_share': 0.0}}, 'user_share=0.0'),
    ({'reinforcement': {'clip': 1.0}}, 'clip=1.0'),
    ({'reinforcement': {'early_clip': 0.0}}, 'early_clip=0.0'),
    ({'reinforcement': {'temperature': 0.0}}, 'temperature=0.0'),
    ({'reinforcement': {'sample_top_p': 0.0}}, 'sample_top_p=0.0'),
    ({'reinforcement': {'sync_every_steps': 0}}, 'sync_every_steps=0'),
    (
      {'reinforcement': {'group_size': 4, 'format_samples': 5}},
      'format_samples=5',
    ),
    ({'reinforcement': {'rsft_drop_share': 1.0}}, 'rsft_drop_share=1.0'),
    (
      {'reinforcement': {'industrial': {'categories': ('x',), 'factor': 1.0}}},
      'industrial.factor=1.0',
    ),
    ({'evaluate': {'p_score': {'pass_at': (200,)}}}, r'pass_at=\(200,\)'),
    (
      {'stages': ('prepare', 'embed', 'tokenize', 'pretrain', 'reinforce')},
      "needs 'p_score'",
    ),
    (
      {
        'embed': {
          'alignment': {
            'enabled': True,
            'user_to_item': False,
            'item_to_item_neighbours': 0,
          }
        }
      },
      'no pairs to align to',
    ),
    (
      {'embed': {'alignment': {'enabled': True, 'num_heads': 7}}},
      'embed.alignment.num_heads=7',
    ),
    (
      {'embed': {'alignment': {'enabled': True, 'batch_size': 1}}},
      'embed.alignment.batch_size=1',
    ),
    (
      {'embed': {'alignment': {'enabled': True, 'temperature': 0.0}}},
      'temperature=0.0',
    ),
  ],
)
def test_a_bad_setting_of_the_technical_report_says_what_to_set(
  changes, message
):
  with pytest.raises(ValueError, match=message):
    config.from_config_dict(config_tree.merge(_TR, changes))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'reward_model': {'targets': ()}}, 'reward_model.targets is empty'),
    ({'architecture': 'fdsa'}, "needs architecture='onerec'"),
    ({'preference': {'pairs': 'logged'}}, 'preference.rounds=1'),
    ({'preference': {'num_rejected': 2}}, 'num_rejected=2'),
    ({'preference': {'beta': 0.0}}, 'preference.beta=0.0'),
    ({'preference': {'label_flip': 0.5}}, 'preference.label_flip=0.5'),
    ({'preference': {'margin': -1.0}}, 'preference.margin=-1.0'),
    ({'preference': {'nll_weight': -0.5}}, 'preference.nll_weight=-0.5'),
    ({'preference': {'weight': float('nan')}}, 'preference.weight=nan'),
    (
      {'model': {'moe': {'location': 'both'}}},
      "needs model.encoder='pathways'",
    ),
    (
      {'reward_model': {'items_per_session': 3}},
      'reward_model.items_per_session=3',
    ),
    (
      {'pretrain': {'item_loss_weight': -1.0}},
      'pretrain.item_loss_weight=-1.0 must be at least 0',
    ),
    (
      {'align': {'item_loss_weight': 1.0}},
      'align.item_loss_weight=1.0 is read by pretrain',
    ),
    (
      {'evaluate': {'decoding': {'item_weight': -1.0}}},
      'evaluate.decoding.item_weight=-1.0 must be at least 0',
    ),
    (
      {'evaluate': {'decoding': {'item_weight': 1.0, 'num_items': 1}}},
      'nothing trains',
    ),
    (
      {
        'pretrain': {'item_loss_weight': 1.0},
        'preference': {'rollout': {'item_weight': 1.0}},
      },
      'preference.rollout.item_weight=1.0 ranks single items',
    ),
    (
      {'evaluate': {'decoding': {'transition_weight': 1.0}}},
      'evaluate.decoding.transition_weight=1.0 must be at least 0 and below 1',
    ),
    (
      {'preference': {'rollout': {'transition_weight': 0.5}}},
      'preference.rollout.transition_weight=0.5 ranks single items',
    ),
  ],
)
def test_a_bad_setting_of_v1_says_what_to_set(changes, message):
  with pytest.raises(ValueError, match=message):
    config.from_config_dict(config_tree.merge(_V1, changes))
