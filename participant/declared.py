"""Keep every profile and every controller that a node has had, so that old records can be said.

A record names both by digest. Each file here is named after the digest of what it says and is
checked against its name when it is read: a text that was changed is never shown as the one on
which somebody agreed.
"""

import json
from pathlib import Path

from consent import (
    Controller,
    JsonValue,
    Ladder,
    LadderError,
    Purpose,
    digest_of_controller,
    format_controller,
    parse_controller,
    parse_ladder,
)
from consent.controller import NAMING
from consent.durable import replace_files
from consent.fields import Fields


class NotDeclared(LookupError):  # noqa: N818 - an answer, named for the answer
    """The node does not know, or knows no more, what was declared; nothing was issued."""


class Declarations:
    """What a brand declared, now and earlier."""

    def __init__(self, folder: Path, *, profile_text: str, controller: Controller | None) -> None:
        """Keep what is declared now beside what was declared before.

        Args:
            folder: The folder of the declarations; made when it is missing. Trusted: whoever can
                delete here can make receipts of the past impossible, and nothing else.
            profile_text: The profile file in force.
            controller: Who answers; None when the configuration does not say.

        Raises:
            LadderError: The profile breaks a rule.
            OSError: The folder cannot be written.
        """
        self._folder = folder
        self.ladder = parse_ladder(profile_text)
        self._controller = controller
        files = {f"{self.ladder.digest}.toml": profile_text.encode()}
        if controller is not None:
            text = json.dumps(format_controller(controller), ensure_ascii=False, indent=1)
            files[f"{digest_of_controller(controller)}.json"] = text.encode()
        missing = {name: data for name, data in files.items() if not (folder / name).exists()}
        if missing:
            folder.mkdir(mode=0o700, exist_ok=True)
            replace_files(folder, missing)

    @property
    def controller(self) -> Controller:
        """Return who answers for the data now.

        Raises:
            NotDeclared: The configuration has no table `[controller]`.
        """
        if self._controller is None:
            raise NotDeclared(
                "participant.toml has no table [controller], so nobody is named who answers for "
                "the data; nothing was issued"
            )
        return self._controller

    @property
    def controller_digest(self) -> str | None:
        """Return the digest that new records name; None when nobody is declared."""
        return None if self._controller is None else digest_of_controller(self._controller)

    def names_all(self, purpose: Purpose) -> bool:
        """Tell whether the brand has named what a person must know before they say yes."""
        if self._controller is None:
            return purpose not in NAMING
        return self._controller.names_all(purpose)

    def controller_of(self, digest: str | None) -> Controller:
        """Return who answered when a record was made; who does now where it does not say.

        Raises:
            NotDeclared: The file is gone or was changed, or nobody is declared.
        """
        if digest is None or digest == self.controller_digest:
            return self.controller
        try:
            document: JsonValue = json.loads(self._read(f"{digest}.json"))
            found = parse_controller(Fields(document, where="the declared controller"))
        except ValueError as error:
            raise _changed(digest) from error
        if digest_of_controller(found) != digest:
            raise _changed(digest)
        return found

    def ladder_of(self, digest: str) -> Ladder:
        """Return the profile under which a record was made; today's where it does not say.

        Raises:
            NotDeclared: The file is gone or was changed.
        """
        if digest in {"", self.ladder.digest}:
            return self.ladder
        try:
            found = parse_ladder(self._read(f"{digest}.toml"))
        except LadderError as error:
            raise _changed(digest) from error
        if found.digest != digest:
            raise _changed(digest)
        return found

    def _read(self, name: str) -> str:
        try:
            return (self._folder / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise NotDeclared(
                f"the node keeps no declaration {name}, which a record names; nothing was issued"
            ) from error


def _changed(digest: str) -> NotDeclared:
    return NotDeclared(
        f"the declaration {digest} is not what its name says any more; nothing was issued"
    )
