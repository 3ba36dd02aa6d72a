"""Template: train OneRec v1 on your own tables.

  python -m onerec_jax.main validate-data --config=experiments/my_data.py
  python -m onerec_jax.main run --config=experiments/my_data.py \
    --workdir=runs/my_data

Needed: one row per interaction with a user, an item and a time.  Item and user
tables are optional.  .parquet and .csv both work.
"""

import ml_collections

from onerec_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  config = config_lib.default_config()
  config.name = 'my_data'

  # --- Where the tables are, and what their columns are called ---
  tables = config.data.tables
  config.data.source = 'tables'
  tables.interactions = 'my_data/interactions.csv'
  tables.user_column = 'user_id'
  tables.item_column = 'item_id'
  tables.timestamp_column = 'timestamp'
  tables.timestamp_unit = 's'
  # tables.session_column = 'session_id'      # if your log has one
  # tables.feedback_columns = ('watch_ms', 'like')
  # tables.items = 'my_data/items.csv'
  # tables.item_text_columns = ('title', 'description')
  # tables.item_category_columns = ('category',)

  # --- Which interactions count, and what a target session is ---
  # config.data.positive.any_of = ('like',)   # empty: all are positive
  config.data.min_user_positives = 5
  config.data.min_item_positives = 5
  config.data.history_length = 50
  config.data.sessions.items_per_session = 5
  # config.data.split.kind = 'by_time'
  # config.data.split.validation_start = '2025-06-01'
  # config.data.split.test_start = '2025-06-08'

  # --- Item vectors: co-occurrence alone needs no item table ---
  config.embed.parts = ({'kind': 'cooccurrence', 'dim': 96},)
  # config.embed.parts = (
  #   {'kind': 'text', 'dim': 96},
  #   {'kind': 'cooccurrence', 'dim': 96},
  # )

  # --- A size that trains on a laptop; scale up from here ---
  config.tokenizer.codes_per_level = 256
  config.model.moe.num_experts = 8
  config.model.moe.expert_dim = 256
  config.pretrain.optimizer.peak_learning_rate = 1e-3
  config.pretrain.optimizer.schedule = 'cosine'
  config.pretrain.num_steps = 5000
  return config
