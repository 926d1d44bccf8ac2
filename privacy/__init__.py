"""What customers lose and how sums hide them: budgets, noise, ledger, secure sum."""

from privacy.accounting import (
    Composition,
    GaussianRelease,
    compose,
    delta_of,
    epsilon_of,
    mu_for,
    noise_std_for,
    noise_std_of,
)
from privacy.budget import Accounting, Budget, BudgetExhausted, Remaining, Spent
from privacy.composition import (
    LaplaceRelease,
    Release,
    SampledGaussianRelease,
    epsilon_planned,
)
from privacy.history import (
    EventKind,
    LedgerError,
    LedgerEvent,
    ReleaseKey,
    Replayed,
    Reservation,
)
from privacy.ledger import Ledger
from privacy.noise import (
    NoiseSource,
    clip,
    discrete_gaussian,
    discrete_gaussian_around,
    discrete_laplace,
    quantise,
    sampler_slack,
    share_std,
    symmetric_noise_std,
)
from privacy.roster import AgreementKey, MemberCard, Roster, RosterError, make_card
from privacy.secure_sum import Party, Session, SumRefused, total
from privacy.sum_coordinator import SumSetup, SumTally, SumVoid
from privacy.sum_layout import SumLayout
from privacy.sum_member import SumMember
from privacy.sum_terms import SumRound, SumTerms, least_threshold

__all__ = [
    "Accounting",
    "AgreementKey",
    "Budget",
    "BudgetExhausted",
    "Composition",
    "EventKind",
    "GaussianRelease",
    "LaplaceRelease",
    "Ledger",
    "LedgerError",
    "LedgerEvent",
    "MemberCard",
    "NoiseSource",
    "Party",
    "Release",
    "ReleaseKey",
    "Remaining",
    "Replayed",
    "Reservation",
    "Roster",
    "RosterError",
    "SampledGaussianRelease",
    "Session",
    "Spent",
    "SumLayout",
    "SumMember",
    "SumRefused",
    "SumRound",
    "SumSetup",
    "SumTally",
    "SumTerms",
    "SumVoid",
    "clip",
    "compose",
    "delta_of",
    "discrete_gaussian",
    "discrete_gaussian_around",
    "discrete_laplace",
    "epsilon_of",
    "epsilon_planned",
    "least_threshold",
    "make_card",
    "mu_for",
    "noise_std_for",
    "noise_std_of",
    "quantise",
    "sampler_slack",
    "share_std",
    "symmetric_noise_std",
    "total",
]
