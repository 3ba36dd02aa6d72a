"""The JobSet of GKE: what Kubernetes would refuse, and what we mean."""

import importlib.util
import json
import os
import pathlib

import pytest
import yaml  # flax and orbax need PyYAML, so it is always there

_ROOT = pathlib.Path(__file__).parent.parent.parent
_GOLDEN = pathlib.Path(__file__).parent / 'golden'
_COMMAND = ('python', '-m', 'onerec_jax.main', 'run', '--x=it\'s $HOME "q"')
_CASES = {
  'v6e-16-spot': {'ACCELERATOR': 'v6e-16'},
  'v5p-128-two-slices': {
    'ACCELERATOR': 'v5p-128',
    'SLICES': '2',
    'CAPACITY': 'on-demand',
  },
  'tpu7x-16-reserved': {
    'ACCELERATOR': 'tpu7x-16',
    'CAPACITY': 'reserved',
    'RESERVATION': 'mine',
  },
}


def _rendered(cloud, **settings: str) -> str:
  done = cloud.run(
    *('gke/jobset.sh', '--render', *_COMMAND), IMAGE='registry/i:v1', **settings
  )
  assert done.returncode == 0, done.stderr
  assert cloud.entries() == []
  return done.stdout


@pytest.mark.parametrize('name', _CASES)
def test_rendered_yaml_equals_its_golden_file(cloud, name):
  text = _rendered(cloud, **_CASES[name])
  golden = _GOLDEN / f'{name}.yaml'
  if os.environ.get('UPDATE_GOLDEN'):
    golden.write_text(text)
  assert golden.exists(), f'run UPDATE_GOLDEN=1 pytest {__file__}'
  assert text == golden.read_text(), (
    f'{name} renders differently; if that is meant, run UPDATE_GOLDEN=1 pytest'
    f' {__file__}'
  )


@pytest.mark.parametrize(
  ('name', 'slices', 'hosts', 'chips', 'labels'),
  [
    # 16 chips, 4 to a host.
    (
      *('v6e-16-spot', 1, 4, 4),
      {
        'gke-tpu-accelerator': 'tpu-v6e-slice',
        'gke-tpu-topology': '4x4',
        'gke-spot': 'true',
      },
    ),
    # 128 cores = 64 chips a slice.
    (
      *('v5p-128-two-slices', 2, 16, 4),
      {
        'gke-tpu-accelerator': 'tpu-v5p-slice',
        'gke-tpu-topology': '4x4x4',
      },
    ),
    # 16 cores = 8 chips.
    (
      *('tpu7x-16-reserved', 1, 2, 4),
      {
        'gke-tpu-accelerator': 'tpu7x',
        'gke-tpu-topology': '2x2x2',
        'reservation-name': 'mine',
      },
    ),
  ],
)
def test_jobset_asks_for_the_slices_of_the_accelerator(
  cloud, name, slices, hosts, chips, labels
):
  job = yaml.safe_load(_rendered(cloud, **_CASES[name]))
  (replicated,) = job['spec']['replicatedJobs']
  batch = replicated['template']['spec']
  pod = batch['template']['spec']
  assert replicated['replicas'] == slices
  assert batch['parallelism'] == batch['completions'] == hosts
  assert pod['containers'][0]['resources'] == {
    'limits': {'google.com/tpu': chips}
  }
  assert pod['nodeSelector'] == {
    f'cloud.google.com/{key}': value for key, value in labels.items()
  }


# Fields of jobset.x-k8s.io/v1alpha2, batch/v1 and v1 that we use.
_KNOWN = {
  'JobSet': {'apiVersion', 'kind', 'metadata', 'spec'},
  'JobSetSpec': {'failurePolicy', 'replicatedJobs'},
  'ReplicatedJob': {'name', 'replicas', 'template'},
  'JobSpec': {
    *('parallelism', 'completions', 'completionMode', 'backoffLimit'),
    *('podFailurePolicy', 'template'),
  },
  'PodSpec': {
    *('restartPolicy', 'terminationGracePeriodSeconds', 'hostNetwork'),
    *('dnsPolicy', 'nodeSelector', 'tolerations', 'containers', 'volumes'),
  },
  'Container': {
    *('name', 'image', 'command', 'env', 'securityContext', 'resources'),
    'volumeMounts',
  },
}


def test_yaml_has_the_structure_of_a_jobset(cloud):
  job = yaml.safe_load(_rendered(cloud))
  (replicated,) = job['spec']['replicatedJobs']
  batch = replicated['template']['spec']
  pod = batch['template']['spec']
  (container,) = pod['containers']
  for kind, value in {
    'JobSet': job,
    'JobSetSpec': job['spec'],
    'ReplicatedJob': replicated,
    'JobSpec': batch,
    'PodSpec': pod,
    'Container': container,
  }.items():
    assert set(value) == _KNOWN[kind], kind
  # podFailurePolicy is refused without it.
  assert pod['restartPolicy'] == 'Never'
  mounted = {mount['name'] for mount in container['volumeMounts']}
  assert mounted == {volume['name'] for volume in pod['volumes']}
  assert all(
    isinstance(variable['value'], str) for variable in container['env']
  )


def test_job_is_repeated_after_42_and_signals_and_for_no_other_reason(cloud):
  job = yaml.safe_load(_rendered(cloud, MAX_RESTARTS='7'))
  batch = job['spec']['replicatedJobs'][0]['template']['spec']
  assert job['spec']['failurePolicy']['maxRestarts'] == 7
  (rule,) = batch['podFailurePolicy']['rules']
  (container,) = batch['template']['spec']['containers']
  statuses = rule['onExitCodes']['values']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes']['operator'] == 'NotIn'
  assert rule['onExitCodes']['containerName'] == container['name']
  assert statuses == [42, *range(128, 256)]
  # Kubernetes wants them in order, without repetition, 255 at most.
  assert statuses == sorted(set(statuses))
  assert len(statuses) <= 255
  # One pod that fails ends its job, and so all slices begin again together.
  assert batch['backoffLimit'] == 0


def test_command_and_flags_arrive_word_by_word(cloud):
  job = yaml.safe_load(_rendered(cloud))
  pod = job['spec']['replicatedJobs'][0]['template']['spec']['template']
  (container,) = pod['spec']['containers']
  assert container['command'] == list(_COMMAND)
  assert container['env'] == [
    {'name': 'LIBTPU_INIT_ARGS', 'value': '--a=1 --b=2'}
  ]


def test_kubernetes_replaces_no_variable_in_the_command():
  # Its rule: $(NAME) is replaced, $$(NAME) becomes $(NAME), $NAME stays.
  assert _renderer().literal('$HOME $(HOME)') == '$HOME $$(HOME)'


def _renderer():
  path = _ROOT / 'tpu' / 'gke' / 'render.py'
  spec = importlib.util.spec_from_file_location('render', path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('values', [{}, {'name': 'a', 'image': 'b'}])
def test_placeholder_and_value_without_each_other_are_refused(values):
  with pytest.raises(ValueError, match='Give both the same keys'):
    _renderer().render('name: $name', values)


def test_value_cannot_change_the_structure():
  value = 'a\nkind: Secret # ${name} "'
  text = _renderer().render('name: $name', {'name': value})
  assert yaml.safe_load(text) == {'name': value}
  assert json.loads(text.removeprefix('name: ')) == value
