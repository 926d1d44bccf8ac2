"""Authority and memory: who agreed to what, what was done with it, and proofs of both."""

from consent.canonical import CanonicalError, JsonValue, format_canonical, parse_canonical
from consent.checkpoint import (
    Checkpoint,
    VerifiedCheckpoint,
    cosign,
    sign_checkpoint,
    verify_checkpoint,
    verify_log_signature,
)
from consent.event import Event, LogError
from consent.gate import Gate, Permit, PermittedView, Refused, Use, UseKind, Watch, narrow
from consent.identity import Identity, IdentityError, PublicIdentity, SignatureError
from consent.log import Entry, Log, LogTransaction
from consent.merkle import ProofError, verify_consistency, verify_inclusion
from consent.note import NoteError
from consent.purpose import (
    TERMS,
    AgeBand,
    Basis,
    Ladder,
    LadderError,
    Profile,
    Purpose,
    PurposeRules,
    PurposeTerms,
    Tier,
    is_separate,
    ladder_of,
    load_ladder,
    parse_ladder,
    policy_digest,
    preset,
)
from consent.reader import RegisterReader
from consent.register import AskedTooSoon, ConsentChoice, ConsentRecord, Notice, Register
from consent.sealed import SealError, SubjectRef
from consent.state import Person, Standing, Status
from consent.trust import Group, TrustPolicy
from consent.verify import Verdict, verify_published
from consent.witness import EquivocationError, Witness, verify_equivocation

__all__ = [
    "TERMS",
    "AgeBand",
    "AskedTooSoon",
    "Basis",
    "CanonicalError",
    "Checkpoint",
    "ConsentChoice",
    "ConsentRecord",
    "Entry",
    "EquivocationError",
    "Event",
    "Gate",
    "Group",
    "Identity",
    "IdentityError",
    "JsonValue",
    "Ladder",
    "LadderError",
    "Log",
    "LogError",
    "LogTransaction",
    "NoteError",
    "Notice",
    "Permit",
    "PermittedView",
    "Person",
    "Profile",
    "ProofError",
    "PublicIdentity",
    "Purpose",
    "PurposeRules",
    "PurposeTerms",
    "Refused",
    "Register",
    "RegisterReader",
    "SealError",
    "SignatureError",
    "Standing",
    "Status",
    "SubjectRef",
    "Tier",
    "TrustPolicy",
    "Use",
    "UseKind",
    "Verdict",
    "VerifiedCheckpoint",
    "Watch",
    "Witness",
    "cosign",
    "format_canonical",
    "is_separate",
    "ladder_of",
    "load_ladder",
    "narrow",
    "parse_canonical",
    "parse_ladder",
    "policy_digest",
    "preset",
    "sign_checkpoint",
    "verify_checkpoint",
    "verify_consistency",
    "verify_equivocation",
    "verify_inclusion",
    "verify_log_signature",
    "verify_published",
]
