"""The shipped data are what their README says, and the rules give the same on every machine."""

from pathlib import Path

import pandas as pd
import pytest

from consent import Profile, Purpose, Tier, preset
from participant.customers import load_catalogue
from tillpact.sample.build import brand_of
from tillpact.sample.consortium import (
    BRANDS,
    CATALOGUE,
    FOLDER,
    HORIZON_DAYS,
    SNAPSHOT_DAYS,
    TEST_DAY,
    choices,
    withdrawals,
)

CUSTOMERS = {"depot": 1752, "harbour": 333, "kontor": 107, "lane": 3657, "maison": 93}


def test_the_sample_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 6_000_000


@pytest.mark.parametrize("brand", BRANDS, ids=lambda brand: brand.name)
def test_each_brand_has_its_customers_real_returns_and_two_years(brand: object) -> None:
    lines = pd.read_parquet(brand.transactions)  # type: ignore[attr-defined]

    assert lines["customer_id"].nunique() == CUSTOMERS[brand.name]  # type: ignore[attr-defined]
    assert (lines["quantity"] < 0).any()
    assert lines["invoice_date"].min() >= pd.Timestamp("2009-12-01")
    assert lines["invoice_date"].max() < pd.Timestamp("2011-12-10")


def test_no_customer_is_in_two_brands() -> None:
    customers = [set(pd.read_parquet(brand.transactions)["customer_id"]) for brand in BRANDS]

    assert len(set().union(*customers)) == sum(map(len, customers))


def test_training_labels_end_before_the_test_day() -> None:
    assert max(SNAPSHOT_DAYS) + HORIZON_DAYS <= TEST_DAY


def test_the_brand_rule_looks_at_country_and_first_order_only() -> None:
    lines = pd.DataFrame(
        {
            "invoice": ["1", "2", "3", "4", "5", "6"],
            "quantity": [12, 1, 1, 50, 2, 2],
            "invoice_date": pd.to_datetime(["2010-01-01"] * 2 + ["2010-02-01"] * 4),
            "customer_id": [1, 2, 1, 2, 3, 4],
            "country": ["United Kingdom"] * 4 + ["Germany", "Spain"],
        }
    )

    assert brand_of(lines).to_dict() == {1: "depot", 2: "lane", 3: "kontor", 4: "harbour"}


def test_the_catalogue_numbers_items_the_same_everywhere() -> None:
    catalogue = load_catalogue(CATALOGUE)

    assert len(catalogue.codes) == len(catalogue.descriptions) == 5242
    assert list(catalogue.codes) == sorted(catalogue.codes)


def test_choices_follow_the_stated_rule() -> None:
    subjects = [str(number) for number in range(10_000)]
    made = list(choices("lane", subjects, now=2_000_000_000_000))
    tiers = [choice.tier for choice in made]

    assert tiers.count(Tier.ADVANCED) / 10_000 == pytest.approx(0.83, abs=0.015)
    assert tiers.count(Tier.STANDARD) / 10_000 == pytest.approx(0.08, abs=0.01)
    assert tiers.count(Tier.BASIC) / 10_000 == pytest.approx(0.06, abs=0.01)
    assert list(choices("lane", subjects, now=2_000_000_000_000)) == made


def test_a_tier_gives_its_preset_and_refuses_the_rest() -> None:
    for choice in choices("lane", [str(number) for number in range(200)], now=2_000_000_000_000):
        assert choice.tier is not None
        assert choice.given == preset(choice.tier, profile=Profile.EU_GDPR)
        assert not choice.given & choice.refused
        assert (Purpose.FEDERATED_TRAINING in choice.given) == (choice.tier is Tier.ADVANCED)


def test_about_three_in_a_hundred_have_withdrawn() -> None:
    subjects = [str(number) for number in range(10_000)]

    assert len(list(withdrawals("lane", subjects))) / 10_000 == pytest.approx(0.03, abs=0.006)


def test_building_again_from_the_shipped_lines_gives_the_same_brands(tmp_path: Path) -> None:
    lines = pd.read_parquet(FOLDER / "kontor.parquet").assign(country="Germany")

    assert set(brand_of(lines)) == {"kontor"}
