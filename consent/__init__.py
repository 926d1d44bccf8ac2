"""Authority and memory: who agreed to what, what was done with it, and proofs of both."""

from consent.canonical import CanonicalError, JsonValue, format_canonical, parse_canonical
from consent.checkpoint import (
    Checkpoint,
    VerifiedCheckpoint,
    cosign,
    merge_cosignatures,
    sign_checkpoint,
    verify_checkpoint,
    verify_cosignatures,
    verify_log_signature,
)
from consent.dossier import DossierError, ProvedDossier, build_dossier, verify_dossier
from consent.equivocation import Evidence, EvidenceKind, verify_equivocation
from consent.event import Event, LogError
from consent.gate import Gate, Permit, PermittedView, Refused, Use, UseKind
from consent.identity import Identity, IdentityError, PublicIdentity, SignatureError
from consent.log import Entry, Log, LogTransaction
from consent.merkle import ProofError, verify_consistency, verify_inclusion
from consent.note import NoteError
from consent.proof import (
    TlogProof,
    format_proof,
    parse_proof,
    prove,
    prove_opened,
    verify_opened_proof,
    verify_proof,
)
from consent.purpose import (
    TERMS,
    Profile,
    Purpose,
    PurposeTerms,
    Tier,
    is_separate,
    policy_digest,
    preset,
)
from consent.register import ConsentChoice, ConsentRecord, Notice, Register
from consent.sealed import SealError, SubjectRef
from consent.state import Standing, Status
from consent.statetree import StateRoot, append_state_root, verify_order
from consent.tiles import Tiles
from consent.trust import Group, TrustPolicy
from consent.verify import Verdict, verify_published
from consent.witness import EquivocationError, Witness

__all__ = [
    "TERMS",
    "CanonicalError",
    "Checkpoint",
    "ConsentChoice",
    "ConsentRecord",
    "DossierError",
    "Entry",
    "EquivocationError",
    "Event",
    "Evidence",
    "EvidenceKind",
    "Gate",
    "Group",
    "Identity",
    "IdentityError",
    "JsonValue",
    "Log",
    "LogError",
    "LogTransaction",
    "NoteError",
    "Notice",
    "Permit",
    "PermittedView",
    "Profile",
    "ProofError",
    "ProvedDossier",
    "PublicIdentity",
    "Purpose",
    "PurposeTerms",
    "Refused",
    "Register",
    "SealError",
    "SignatureError",
    "Standing",
    "StateRoot",
    "Status",
    "SubjectRef",
    "Tier",
    "Tiles",
    "TlogProof",
    "TrustPolicy",
    "Use",
    "UseKind",
    "Verdict",
    "VerifiedCheckpoint",
    "Witness",
    "append_state_root",
    "build_dossier",
    "cosign",
    "format_canonical",
    "format_proof",
    "is_separate",
    "merge_cosignatures",
    "parse_canonical",
    "parse_proof",
    "policy_digest",
    "preset",
    "prove",
    "prove_opened",
    "sign_checkpoint",
    "verify_checkpoint",
    "verify_consistency",
    "verify_cosignatures",
    "verify_dossier",
    "verify_equivocation",
    "verify_inclusion",
    "verify_log_signature",
    "verify_opened_proof",
    "verify_order",
    "verify_proof",
    "verify_published",
]
