"""Authority and memory: who agreed to what, what was done with it, and proofs of both."""

from consent.access import (
    Access,
    AccessDenied,
    AccessGrant,
    AccessRequest,
    Action,
    PolicyEngine,
    Role,
)
from consent.assessment import (
    NEEDS_ASSESSMENT,
    Assessment,
    AssessmentError,
    Assessments,
    AssessmentState,
    NotAssessed,
    verify_assessed,
)
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
from consent.gate import Gate, Permit, PermittedView, Refused, Use, UseKind
from consent.identity import Identity, IdentityError, PublicIdentity, SignatureError
from consent.lineage import (
    AffectedModel,
    Lineage,
    ModelVersion,
    Remedies,
    Remedy,
    RemedyClocks,
    RemedyError,
    trace,
)
from consent.log import Entry, Log, LogTransaction
from consent.matrix import RoleMatrix
from consent.merkle import ProofError, verify_consistency, verify_inclusion
from consent.note import NoteError
from consent.policy import PolicyError, PolicyFiles, Proposal, Rulebook
from consent.processing import (
    Activity,
    Controller,
    Keeping,
    ProcessingRegister,
    register_processing,
)
from consent.propagation import Backoff, Delivery, Outbox, Outcome, Overdue, Recipient
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
from consent.topic import Told, Topic
from consent.trust import Group, TrustPolicy
from consent.verify import Verdict, verify_published
from consent.withdrawal import (
    Acknowledgement,
    NoticeError,
    SignedMessage,
    WithdrawalNotice,
    acknowledge,
    verify_notice,
)
from consent.witness import EquivocationError, Witness, verify_equivocation

__all__ = [
    "NEEDS_ASSESSMENT",
    "TERMS",
    "Access",
    "AccessDenied",
    "AccessGrant",
    "AccessRequest",
    "Acknowledgement",
    "Action",
    "Activity",
    "AffectedModel",
    "Assessment",
    "AssessmentError",
    "AssessmentState",
    "Assessments",
    "Backoff",
    "CanonicalError",
    "Checkpoint",
    "ConsentChoice",
    "ConsentRecord",
    "Controller",
    "Delivery",
    "Entry",
    "EquivocationError",
    "Event",
    "Gate",
    "Group",
    "Identity",
    "IdentityError",
    "JsonValue",
    "Keeping",
    "Lineage",
    "Log",
    "LogError",
    "LogTransaction",
    "ModelVersion",
    "NotAssessed",
    "NoteError",
    "Notice",
    "NoticeError",
    "Outbox",
    "Outcome",
    "Overdue",
    "Permit",
    "PermittedView",
    "PolicyEngine",
    "PolicyError",
    "PolicyFiles",
    "ProcessingRegister",
    "Profile",
    "ProofError",
    "Proposal",
    "PublicIdentity",
    "Purpose",
    "PurposeTerms",
    "Recipient",
    "Refused",
    "Register",
    "Remedies",
    "Remedy",
    "RemedyClocks",
    "RemedyError",
    "Role",
    "RoleMatrix",
    "Rulebook",
    "SealError",
    "SignatureError",
    "SignedMessage",
    "Standing",
    "Status",
    "SubjectRef",
    "Tier",
    "Told",
    "Topic",
    "TrustPolicy",
    "Use",
    "UseKind",
    "Verdict",
    "VerifiedCheckpoint",
    "WithdrawalNotice",
    "Witness",
    "acknowledge",
    "cosign",
    "format_canonical",
    "is_separate",
    "parse_canonical",
    "policy_digest",
    "preset",
    "register_processing",
    "sign_checkpoint",
    "trace",
    "verify_assessed",
    "verify_checkpoint",
    "verify_consistency",
    "verify_equivocation",
    "verify_inclusion",
    "verify_log_signature",
    "verify_notice",
    "verify_published",
]
