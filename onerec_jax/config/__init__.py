"""Every knob of an experiment, with its unit, default and reason.

The dataclasses of this package are the only place where a default lives.
Experiment files (`experiments/*.py`) start from `default_config()` and change
fields; `from_config_dict` makes one validated, frozen `Experiment` of them.
Imports no JAX, so that a recipe loads at once.
"""

from collections.abc import Mapping
from typing import Any

from onerec_jax import config_tree
from onerec_jax.config.alignment import (
  IndustrialRewardConfig as IndustrialRewardConfig,
)
from onerec_jax.config.alignment import PreferenceConfig
from onerec_jax.config.alignment import PScoreConfig
from onerec_jax.config.alignment import PScoreTower
from onerec_jax.config.alignment import ReinforceConfig
from onerec_jax.config.alignment import RewardModelConfig
from onerec_jax.config.alignment import RewardTarget
from onerec_jax.config.checks import validate
from onerec_jax.config.data import DataConfig
from onerec_jax.config.data import LifelongConfig
from onerec_jax.config.data import PipelineConfig
from onerec_jax.config.data import PositiveConfig
from onerec_jax.config.data import SessionFilterConfig
from onerec_jax.config.data import SessionsConfig
from onerec_jax.config.data import SplitConfig
from onerec_jax.config.data import SyntheticConfig
from onerec_jax.config.data import TablesConfig
from onerec_jax.config.experiment import BASE_STAGES
from onerec_jax.config.experiment import STAGES
from onerec_jax.config.experiment import TR_STAGES
from onerec_jax.config.experiment import V1_STAGES
from onerec_jax.config.experiment import EvaluateConfig
from onerec_jax.config.experiment import Experiment
from onerec_jax.config.experiment import (
  ItemEvaluationConfig as ItemEvaluationConfig,
)
from onerec_jax.config.experiment import MeshConfig
from onerec_jax.config.experiment import (
  SessionEvaluationConfig as SessionEvaluationConfig,
)
from onerec_jax.config.experiment import Stage
from onerec_jax.config.experiment import SweepConfig
from onerec_jax.config.experiment import SweepRow
from onerec_jax.config.items import EmbedConfig
from onerec_jax.config.items import EmbedPart
from onerec_jax.config.items import ItemAlignmentConfig
from onerec_jax.config.items import RQVAEConfig
from onerec_jax.config.items import TokenizerConfig
from onerec_jax.config.items import TokenizerLimits
from onerec_jax.config.model import EventFeature
from onerec_jax.config.model import ItemFeature
from onerec_jax.config.model import ModelConfig
from onerec_jax.config.model import MoEConfig
from onerec_jax.config.model import PathwaysConfig
from onerec_jax.config.model import SequentialConfig
from onerec_jax.config.model import UserFeature
from onerec_jax.config.training import DecodingConfig
from onerec_jax.config.training import OptimizerConfig
from onerec_jax.config.training import TrainConfig

to_dict = config_tree.to_dict
digest = config_tree.digest


def default_config() -> Any:  # a ConfigDict, whose attributes are dynamic
  """Returns every field at its default, ready to be changed by a recipe."""
  return config_tree.to_config_dict(Experiment())


def from_config_dict(config: Any) -> Experiment:
  """Returns the validated experiment that `config` describes.

  Args:
    config: ConfigDict or nested mapping with (some of) the fields of
      `Experiment`; absent fields take their defaults.

  Raises:
    ValueError: a key is unknown (the nearest known one is named), a value has
      the wrong type, or settings contradict each other.
  """
  if not isinstance(config, Mapping):
    config = config.to_dict()
  return validate(config_tree.build(Experiment, config, ''))
