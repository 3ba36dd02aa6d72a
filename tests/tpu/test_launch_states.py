"""Waiting, watching and deleting: what each state leads to."""

import json

import pytest

_COMMAND = ('python', 'train.py')


def _verbs(cloud) -> list[str]:
  """The verb of each call on queued resources and nodes, in order."""
  return [argv[4] for argv in cloud.calls() if argv[1] == 'compute']


# --- wait.sh ---


def test_wait_polls_until_the_slices_are_active(cloud):
  cloud.play('WAITING_FOR_RESOURCES', 'PROVISIONING', 'PROVISIONING', 'ACTIVE')
  done = cloud.run('wait.sh')
  assert done.returncode == 0, done.stderr
  assert _verbs(cloud) == ['describe'] * 4
  # One line for each change, not for each poll.
  assert done.stderr.count('run1: ') == 3


@pytest.mark.parametrize(
  ('state', 'hint'),
  [
    ('FAILED', 'accelerator-types list --zone=us-east5-b'),
    ('SUSPENDED', 'tpu/delete.sh && tpu/create.sh'),
    ('SUSPENDING', 'what was saved in the bucket is safe'),
    ('DELETING', 'Then: tpu/create.sh'),
    ('NOVEL_STATE', 'No such state is known'),
  ],
)
def test_wait_ends_with_3_and_a_hint_when_the_slices_will_not_come(
  cloud, state, hint
):
  cloud.play('WAITING_FOR_RESOURCES', state)
  done = cloud.run('wait.sh')
  assert done.returncode == 3
  assert f'error: run1 is {state}.' in done.stderr
  assert hint in done.stderr
  # What Google Cloud says about it was asked for and shown.
  assert '--format=yaml(state)' in cloud.calls()[-1]
  assert 'state: all about it' in done.stderr


def test_wait_ends_with_3_for_a_preempted_tpu_vm(cloud):
  cloud.play('CREATING', 'PREEMPTED')
  done = cloud.run('wait.sh', PROVISION='direct')
  assert done.returncode == 3
  assert all(argv[3] == 'tpu-vm' for argv in cloud.calls())


def test_wait_forgives_single_polls_without_an_answer(cloud):
  cloud.play(*('UNREACHABLE', 'PROVISIONING') * 3, 'ACTIVE')
  done = cloud.run('wait.sh')
  assert done.returncode == 0, done.stderr
  assert _verbs(cloud) == ['describe'] * 7


def test_wait_ends_with_3_when_there_is_nothing_to_wait_for(cloud):
  cloud.play('NOT_FOUND')
  done = cloud.run('wait.sh')
  assert done.returncode == 3
  assert 'to ask for it: tpu/create.sh' in done.stderr


# --- delete.sh ---


def test_delete_twice_is_no_error(cloud):
  first, second = cloud.run('delete.sh'), cloud.run('delete.sh')
  assert first.returncode == second.returncode == 0
  assert (cloud.root / 'resources').read_text() == ''
  assert 'run1 is not there' in second.stderr


def test_delete_finds_nodes_that_no_queued_resource_holds(cloud):
  # As when NAME was made with PROVISION=direct, which is now forgotten.
  (cloud.root / 'resources').write_text('tpu-vm/run1')
  assert cloud.run('delete.sh').returncode == 0
  assert (cloud.root / 'resources').read_text() == ''


def test_delete_reports_what_google_cloud_refuses(cloud):
  (cloud.root / 'bin' / 'gcloud').write_text(
    '#!/bin/sh\necho PERMISSION_DENIED >&2\nexit 1\n'
  )
  done = cloud.run('delete.sh')
  assert done.returncode == 1
  assert 'PERMISSION_DENIED' in done.stderr


# --- submit.sh --watch ---


def test_watch_asks_for_new_slices_after_a_preemption_until_the_job_ends(cloud):
  cloud.play('ACTIVE', 'SUSPENDED', 'WAITING_FOR_RESOURCES', 'ACTIVE')
  (cloud.root / 'ends').write_text('2 0 0 0 0')
  done = cloud.run('submit.sh', '--watch', *_COMMAND)
  assert done.returncode == 0, done.stderr
  assert _verbs(cloud) == [
    *('create', 'describe', 'describe'),
    *('delete', 'create'),  # after SUSPENDED; then the statuses are there
    'delete',
  ]
  # The name is needed again at once: only the last deletion is not waited for.
  deletions = [argv for argv in cloud.calls() if argv[4:5] == ['delete']]
  assert ['--async' in argv for argv in deletions] == [False, True]
  # Both requests point to the same job.
  assert len({argv[-2] for argv in cloud.calls() if 'create' in argv}) == 1
  assert (cloud.root / 'resources').read_text().split() == []


def test_watch_gives_up_when_the_slices_are_lost_too_often(cloud):
  cloud.play('SUSPENDED')
  done = cloud.run('submit.sh', '--watch', *_COMMAND, MAX_RESTARTS='2')
  assert done.returncode == 3
  assert _verbs(cloud) == ['create', 'describe', 'delete'] * 3
  assert 'given up' in done.stderr
  assert (cloud.root / 'resources').read_text().split() == []


def test_watch_ends_and_deletes_as_soon_as_one_worker_has_failed(cloud):
  (cloud.root / 'ends').write_text('1 0 2')
  done = cloud.run('submit.sh', '--watch', *_COMMAND)
  assert done.returncode == 2
  assert _verbs(cloud) == ['create', 'delete']


def test_watch_waits_for_all_workers(cloud):
  # Three of four have ended; then the slices go and the job must be continued.
  cloud.play('ACTIVE', 'SUSPENDED')
  (cloud.root / 'ends').write_text('1 0 0 0')
  done = cloud.run('submit.sh', '--watch', *_COMMAND, MAX_RESTARTS='0')
  assert done.returncode == 3
  assert _verbs(cloud) == ['create', 'describe', 'describe', 'delete']


# --- what is sent ---


def test_jobset_gets_the_rendered_yaml(cloud):
  args = ('gke/jobset.sh', *_COMMAND)
  cloud.run(*args, IMAGE='image:v1')
  rendered = cloud.run(args[0], '--render', *_COMMAND, IMAGE='image:v1').stdout
  (entry,) = cloud.entries()
  assert entry['stdin'] == rendered
  assert json.dumps(list(_COMMAND)) in rendered
