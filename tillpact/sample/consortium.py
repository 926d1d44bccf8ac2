"""The sample consortium: five brands cut from Online Retail II, and its customers' choices.

Purchases, dates and returns are real and public. Consent is not in the data set, so it is made
by the stated rule below, the same on every machine.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consent import ConsentChoice, Notice, Profile, Purpose, Tier, preset

FOLDER = Path(__file__).parent
CATALOGUE = FOLDER / "products.parquet"
COLUMNS = {
    "customer": "customer_id",
    "invoice": "invoice",
    "item": "stock_code",
    "quantity": "quantity",
    "price": "price",
    "time": "invoice_date",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Brand:
    """One of the sample's brands.

    Attributes:
        name: The node's name.
        title: For people.
        who: Which customers of the data set are its own.
        joins: Whether its operator approves the demo's plans.
    """

    name: str
    title: str
    who: str
    joins: bool = True

    @property
    def transactions(self) -> Path:
        """Its invoice lines."""
        return FOLDER / f"{self.name}.parquet"


BRANDS = (
    Brand(name="depot", title="Depot Nine", who="UK, first order in lots of 12 and more"),
    Brand(name="harbour", title="Harbour Export", who="all other countries"),
    Brand(name="kontor", title="Kontor Nord", who="Germany, about 100 customers"),
    Brand(name="lane", title="Lane & Lark", who="UK, first order in small lots"),
    Brand(name="maison", title="Maison Lise", who="France, did not approve", joins=False),
)

# The first 90 days that no model sees in training: 2011-09-10 to 2011-12-08.
TEST_DAY = int(np.datetime64("2011-09-10", "D").astype(int))
HORIZON_DAYS = 90
# Twelve snapshots, a month apart, whose labels all end before the test day.
SNAPSHOT_DAYS = tuple(TEST_DAY - HORIZON_DAYS - 30 * months for months in range(12))
# What the four brands that join agreed on as the size of their data: a contract, not a count.
EXPECTED_CUSTOMERS = 4_000

_NOTICE_TEXT = (
    "Your purchases may help several shops to learn together what their customers need. "
    "They stay with this shop; only noised sums leave it. You may withdraw at any time."
)
NOTICE = Notice(
    id="sample-notice",
    version=1,
    language="en",
    sha256=hashlib.sha256(_NOTICE_TEXT.encode()).hexdigest(),
)
# What each sample brand says it weighed before it used these purposes; made up like consent.
_ASSESSMENT_TEXT = (
    "Sample assessment: purchases stay at the brand, sums leave it with noise, epsilon 4.5."
)
ASSESSMENT_SHA256 = hashlib.sha256(_ASSESSMENT_TEXT.encode()).hexdigest()
ASSESSED = (Purpose.CHURN_SCORING, Purpose.FEDERATED_TRAINING)
_DAY_MS = 86_400_000
# Share of customers at each tier; the rest chose nothing.
_TIERS = ((Tier.ADVANCED, 0.83), (Tier.STANDARD, 0.91), (Tier.BASIC, 0.97))
_WITHDRAWN_SHARE = 0.03


def choices(brand: str, subjects: Sequence[str], *, now: int) -> Iterator[ConsentChoice]:
    """What each customer of a sample brand chose: 83 % advanced, 8 % standard, 6 % basic.

    The rule: the first 8 bytes of SHA-256("brand/customer"), as a number in [0, 1), decide.
    The last 3 % chose nothing and have no record.

    Args:
        brand: Name of the brand.
        subjects: Its customers' ids.
        now: Epoch milliseconds; everybody chose 30 days ago, for two years.
    """
    for subject in subjects:
        draw = _uniform(f"{brand}/{subject}")
        tier = next((tier for tier, upto in _TIERS if draw < upto), None)
        if tier is None:
            continue
        given = preset(tier, profile=Profile.EU_GDPR)
        everything = preset(Tier.ADVANCED, profile=Profile.EU_GDPR)
        yield ConsentChoice(
            subject_id=subject,
            given=given,
            refused=everything - given,
            notice=NOTICE,
            channel="app",
            expressed_at=now - 30 * _DAY_MS,
            until=now + 700 * _DAY_MS,
            tier=tier,
        )


def withdrawals(brand: str, subjects: Sequence[str]) -> Iterator[str]:
    """Customers who have since withdrawn from federated training: about 3 %, by the same rule."""
    for subject in subjects:
        if _uniform(f"{brand}/{subject}/withdrawn") < _WITHDRAWN_SHARE:
            yield subject


def _uniform(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


WITHDRAWN_PURPOSE = Purpose.FEDERATED_TRAINING
