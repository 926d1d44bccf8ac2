"""What a member refuses to believe: every check on what a coordinator hands it.

Each method reads bytes that anybody may have made and gives back what the next step needs, or
raises. Nothing is remembered here and nothing secret is read.
"""

from dataclasses import dataclass
from typing import Final

from privacy.roster import pack
from privacy.secure_sum import Party, SumRefused
from privacy.sum_deal import DEAL_FIELDS, Deal
from privacy.sum_terms import SumTerms
from privacy.sum_wire import Kind, Survivors, open_bundle, unpack

HELLO_FIELDS: Final = 9
STATEMENT_FIELDS: Final = 4
_TERMS: Final = (
    "run",
    "roster_digest",
    "plan_digest",
    "cohort",
    "threshold",
    "ring_bits",
    "max_abs",
)


@dataclass(frozen=True, slots=True)
class SumChecks:
    """The checks of one member in one run.

    Attributes:
        party: Its name, pinned roster and floor.
        terms: What it agreed to.

    Raises:
        SumRefused: The terms are for another roster, name nobody pinned, leave this member
            out, or are below its floor.
    """

    party: Party
    terms: SumTerms

    def __post_init__(self) -> None:
        try:
            self.terms.verify_roster(self.party.roster)
        except ValueError as error:
            raise SumRefused(f"{error}; nothing was begun") from error
        if self.name not in self.terms.cohort:
            raise SumRefused(f"{self.name} is not in the cohort; nothing was begun")
        if len(self.terms.cohort) < self.party.floor:
            raise SumRefused(
                f"the cohort has {len(self.terms.cohort)} members, the floor is "
                f"{self.party.floor}; nothing was begun"
            )

    @property
    def name(self) -> str:
        """This member."""
        return self.party.name

    @property
    def least(self) -> int:
        """Fewest members that may deal, survive and sign."""
        return max(self.terms.threshold, self.party.floor)

    def hellos(self, data: bytes, *, own: tuple[bytes, bytes]) -> dict[str, tuple[bytes, bytes]]:
        """Both public keys of each member.

        Args:
            data: The bundle.
            own: This member's public keys.

        Raises:
            SumRefused: One is missing, forged, from outside, for other terms, or swapped.
        """
        messages = open_bundle(Kind.HELLO, data, roster=self.party.roster, size=HELLO_FIELDS)
        self._check_senders(tuple(messages), Kind.HELLO)
        for sender, message in messages.items():
            for what, agreed, found in zip(_TERMS, self.terms.fields, message.fields, strict=False):
                if agreed != found:
                    raise SumRefused(
                        f"{sender} signed another {what} than {self.name} agreed to; "
                        "nothing was sent"
                    )
        if pack(*messages[self.name].fields[-2:]) != pack(*own):
            raise SumRefused(f"the hello of {self.name} is not what it sent; nothing was sent")
        return {
            name: (message.fields[-2], message.fields[-1]) for name, message in messages.items()
        }

    def meetings(self, data: bytes, *, hellos_digest: bytes) -> dict[str, dict[str, bytes]]:
        """The ciphertexts that each member sent, by recipient.

        Args:
            data: The bundle.
            hellos_digest: Of the hellos that this member answered.

        Raises:
            SumRefused: One is missing, forged, from outside, after other hellos, or no list.
        """
        messages = open_bundle(Kind.MEETING, data, roster=self.party.roster, size=2)
        self._check_senders(tuple(messages), Kind.MEETING)
        carried: dict[str, dict[str, bytes]] = {}
        for sender, message in messages.items():
            if message.fields[0] != hellos_digest:
                raise SumRefused(f"{sender} met others than {self.name}; nothing was settled")
            try:
                parts = unpack(message.fields[1])
                names = [part.decode() for part in parts[::2]]
                carried[sender] = dict(zip(names, parts[1::2], strict=True))
            except ValueError as error:
                raise SumRefused(
                    f"the meeting of {sender} cannot be read; nothing was settled"
                ) from error
        return carried

    def deals(
        self, data: bytes, *, own: bytes, round_digest: bytes, setup_digest: bytes
    ) -> dict[str, Deal]:
        """The deal of each member that dealt.

        Args:
            data: The bundle.
            own: The deal that this member sent.
            round_digest: Of the round that is open.
            setup_digest: Of the set-up.

        Raises:
            SumRefused: They are too few, one is forged, from outside, or for another round or
                set-up, or this member's own is not there.
        """
        messages = open_bundle(Kind.DEAL, data, roster=self.party.roster, size=DEAL_FIELDS)
        dealt = {name: Deal.of(message, self.terms) for name, message in messages.items()}
        if len(dealt) < self.least:
            raise SumRefused(
                f"{len(dealt)} members dealt, at least {self.least} must; nothing was masked"
            )
        for name, its in dealt.items():
            if its.round_digest != round_digest:
                raise SumRefused(f"the deal of {name} is for another round; nothing was masked")
            if its.setup_digest != setup_digest:
                raise SumRefused(f"the deal of {name} follows another set-up; nothing was masked")
        if own not in unpack(data):
            raise SumRefused(f"the deal of {self.name} is not among the deals; nothing was masked")
        return dealt

    def survivors(
        self, said: Survivors, *, round_digest: bytes, deals_digest: bytes, dealers: set[str]
    ) -> None:
        """Check a set of survivors.

        Args:
            said: What the coordinator says.
            round_digest: Of the round in which this member sent values.
            deals_digest: Of the deals that it masked for.
            dealers: Who dealt.

        Raises:
            SumRefused: It is for something else, too small, or contradicts itself or what
                this member knows.
        """
        if said.round_digest != round_digest:
            raise SumRefused("the survivors are of another round; nothing was signed")
        if said.deals_digest != deals_digest:
            raise SumRefused("the survivors masked for other deals; nothing was signed")
        both = sorted(set(said.alive) & set(said.dropped))
        if both:
            raise SumRefused(f"{both[0]} is said to be alive and dropped; nothing was signed")
        if set(said.alive) | set(said.dropped) != dealers:
            raise SumRefused(
                "the survivors and dropped are not those who dealt; nothing was signed"
            )
        if self.name not in said.alive:
            raise SumRefused(f"{self.name} sent values and is called dropped; nothing was signed")
        if len(said.alive) < self.least:
            raise SumRefused(
                f"{len(said.alive)} members survive, at least {self.least} must; nothing was signed"
            )

    def statements(self, data: bytes, *, own: bytes) -> Survivors:
        """The set of survivors that this member and enough others signed.

        Args:
            data: The bundle.
            own: What this member signed.

        Raises:
            SumRefused: One is forged, of somebody who did not survive, or over another set; or
                they are too few.
        """
        roster = self.party.roster
        messages = open_bundle(Kind.STATEMENT, data, roster=roster, size=STATEMENT_FIELDS)
        fields = unpack(unpack(own)[0])[1:]
        said = Survivors.of(fields)
        for sender, message in messages.items():
            if sender not in said.alive:
                raise SumRefused(f"{sender} is no survivor and signed; nothing was revealed")
            if message.fields != fields:
                raise SumRefused(
                    f"{sender} signed another set of survivors than {self.name}; "
                    "nothing was revealed"
                )
        if len(messages) < self.least:
            raise SumRefused(
                f"{len(messages)} members signed the survivors, at least {self.least} must; "
                "nothing was revealed"
            )
        return said

    def _check_senders(self, senders: tuple[str, ...], kind: Kind) -> None:
        for sender in senders:
            if sender not in self.terms.cohort:
                raise SumRefused(f"{sender} is not in the cohort; nothing was done")
        for member in self.terms.cohort:
            if member not in senders:
                raise SumRefused(f"the {kind} of {member} is missing; nothing was done")
