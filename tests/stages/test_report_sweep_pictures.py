"""Pictures of a sweep: what their points are, and what they survive."""

import numpy as np
import pytest

from onerec_jax.stages import report_canvas
from onerec_jax.stages import report_sweep_figures as figures
from onerec_jax.stages import report_sweep_pictures

PNG = b'\x89PNG\r\n\x1a\n'

pytestmark = pytest.mark.usefixtures('coarse_pictures')


def test_a_round_is_judged_on_validation_users_where_it_was():
  rollouts = {'legal': 10, 'reward_sum': 5.0, 'true_reward_sum': 2.0}
  measured = {'valid/reward_mean': 0.7, 'valid/true_reward_mean': 0.6}
  per_round = report_sweep_pictures._per_round
  assert per_round({'rollouts': rollouts, 'final': {}}) == (0.5, 0.2)
  assert per_round({'rollouts': rollouts, 'final': measured}) == (0.7, 0.6)
  del measured['valid/true_reward_mean']
  assert per_round({'rollouts': rollouts, 'final': measured}) == (0.5, 0.2)
  assert per_round({}) == (None, None)


def test_labels_of_points_do_not_cover_each_other():
  rng = np.random.default_rng(0)
  points = [(x, y) for x, y in rng.uniform(size=(15, 2)).tolist()]
  made, (ax,) = report_canvas.panels(height=4.4)
  ax.plot(*zip(*points, strict=True), linestyle='none', marker='o')
  ax.margins(0.1)
  names = [f'OneRec + {n}' for n in range(15)]
  figures._place_labels(ax, names, points, bold=names[0])
  made.draw_without_rendering()
  boxes = [t.get_window_extent() for t in ax.texts]
  assert [t.get_text() for t in ax.texts] == names
  for i, box in enumerate(boxes):
    assert not any(box.overlaps(other) for other in boxes[:i])


def test_pictures_survive_single_and_flat_values():
  dot = figures.Dot(0.0, 0.0, 0.0, 0)
  unknown = figures.Dot(*[float('nan')] * 3, direction=0)
  made = [
    figures.dots(['a'], {'x': [dot]}, base='a'),
    figures.dots(['a', 'b'], {'x': [dot, unknown]}, base='a'),
    figures.predicted_against_true(['a'], [dot], [dot], base='a'),
    figures.rounds({'a': ([[0.1]], [[0.1]])}, label='y'),
    figures.override_lines(
      [1.0, 2.0], {'x': [figures.Dot(1, 1, 1, 0)] * 2}, label='r', published={}
    ),
  ]
  for png in made:
    assert png.startswith(PNG)
