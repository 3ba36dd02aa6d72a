"""Checks of how lists are made; see checks.py, which calls these."""

from collections.abc import Iterator

from onerec_jax.config.experiment import Experiment
from onerec_jax.config.training import DecodingConfig


def problems(experiment: Experiment) -> Iterator[str]:
  """Yields one sentence per setting of decoding that cannot work."""
  e = experiment
  yield from _length_problems(e)
  yield from _item_loss_problems(e)
  for path, decoding in (
    ('evaluate.decoding', e.evaluate.decoding),
    ('preference.rollout', e.preference.rollout),
  ):
    yield from _item_weight_problems(path, decoding, e)
    yield from _transition_problems(path, decoding)


def _length_problems(e: Experiment) -> Iterator[str]:
  decoding = e.evaluate.decoding
  if decoding.continue_items < 0 or (
    decoding.continue_items + decoding.num_items
    > e.data.sessions.items_per_session
  ):
    yield (
      f'evaluate.decoding.continue_items={decoding.continue_items} plus'
      f' evaluate.decoding.num_items={decoding.num_items} must not exceed'
      ' data.sessions.items_per_session='
      f'{e.data.sessions.items_per_session}, the length that is trained.'
    )


def _item_loss_problems(e: Experiment) -> Iterator[str]:
  """Problems of scores of whole items beside those of their codes."""
  stages = {
    name: getattr(e, name)
    for name in ('pretrain', 'reward', 'align', 'p_score', 'reinforce')
  }
  for name, train in stages.items():
    weight = train.item_loss_weight
    if weight < 0:
      yield f'{name}.item_loss_weight={weight} must be at least 0; 0 is none.'
    elif weight and (name != 'pretrain' or e.architecture != 'onerec'):
      yield (
        f'{name}.item_loss_weight={weight} is read by pretrain of'
        " architecture='onerec' only: set it to 0."
      )


def _item_weight_problems(
  path: str, decoding: DecodingConfig, e: Experiment
) -> Iterator[str]:
  """Problems of such scores in lists."""
  weight = decoding.item_weight
  if weight < 0:
    yield f'{path}.item_weight={weight} must be at least 0; 0 is none.'
  if weight <= 0:
    return
  if path != 'evaluate.decoding' or decoding.num_items > 1:
    yield (
      f'{path}.item_weight={weight} ranks single items that are evaluated,'
      ' not sessions: set it to 0, or evaluate.decoding.num_items=1.'
    )
  if not e.pretrain.item_loss_weight:
    yield (
      f'{path}.item_weight={weight} reads scores that nothing trains: set'
      ' pretrain.item_loss_weight above 0, or it to 0.'
    )


def _transition_problems(path: str, decoding: DecodingConfig) -> Iterator[str]:
  """Problems of counts beside a model's probabilities."""
  weight = decoding.transition_weight
  if not 0 <= weight < 1:
    yield (
      f'{path}.transition_weight={weight} must be at least 0 and below 1; 0 is'
      ' the model alone.'
    )
  elif weight and (path != 'evaluate.decoding' or decoding.num_items > 1):
    yield (
      f'{path}.transition_weight={weight} ranks single items that are'
      ' evaluated, not sessions: set it to 0, or evaluate.decoding.num_items=1.'
    )
