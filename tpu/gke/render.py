"""Prints the Kubernetes JobSet of one job, filled into jobset.yaml.tmpl.

Called by jobset.sh, which knows the accelerators.  Standard library only.
Refuses a placeholder without a value and a value without a placeholder.
"""

import argparse
import json
import pathlib
import string
from typing import Any

_TEMPLATE = pathlib.Path(__file__).with_name('jobset.yaml.tmpl')
# As tpu/supervise.sh: preempted and saved, or killed.
_RESTART_STATUSES = [42, *range(128, 256)]


def render(template: str, values: dict[str, Any]) -> str:
  """Returns `template` with each $key replaced by its value as JSON.

  Raises:
    ValueError: template and values do not have the same keys.
  """
  wanted = set(string.Template(template).get_identifiers())
  if wanted != set(values):
    raise ValueError(
      f'The template has the placeholders {sorted(wanted)}, the values are'
      f' {sorted(values)}. Give both the same keys.'
    )
  return string.Template(template).substitute(
    {key: json.dumps(value) for key, value in values.items()}
  )


def literal(word: str) -> str:
  """Returns `word` so that Kubernetes does not replace $(NAME) in it."""
  return word.replace('$(', '$$(')


def node_selector(
  *, accelerator: str, topology: str, capacity: str, reservation: str
) -> dict[str, str]:
  """Returns the labels of the nodes that the job may run on.

  Args:
    accelerator: GKE's name, e.g. tpu-v6e-slice.
    topology: of one slice, e.g. 4x4.
    capacity: spot, reserved or on-demand.
    reservation: its name, read for reserved capacity only.
  """
  labels = {
    'cloud.google.com/gke-tpu-accelerator': accelerator,
    'cloud.google.com/gke-tpu-topology': topology,
  }
  if capacity == 'spot':
    labels['cloud.google.com/gke-spot'] = 'true'
  elif capacity == 'reserved':
    labels['cloud.google.com/reservation-name'] = reservation
  return labels


def main() -> None:
  """Reads the command line, prints the YAML."""
  parser = argparse.ArgumentParser(description=__doc__)
  for name in ('name', 'image', 'gke-accelerator', 'topology', 'capacity'):
    parser.add_argument(f'--{name}', required=True)
  for name in ('slices', 'hosts', 'chips-per-host', 'max-restarts'):
    parser.add_argument(f'--{name}', type=int, required=True)
  parser.add_argument('--reservation', default='')
  parser.add_argument('--env', action='append', default=[], help='KEY=value')
  parser.add_argument('command', nargs='+', help='after --')
  args = parser.parse_args()
  variables = dict(item.split('=', 1) for item in args.env)
  print(
    render(
      _TEMPLATE.read_text(),
      {
        'name': args.name,
        'image': args.image,
        'slices': args.slices,
        'hosts': args.hosts,
        'chips_per_host': args.chips_per_host,
        'max_restarts': args.max_restarts,
        'restart_statuses': _RESTART_STATUSES,
        'node_selector': node_selector(
          accelerator=args.gke_accelerator,
          topology=args.topology,
          capacity=args.capacity,
          reservation=args.reservation,
        ),
        'env': [{'name': k, 'value': literal(v)} for k, v in variables.items()],
        'command': [literal(word) for word in args.command],
      },
    ),
    end='',
  )


if __name__ == '__main__':
  main()
