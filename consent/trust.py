"""Own the trust policy: which logs are known, and whose cosignatures make a quorum.

The text is C2SP tlog-policy. A policy holds public keys only and decides nothing by itself;
`checkpoint.verify_checkpoint` asks it. Source: https://c2sp.org/tlog-policy
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from consent.identity import IdentityError, PublicIdentity
from consent.note import NoteError

NO_QUORUM = "none"


@dataclass(frozen=True, slots=True)
class Group:
    """A named set of witnesses or groups of which `threshold` must have cosigned."""

    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class TrustPolicy:
    """Logs, witnesses, groups and the quorum of one federation.

    Trusted: whoever can edit the policy decides which logs are believed.

    Attributes:
        logs: Public keys whose name is the origin of their log.
        witnesses: Public keys by the policy's own name for them.
        groups: Thresholds by name; members are defined before the group.
        quorum: Name of the witness or group that must have cosigned, or "none".
    """

    logs: tuple[PublicIdentity, ...]
    witnesses: Mapping[str, PublicIdentity]
    groups: Mapping[str, Group]
    quorum: str

    def __post_init__(self) -> None:
        known = {NO_QUORUM, *self.witnesses, *self.groups}
        if self.quorum not in known:
            raise NoteError(f"the quorum {self.quorum!r} must be a witness, a group or none")

    @classmethod
    def parse(cls, text: str) -> "TrustPolicy":
        """Read a policy.

        Raises:
            NoteError: A line breaks a rule of tlog-policy; the message names the line.
        """
        reader = _Reader()
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                reader.read(line)
            except (NoteError, IdentityError) as error:
                raise NoteError(f"line {number} of the trust policy: {error}") from error
        return reader.finish()

    def format(self) -> str:
        """Write the policy; `parse` gives an equal one back."""
        lines = [f"log {log.format()}" for log in self.logs]
        lines += [f"witness {name} {key.format_witness()}" for name, key in self.witnesses.items()]
        lines += [
            f"group {name} {group.threshold} {' '.join(group.members)}"
            for name, group in self.groups.items()
        ]
        return "\n".join([*lines, f"quorum {self.quorum}"]) + "\n"

    def log(self, origin: str) -> PublicIdentity:
        """Return the key of a log.

        Raises:
            NoteError: The policy does not know the origin.
        """
        for log in self.logs:
            if log.name == origin:
                return log
        raise NoteError(f"the trust policy knows no log with the origin {origin!r}")

    def is_quorum(self, cosigners: Collection[str]) -> bool:
        """Tell whether these witnesses, by their names in the policy, are enough."""
        if self.quorum == NO_QUORUM:
            return True
        met = {name for name in cosigners if name not in self.groups}
        # Members stand before their group, so that groups in groups need no recursion, whose
        # depth whoever writes the policy would choose.
        for name, group in self.groups.items():
            if sum(member in met for member in group.members) >= group.threshold:
                met.add(name)
        return self.quorum in met


class _Reader:
    """Collects the lines of one policy text and checks each against those before it."""

    def __init__(self) -> None:
        self._logs: list[PublicIdentity] = []
        # Sets beside the lists: a long policy must not take quadratic time to read.
        self._log_marks: set[str | bytes] = set()
        self._witness_keys: set[bytes] = set()
        self._witnesses: dict[str, PublicIdentity] = {}
        self._groups: dict[str, Group] = {}
        self._members: set[str] = set()
        self._quorum: str | None = None

    def read(self, line: str) -> None:
        if any((ord(c) < 0x20 and c != "\t") or ord(c) == 0x7F for c in line):
            raise NoteError("control characters are not allowed")
        words = line.replace("\t", " ").split(" ")
        words = [word for word in words if word]
        if not words or words[0].startswith("#"):
            return
        readers: dict[str, Callable[[list[str]], None]] = {
            "log": self._read_log,
            "witness": self._read_witness,
            "group": self._read_group,
            "quorum": self._read_quorum,
        }
        if words[0] not in readers:
            raise NoteError(f"a line must begin with log, witness, group or quorum: {words[0]!r}")
        readers[words[0]](words[1:])

    def finish(self) -> TrustPolicy:
        if self._quorum is None:
            raise NoteError("a trust policy must have exactly one quorum line")
        return TrustPolicy(
            logs=tuple(self._logs),
            witnesses=MappingProxyType(self._witnesses),
            groups=MappingProxyType(self._groups),
            quorum=self._quorum,
        )

    def _read_log(self, words: list[str]) -> None:
        if len(words) not in (1, 2):
            raise NoteError("a log line must read: log VKEY [URL]")
        log = PublicIdentity.parse(words[0])
        if {log.key, log.name} & self._log_marks:
            raise NoteError(f"the log {log.name!r} must be listed once")
        self._log_marks |= {log.key, log.name}
        self._logs.append(log)

    def _read_witness(self, words: list[str]) -> None:
        if len(words) not in (2, 3):
            raise NoteError("a witness line must read: witness NAME VKEY [URL]")
        self._check_new(words[0])
        witness = PublicIdentity.parse_witness(words[1])
        if witness.key in self._witness_keys:
            raise NoteError(f"the key of witness {words[0]!r} must be listed once")
        self._witness_keys.add(witness.key)
        self._witnesses[words[0]] = witness

    def _read_group(self, words: list[str]) -> None:
        if len(words) < 3:
            raise NoteError("a group line must read: group NAME K|any|all MEMBER...")
        name, rule, *members = words
        self._check_new(name)
        for member in members:
            self._check_known(member)
            if member in self._members:
                raise NoteError(f"{member!r} must be a member of one group only")
            self._members.add(member)
        self._groups[name] = Group(_threshold(rule, len(members)), tuple(members))

    def _read_quorum(self, words: list[str]) -> None:
        if len(words) != 1 or self._quorum is not None:
            raise NoteError("a trust policy must have exactly one quorum line")
        if words[0] != NO_QUORUM:
            self._check_known(words[0])
        self._quorum = words[0]

    def _check_new(self, name: str) -> None:
        if name == NO_QUORUM or name in self._witnesses or name in self._groups:
            raise NoteError(f"the name {name!r} must be new")

    def _check_known(self, name: str) -> None:
        if name not in self._witnesses and name not in self._groups:
            raise NoteError(f"the name {name!r} must be defined on an earlier line")


def _threshold(rule: str, members: int) -> int:
    if rule in ("any", "all"):
        return 1 if rule == "any" else members
    if rule not in map(str, range(1, members + 1)):
        raise NoteError(f"a threshold must be any, all or in [1, {members}], got {rule!r}")
    return int(rule)
