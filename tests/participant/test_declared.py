import dataclasses
import runpy
from pathlib import Path

import pytest

from consent import (
    NotAssessed,
    Profile,
    Purpose,
    Use,
    UseKind,
    digest_of_controller,
    ladder_of,
    packaged_profile,
)
from participant.declared import Declarations, NotDeclared
from participant.node import Node
from tests.federation.synthetic import config_of

pytestmark = pytest.mark.usefixtures("both_stores")

MAKE = runpy.run_path(str(Path(__file__).parents[1] / "vectors" / "receipt" / "make.py"))
CONTROLLER = MAKE["CONTROLLER"]
EU = packaged_profile(Profile.EU_GDPR)
OTHER = EU.replace("We write to you", "We may write to you")


def test_what_was_declared_earlier_is_found_by_its_digest(tmp_path: Path) -> None:
    first = Declarations(tmp_path / "declared", profile_text=EU, controller=CONTROLLER)
    moved = dataclasses.replace(CONTROLLER, address="2 Market Street")
    second = Declarations(tmp_path / "declared", profile_text=OTHER, controller=moved)

    assert second.controller == second.controller_of(None) == moved
    assert second.controller_of(first.controller_digest) == CONTROLLER
    assert second.ladder_of(first.ladder.digest) == first.ladder != second.ladder
    assert second.ladder_of("") == second.ladder


def test_a_declaration_that_is_gone_or_changed_is_not_shown(tmp_path: Path) -> None:
    first = Declarations(tmp_path, profile_text=EU, controller=CONTROLLER)
    second = Declarations(tmp_path, profile_text=OTHER, controller=None)
    profile, controller = (
        tmp_path / f"{first.ladder.digest}.toml",
        tmp_path / f"{digest_of_controller(CONTROLLER)}.json",
    )
    profile.write_text(OTHER, encoding="utf-8")
    controller.write_text(controller.read_text().replace("Brand A", "Brand B"))
    with pytest.raises(NotDeclared, match="is not what its name says any more; nothing was issued"):
        second.ladder_of(first.ladder.digest)
    with pytest.raises(NotDeclared, match="is not what its name says any more"):
        second.controller_of(first.controller_digest)
    for path in (profile, controller):
        path.write_text("{")
    with pytest.raises(NotDeclared, match="is not what its name says any more"):
        second.ladder_of(first.ladder.digest)
    with pytest.raises(NotDeclared, match="is not what its name says any more"):
        second.controller_of(first.controller_digest)
    profile.unlink()
    with pytest.raises(NotDeclared, match=r"the node keeps no declaration .*.toml, which a record"):
        second.ladder_of(first.ladder.digest)
    with pytest.raises(NotDeclared, match=r"participant.toml has no table \[controller\], so"):
        _ = second.controller


def test_a_node_follows_the_profile_of_its_brand_everywhere(tmp_path: Path) -> None:
    own = tmp_path / "counsel.toml"
    own.write_text(EU.replace("assessment = false", "assessment = true"), encoding="utf-8")
    config = config_of("amber", tmp_path, profile_file=own)
    with Node.create(config) as node:
        digest = node.ladder.digest

        assert digest != ladder_of(Profile.EU_GDPR).digest
        assert node.register.ladder.digest == digest
        with pytest.raises(NotAssessed):
            node.gate.open(
                Purpose.SERVICE_STATISTICS, ["anna"], use=Use(kind=UseKind.QUERY), at=node.clock()
            )
        assert node.log.entries()[-1].value["policy"] == digest
        assert (config.folder / "declared" / f"{digest}.toml").exists()
