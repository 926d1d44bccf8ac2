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
from privacy.budget import Budget, BudgetExhausted, Remaining, Spent
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
    quantise,
    sampler_slack,
    share_std,
    symmetric_noise_std,
)
from privacy.roster import AgreementKey, MemberCard, Roster, RosterError, make_card
from privacy.secure_sum import Party, Session, SumRefused, total

__all__ = [
    "AgreementKey",
    "Budget",
    "BudgetExhausted",
    "Composition",
    "EventKind",
    "GaussianRelease",
    "Ledger",
    "LedgerError",
    "LedgerEvent",
    "MemberCard",
    "NoiseSource",
    "Party",
    "ReleaseKey",
    "Remaining",
    "Replayed",
    "Reservation",
    "Roster",
    "RosterError",
    "Session",
    "Spent",
    "SumRefused",
    "clip",
    "compose",
    "delta_of",
    "discrete_gaussian",
    "discrete_gaussian_around",
    "epsilon_of",
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
