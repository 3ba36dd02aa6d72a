"""How far the process may run ahead of its device."""

from onerec_jax.train import backlog
from onerec_jax.train import loop


class Mark:
  """What a step computes, and the order in which it is waited for."""

  def __init__(self, number, waited):
    self.number, self.waited = number, waited

  def block_until_ready(self):
    self.waited.append(self.number)


def test_the_process_waits_for_the_step_before_the_two_latest():
  """Else SIGTERM, seen between steps, would wait for a whole log interval."""
  steps, waited = backlog.Backlog(), []
  for number in range(5):
    steps.add(Mark(number, waited))
    assert waited == list(range(number - 1))


def test_every_step_joins_the_backlog(toy, tmp_path, monkeypatch):
  marks = []

  class Spy(backlog.Backlog):
    def add(self, mark):
      marks.append(mark)
      super().add(mark)

  monkeypatch.setattr(loop.backlog, 'Backlog', Spy)
  result = toy.run(tmp_path, train=toy.config_with(num_steps=7))
  # Not donated to the next step: readable when all is done.
  assert [int(mark) for mark in marks] == list(range(1, 8))
  assert int(result.state.step) == 7
