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
from consent.controller import Controller
from consent.event import Event, LogError
from consent.gate import Gate, Permit, PermittedView, Refused, Use, UseKind
from consent.identity import Identity, IdentityError, PublicIdentity, SignatureError
from consent.interchange import (
    ConsentDocument,
    InterchangeError,
    format_27560_receipt,
    format_27560_record,
    format_kantara,
    parse_27560,
)
from consent.log import Entry, Log, LogTransaction
from consent.merkle import ProofError, verify_consistency, verify_inclusion
from consent.note import NoteError
from consent.optins import (
    OptInColumn,
    OptInError,
    OptInMapping,
    OptIns,
    Reason,
    Remark,
    parse_mapping,
    read_opt_ins,
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
from consent.receipt import (
    GivenPurpose,
    Receipt,
    ReceiptError,
    ReceiptStatus,
    finalise_receipt,
    issue_receipt,
    make_subject_key,
    verify_receipt,
)
from consent.receipt_page import format_page
from consent.register import ConsentChoice, ConsentRecord, Notice, Register
from consent.sealed import SealError, SubjectRef
from consent.state import Standing, Status
from consent.tlog_proof import LogProof, prove_entry
from consent.trust import Group, TrustPolicy
from consent.verify import Verdict, verify_published
from consent.witness import EquivocationError, Witness, verify_equivocation
from consent.wording import Language, Right, Words

__all__ = [
    "TERMS",
    "CanonicalError",
    "Checkpoint",
    "ConsentChoice",
    "ConsentDocument",
    "ConsentRecord",
    "Controller",
    "Entry",
    "EquivocationError",
    "Event",
    "Gate",
    "GivenPurpose",
    "Group",
    "Identity",
    "IdentityError",
    "InterchangeError",
    "JsonValue",
    "Language",
    "Log",
    "LogError",
    "LogProof",
    "LogTransaction",
    "NoteError",
    "Notice",
    "OptInColumn",
    "OptInError",
    "OptInMapping",
    "OptIns",
    "Permit",
    "PermittedView",
    "Profile",
    "ProofError",
    "PublicIdentity",
    "Purpose",
    "PurposeTerms",
    "Reason",
    "Receipt",
    "ReceiptError",
    "ReceiptStatus",
    "Refused",
    "Register",
    "Remark",
    "Right",
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
    "Witness",
    "Words",
    "cosign",
    "finalise_receipt",
    "format_27560_receipt",
    "format_27560_record",
    "format_canonical",
    "format_kantara",
    "format_page",
    "is_separate",
    "issue_receipt",
    "make_subject_key",
    "parse_27560",
    "parse_canonical",
    "parse_mapping",
    "policy_digest",
    "preset",
    "prove_entry",
    "read_opt_ins",
    "sign_checkpoint",
    "verify_checkpoint",
    "verify_consistency",
    "verify_equivocation",
    "verify_inclusion",
    "verify_log_signature",
    "verify_published",
    "verify_receipt",
]
