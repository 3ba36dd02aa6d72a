"""Prints what the launch scripts need to know of one slice, as shell lines.

Usage: accelerator.py v6e-16.  Reads onerec_jax/accelerators.json; standard
library only, because it runs before anything is installed.
"""

import difflib
import json
import pathlib
import shlex
import sys

_TABLE = (
  pathlib.Path(__file__).parent.parent / 'onerec_jax' / 'accelerators.json'
)


def main(name: str) -> None:
  """Prints NAME=value lines of the slice `name`.

  Raises:
    SystemExit: the name is unknown; the message lists the nearest ones.
  """
  table = json.loads(_TABLE.read_text())
  slices = table['slices']
  if name not in slices:
    near = difflib.get_close_matches(name, slices, n=4, cutoff=0.5)
    sys.exit(
      f'error: unknown ACCELERATOR {name!r}. Did you mean'
      f' {", ".join(near) or ", ".join(slices)}? All: onerec_jax/'
      'accelerators.json'
    )
  found = slices[name]
  generation = table['generations'][found['generation']]
  facts = {
    'GENERATION': found['generation'],
    'DEVICES': found['chips'] * generation['devices_per_chip'],
    'HOSTS': found['hosts'],
    'CHIPS_PER_HOST': found['chips'] // found['hosts'],
    'TOPOLOGY': found['topology'],
    'GCLOUD_TYPE': found['gcloud_type'],
    'GKE_ACCELERATOR': generation['gke_accelerator'],
    'DEFAULT_RUNTIME_VERSION': generation['runtime_version'],
  }
  for key, value in facts.items():
    print(f'{key}={shlex.quote("" if value is None else str(value))}')


if __name__ == '__main__':
  main(sys.argv[1])
