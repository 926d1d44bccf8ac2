"""Own a named Ed25519 key: who signs, and how a signature is bound to one meaning.

Public keys travel as C2SP verifier keys (`name+hash+base64`). Private keys stay in one file
that only its owner can read; nothing here prints or logs one.
"""

import base64
import binascii
import hashlib
import os
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ED25519 = 0x01
COSIGNATURE = 0x04
_PRIVATE = "PRIVATE+KEY+"


class SignatureError(Exception):
    """A signature is not the named key's signature of this message in this context."""


class IdentityError(ValueError):
    """A name, a verifier key or a key file is not what it must be."""


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """A name and the Ed25519 public key that speaks for it.

    Attributes:
        name: Printable, without spaces or '+'; a schema-less URL is recommended.
        key: The 32 bytes of RFC 8032.
    """

    name: str
    key: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.key) != 32:
            raise IdentityError(f"a public key must have 32 bytes, got {len(self.key)}")

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits for people to compare; they cover the name and the key."""
        return hashlib.sha256(_key_material(self.name, ED25519, self.key)).hexdigest()[:16]

    def key_id(self, signature_type: int) -> bytes:
        """Return the four bytes that name this key in a signed note.

        Source: https://c2sp.org/signed-note, "Signatures".
        """
        return hashlib.sha256(_key_material(self.name, signature_type, self.key)).digest()[:4]

    def verify(self, context: str, message: bytes, signature: bytes) -> None:
        """Raise `SignatureError` unless the key signed this message in this context."""
        self.verify_text(_separate(context, message), signature)

    def verify_text(self, text: bytes, signature: bytes) -> None:
        """Raise `SignatureError` unless the key signed exactly these bytes of a note."""
        try:
            Ed25519PublicKey.from_public_bytes(self.key).verify(signature, text)
        except (InvalidSignature, ValueError) as error:
            raise SignatureError(f"the signature is not one of {self.name}") from error

    def format(self) -> str:
        """Write the key as a C2SP verifier key that signs notes (type 0x01)."""
        return _format_key(self.name, self.key_id(ED25519), ED25519, self.key)

    def format_witness(self) -> str:
        """Write the key as a C2SP verifier key that cosigns checkpoints (type 0x04)."""
        return _format_key(self.name, self.key_id(COSIGNATURE), COSIGNATURE, self.key)

    @classmethod
    def parse(cls, text: str) -> "PublicIdentity":
        """Read a C2SP verifier key of type 0x01.

        Raises:
            IdentityError: Not a verifier key, another type, or a hash of another key.
        """
        return cls._parse(text, {ED25519})

    @classmethod
    def parse_witness(cls, text: str) -> "PublicIdentity":
        """Read a verifier key of type 0x04, or 0x01 for an identity that also cosigns."""
        return cls._parse(text, {ED25519, COSIGNATURE})

    @classmethod
    def _parse(cls, text: str, types: set[int]) -> "PublicIdentity":
        name, signature_type, key = _parse_key(text)
        if signature_type not in types:
            raise IdentityError(f"a verifier key must be Ed25519, got type {signature_type:#04x}")
        identity = cls(name, key)
        if _format_key(name, identity.key_id(signature_type), signature_type, key) != text:
            raise IdentityError("a verifier key must carry the hash of its own name and key")
        return identity


class Identity:
    """A private key with its name. Trusted: whoever can read its file can sign as its owner."""

    def __init__(self, name: str, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self._public = PublicIdentity(name, private_key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Identity({self._public.name!r}, fingerprint={self._public.fingerprint!r})"

    @classmethod
    def generate(cls, name: str) -> "Identity":
        """Make a new key from the operating system's randomness."""
        _check_name(name)
        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """Read a key file that only its owner can read.

        Raises:
            IdentityError: The file is missing, readable by others, or not a key file.
        """
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
            text = path.read_text().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise IdentityError(f"the key file {path} cannot be read") from error
        if mode & 0o077:
            raise IdentityError(f"the key file {path} must be readable by its owner only")
        if not text.startswith(_PRIVATE):
            raise IdentityError(f"the key file {path} does not hold a private key")
        name, signature_type, seed = _parse_key(text.removeprefix(_PRIVATE))
        if signature_type != ED25519 or len(seed) != 32:
            raise IdentityError(f"the key file {path} does not hold an Ed25519 key")
        identity = cls(name, Ed25519PrivateKey.from_private_bytes(seed))
        if identity._format_private() != text:
            raise IdentityError(f"the key file {path} was changed: its hash is of another key")
        return identity

    def save(self, path: Path) -> None:
        """Write the key file with mode 0600, durably, and never over an existing file.

        Raises:
            IdentityError: The file exists or cannot be written; nothing is left behind.
        """
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise IdentityError(f"the key file {path} exists and was not overwritten") from error
        except OSError as error:
            raise IdentityError(f"the key file {path} cannot be written") from error
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(self._format_private() + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            path.unlink(missing_ok=True)
            raise IdentityError(f"the key file {path} cannot be written") from error

    @property
    def name(self) -> str:
        """Return the name the key speaks for."""
        return self._public.name

    @property
    def public(self) -> PublicIdentity:
        """Return the half that may be given to anybody."""
        return self._public

    def sign(self, context: str, message: bytes) -> bytes:
        """Sign a message for one context; the signature means nothing in another.

        Args:
            context: What the signature is for, such as "plan"; printable ASCII.
            message: The bytes to sign.

        Returns:
            64 bytes of Ed25519 over "tillpact/", the context, a zero byte and the message.
        """
        return self._private_key.sign(_separate(context, message))

    def sign_text(self, text: bytes) -> bytes:
        """Sign the text of a note as C2SP asks, which knows no context.

        A note never holds a zero byte and every context message does, so that neither kind of
        signature can be passed off as the other.
        """
        if b"\0" in text:
            raise ValueError("the text of a note must not hold a zero byte")
        return self._private_key.sign(text)

    def _format_private(self) -> str:
        seed = self._private_key.private_bytes_raw()
        key_id = self._public.key_id(ED25519)
        return _PRIVATE + _format_key(self.name, key_id, ED25519, seed)


def _check_name(name: str) -> None:
    if not name or not name.isprintable() or "+" in name or any(c.isspace() for c in name):
        raise IdentityError("a name must be printable and hold no space and no '+'")
    if not unicodedata.is_normalized("NFC", name):
        raise IdentityError("a name must be in Unicode normal form C")


def _separate(context: str, message: bytes) -> bytes:
    if not (context and context.isascii() and context.isprintable()):
        raise ValueError("a signing context must be printable ASCII")
    return b"tillpact/" + context.encode() + b"\0" + message


def _key_material(name: str, signature_type: int, key: bytes) -> bytes:
    return name.encode() + b"\n" + bytes([signature_type]) + key


def _format_key(name: str, key_id: bytes, signature_type: int, key: bytes) -> str:
    material = base64.b64encode(bytes([signature_type]) + key).decode()
    return f"{name}+{key_id.hex()}+{material}"


def _parse_key(text: str) -> tuple[str, int, bytes]:
    # Base64 itself may hold '+', the name and the hash may not: split from the left.
    parts = text.split("+", 2)
    if len(parts) != 3:
        raise IdentityError("a verifier key must read name+hash+base64")
    try:
        material = base64.b64decode(parts[2], validate=True)
    except (binascii.Error, ValueError) as error:
        raise IdentityError("a verifier key must end in base64") from error
    if not material:
        raise IdentityError("a verifier key must hold a key")
    return parts[0], material[0], material[1:]
