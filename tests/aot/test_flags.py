import pytest

from onerec_jax.aot import flags


def _write(folder, text):
  (folder / 'v9.env').write_text(text)
  return flags.read('v9', folder=folder)


def test_flags_are_read_with_their_reasons_left_out(tmp_path):
  got = _write(
    tmp_path,
    '# for v9\n\n'
    'LIBTPU_INIT_ARGS+=" --xla_tpu_a=true"  # because\n'
    'LIBTPU_INIT_ARGS+=" --xla_b=98304"\n',
  )
  assert got == {'xla_tpu_a': 'true', 'xla_b': '98304'}


@pytest.mark.parametrize(
  'line', ['xla_tpu_a=true', 'LIBTPU_INIT_ARGS+=" --xla_tpu_a"', 'export A=1']
)
def test_a_line_that_is_no_flag_is_named(tmp_path, line):
  with pytest.raises(ValueError, match=r'v9.env:1 is not LIBTPU_INIT_ARGS'):
    _write(tmp_path, line + '\n')


def test_a_missing_file_names_those_that_exist(tmp_path):
  (tmp_path / 'v5e.env').write_text('')
  with pytest.raises(FileNotFoundError, match=r'\(v5e there\)'):
    flags.read('v9', folder=tmp_path)


def test_a_refused_flag_is_named():
  given = {'xla_tpu_a': 'true', 'xla_tpu_b': '1'}
  unknown = flags.explain(
    "INVALID_ARGUMENT: No such compile option: 'xla_tpu_b'", given, 'v9'
  )
  assert unknown is not None
  assert 'does not know --xla_tpu_b=1 on v9' in unknown
  illegal = flags.explain(
    'FAILED_PRECONDITION: xla_tpu_a is not supported on platforms other than'
    ' v5e',
    given,
    'v9',
  )
  assert illegal is not None
  assert 'refuses --xla_tpu_a=true' in illegal
  assert flags.explain('INTERNAL: something else', given, 'v9') is None


@pytest.mark.parametrize('generation', ['v5e', 'v5p', 'v6e', 'tpu7x'])
def test_every_shipped_file_can_be_read(generation):
  assert flags.read(generation)
