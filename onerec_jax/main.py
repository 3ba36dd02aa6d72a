"""Command line: `python -m onerec_jax.main COMMAND --config=F --workdir=W`.

COMMAND is a stage (prepare, embed, tokenize, pretrain, reward, align, evaluate,
report), `run` for all stages the experiment lists, `sweep` for all rows of its
table, `compare` (with other runs, user by user), `recommend`, `export` (one
program for serving), `validate-data`, or `aot` (compile for a TPU slice without
one).
"""

from onerec_jax import huge_pages


def entry_point() -> None:
  """Console script `onerec`."""
  huge_pages.restart_with()
  # Imported late: a restart would import them twice.
  from absl import app
  from absl import flags

  from onerec_jax import command_line

  flags.adopt_module_key_flags(command_line)  # shown by --help
  app.run(command_line.main)


if __name__ == '__main__':
  entry_point()
