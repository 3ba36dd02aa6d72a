"""Frozen dataclasses to and from nested dictionaries and ConfigDicts.

Generic: knows no setting.  Unknown keys and wrong types are errors that name
the path and the nearest known key.  Imports no JAX, and ml_collections only
where a ConfigDict is made: models train without it.
"""

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any
from typing import Literal


def to_dict(value: Any) -> Any:
  """Returns a dataclass as plain dictionaries, lists and scalars (JSON)."""
  if dataclasses.is_dataclass(value):
    return {
      f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)
    }
  if isinstance(value, Mapping):
    return {k: to_dict(v) for k, v in value.items()}
  if isinstance(value, (tuple, list)):
    return [to_dict(v) for v in value]
  return value


def digest(value: Any) -> str:
  """Returns a short hash of a (nested) config dataclass, stable over runs."""
  text = json.dumps(to_dict(value), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
  """Returns nested `values` with the entries of nested `changes` put in."""
  result = dict(values)
  for key, value in changes.items():
    if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
      result[key] = merge(result[key], value)
    else:
      result[key] = value
  return result


def to_config_dict(value: Any) -> Any:
  """Returns a dataclass as a locked ConfigDict, ready to be changed."""
  import ml_collections
  from ml_collections import config_dict

  result = ml_collections.ConfigDict()
  hints = typing.get_type_hints(type(value))
  for field in dataclasses.fields(value):
    item = getattr(value, field.name)
    if dataclasses.is_dataclass(item):
      result[field.name] = to_config_dict(item)
    elif isinstance(item, tuple) and item and dataclasses.is_dataclass(item[0]):
      result[field.name] = tuple(to_config_dict(v) for v in item)
    elif type(None) in typing.get_args(hints[field.name]):
      kind = next(
        t for t in typing.get_args(hints[field.name]) if t is not type(None)
      )
      placeholder = config_dict.placeholder(kind)
      placeholder.set(item)
      result[field.name] = placeholder
    else:
      result[field.name] = item
  return result.lock()


def build(cls: Any, values: Mapping[str, Any], path: str) -> Any:
  """Returns dataclass `cls` made of `values`; `path` prefixes errors.

  Raises:
    ValueError: unknown key or wrong type; names the path.
  """
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in hints:
      near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)
      raise ValueError(
        f"Unknown config key '{path}{key}'. Did you mean"
        f" '{path}{near[0]}'? Known here: {', '.join(sorted(hints))}."
      )
  return cls(
    **{
      key: _convert(hints[key], value, f'{path}{key}')
      for key, value in values.items()
    }
  )


def _convert(hint: Any, value: Any, path: str) -> Any:
  """Returns `value` as type `hint`, or raises naming `path`."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hasattr(value, 'to_dict'):  # a ConfigDict
    value = value.to_dict()
  if origin in (types.UnionType, typing.Union):
    if value is None:
      return None
    return _convert(next(a for a in args if a is not type(None)), value, path)
  if origin is Literal:
    if value not in args:
      near = difflib.get_close_matches(str(value), map(str, args), 1, 0.0)
      raise ValueError(
        f'{path}={value!r} is not one of {args}.'
        + (f' Did you mean {near[0]!r}?' if near else '')
      )
    return value
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise ValueError(f'{path}={value!r} must be a tuple.')
    return tuple(
      _convert(args[0], v, f'{path}[{i}]') for i, v in enumerate(value)
    )
  if origin is dict:
    if not isinstance(value, Mapping):
      raise ValueError(f'{path}={value!r} must be a group of settings.')
    return dict(value)
  if dataclasses.is_dataclass(hint):
    if dataclasses.is_dataclass(value):
      value = to_dict(value)
    if not isinstance(value, Mapping):
      raise ValueError(f'{path}={value!r} must be a group of settings.')
    return build(hint, value, f'{path}.')
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (
    isinstance(value, bool) and hint is not bool
  ):
    raise ValueError(
      f'{path}={value!r} has type {type(value).__name__}, expected'
      f' {hint.__name__}.'
    )
  return value
