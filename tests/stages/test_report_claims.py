"""What a sweep says of the paper's claims."""

import pytest

from onerec_jax.stages import report_claims
from onerec_jax.stages import report_sweep_rows


def verdicts(sweep: dict) -> dict[str, str]:
  """Claim -> verdict."""
  found = report_claims.judge(sweep, report_sweep_rows.series(sweep))
  return {c.claim: c.verdict for c in found}


ORDER = 'OneRec > TIGER > item-level baselines in swt mean'


def test_the_published_figures_themselves_bear_the_claims_out(made_sweep):
  found = verdicts(made_sweep.result())
  assert found[ORDER] == 'holds'
  assert found['IPA raises swt max'] == 'holds'
  assert found['IPA raises ltr max'] == 'holds'
  assert found['IPA is the best variant in reward max'] == 'holds'
  # +2.3 %
  assert found['IPA raises true reward mean by at least 10 %'] == (
    'does not hold'
  )


def test_the_order_is_not_clear_where_intervals_overlap(made_sweep):
  sweep = made_sweep.result()
  assert verdicts(sweep)[ORDER] == 'holds'
  for name in ('TIGER', 'TIGER small'):
    made_sweep.set_difference(
      made_sweep.row_of(sweep, name), 'swt_mean', -0.0112, 0.02
    )
  assert verdicts(sweep)[ORDER] == 'not clear'
  for name in ('TIGER', 'TIGER small'):
    made_sweep.set_difference(
      made_sweep.row_of(sweep, name), 'swt_mean', 0.02, 0.01
    )
  assert verdicts(sweep)[ORDER] == 'does not hold'


@pytest.mark.parametrize(
  ('mean', 'half', 'expected'),
  [  # shares of the base's reward
    (0.12, 0.01, 'holds'),
    (0.12, 0.13, 'not clear'),  # may be nothing at all
    (0.08, 0.04, 'not clear'),  # may be 12 %
    (0.08, 0.01, 'does not hold'),
    (-0.02, 0.01, 'does not hold'),
  ],
)
def test_ten_percent_of_true_reward_are_judged_by_the_interval(
  made_sweep, mean, half, expected
):
  sweep = made_sweep.result()
  before = made_sweep.row_of(sweep, made_sweep.BASE)['figures'][
    'true_reward_mean'
  ]['mean']
  made_sweep.set_difference(
    made_sweep.row_of(sweep, 'OneRec + IPA'),
    'true_reward_mean',
    mean * before,
    half * before,
  )
  claim = 'IPA raises true reward mean by at least 10 %'
  assert verdicts(sweep)[claim] == expected


def test_the_best_variant_names_its_place_and_rival(made_sweep):
  sweep = made_sweep.result()
  dpo = made_sweep.row_of(sweep, 'OneRec + DPO')
  dpo['figures']['reward_max']['mean'] = 2.0
  made_sweep.set_difference(dpo, 'reward_max', 1.1, 0.01)
  claim = next(
    c
    for c in report_claims.judge(sweep)
    if c.claim == 'IPA is the best variant in reward max'
  )
  assert claim.verdict == 'does not hold'
  assert 'is number 2 of 8, first OneRec + DPO 2.0000' in claim.evidence
  assert 'swt max number 1' in claim.evidence


@pytest.mark.parametrize(
  ('true', 'expected'),
  [(0.1, 'holds'), (0.0, 'not clear'), (-0.1, 'does not hold')],
)
def test_reward_hacking_is_called_by_its_name(made_sweep, true, expected):
  sweep = made_sweep.result(
    {'OneRec': 'OneRec-1B', 'IPA': '+IPA', 'DPO': '+IPO'}
  )
  made_sweep.set_difference(
    made_sweep.row_of(sweep, 'IPA'), 'reward_mean', 0.2, 0.01
  )
  made_sweep.set_difference(
    made_sweep.row_of(sweep, 'IPA'), 'true_reward_mean', true, 0.01
  )
  claim = 'Variants that gain predicted reward gain true reward as well'
  found = next(c for c in report_claims.judge(sweep) if c.claim == claim)
  assert found.verdict == expected
  assert 'IPA (predicted +26.9 %' in found.evidence
  assert 'DPO' not in found.evidence  # it gained nothing


def test_few_pairs_are_judged_by_the_mean_share_of_the_best(made_sweep):
  rows = {f'IPA r={n}%': '+IPA' for n in range(1, 6)}
  levels = {'IPA r=4%': 1.25}  # the best: 1 % reaches 80 % of it
  sweep = made_sweep.result({'OneRec': 'OneRec-1B', **rows}, levels=levels)
  claim = next(c for c in report_claims.judge(
    sweep, report_sweep_rows.series(sweep)
  ) if 'Pairs for 1 %' in c.claim)  # fmt: skip
  assert claim.verdict == 'does not hold'
  assert claim.evidence.startswith('80.0 % on average: swt mean 80.0 %')
  assert verdicts(made_sweep.result({'OneRec': 'OneRec-1B', **rows}))[
    claim.claim
  ] == ('holds')


def test_no_claim_is_judged_without_its_rows(made_sweep):
  assert (
    verdicts(made_sweep.result({'OneRec': 'OneRec-1B', 'mine': None})) == {}
  )
