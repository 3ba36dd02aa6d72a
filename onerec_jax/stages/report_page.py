"""From what a page shows to its HTML: templates and the source's commit.

Knows neither stages nor figures.
"""

import importlib.resources
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

import jinja2


def render(template: str, page: Mapping[str, Any]) -> str:
  """Returns the HTML of one page; everything in `page` is escaped.

  Args:
    template: name of a file beside this one.
    page: what the template names.
  """
  environment = jinja2.Environment(
    autoescape=True,
    loader=jinja2.FunctionLoader(_read),
    undefined=jinja2.ChainableUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(template).render(page)


def _read(name: str) -> str:
  source = importlib.resources.files('onerec_jax.stages') / name
  return source.read_text(encoding='utf-8')


def commit() -> str:
  """Returns the commit of this source tree, '+' if it was changed since."""

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', '-C', str(pathlib.Path(__file__).parent), *arguments],
      capture_output=True,
      text=True,
      check=True,
      timeout=10,
    ).stdout.strip()

  try:
    changed = '+' if git('status', '--porcelain') else ''
    return git('rev-parse', '--short=10', 'HEAD') + changed
  except (OSError, subprocess.SubprocessError):
    return 'unknown (not a git checkout)'
