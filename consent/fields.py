"""Read a parsed document field by field, so that what is wrong with it is one sentence.

Nothing is guessed: a missing field, a field of another kind and a field that nobody asked for
are all errors, and the sentence names the field and never its value.
"""

from collections.abc import Mapping


class FieldError(ValueError):
    """A document misses a field, holds an unknown one, or holds the wrong kind of value."""


class Fields:
    """One object of a document, of which every field must be asked for once."""

    def __init__(self, value: object, *, where: str) -> None:
        """Take the object.

        Args:
            value: What a parser of JSON or TOML returned.
            where: How to name the object in an error, such as "the receipt".

        Raises:
            FieldError: The value is not an object.
        """
        if not isinstance(value, Mapping):
            raise FieldError(f"{where} must be an object")
        self._value: dict[str, object] = dict(value)
        self._where = where
        self._asked: set[str] = set()

    def text(self, key: str) -> str:
        """Return a non-empty string."""
        value = self._ask(key)
        if not (isinstance(value, str) and value):
            raise FieldError(f"{self._name(key)} must be a non-empty text")
        return value

    def optional_text(self, key: str) -> str | None:
        """Return a non-empty string, or None where the field holds null."""
        return None if self._ask(key) is None else self.text(key)

    def is_null(self, key: str) -> bool:
        """Tell whether a field that must be there holds null."""
        return self._ask(key) is None

    def count(self, key: str) -> int:
        """Return an integer of at least zero."""
        value = self._ask(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise FieldError(f"{self._name(key)} must be an integer of at least 0")
        return value

    def flag(self, key: str) -> bool:
        """Return true or false."""
        value = self._ask(key)
        if not isinstance(value, bool):
            raise FieldError(f"{self._name(key)} must be true or false")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of non-empty strings."""
        value = self._ask(key)
        texts = value if isinstance(value, list) else [None]
        if not all(isinstance(text, str) and text for text in texts):
            raise FieldError(f"{self._name(key)} must be a list of non-empty texts")
        return tuple(texts)

    def inner(self, key: str) -> "Fields":
        """Return the object that a field holds."""
        return Fields(self._ask(key), where=self._name(key))

    def each(self, key: str) -> tuple["Fields", ...]:
        """Return a list of objects."""
        value = self._ask(key)
        if not isinstance(value, list):
            raise FieldError(f"{self._name(key)} must be a list of objects")
        return tuple(
            Fields(item, where=f"{self._name(key)}[{place}]") for place, item in enumerate(value)
        )

    def keys(self) -> tuple[str, ...]:
        """Return the names of all fields, for an object whose names are data."""
        return tuple(self._value)

    def finish(self) -> None:
        """Raise `FieldError` when a field was never asked for."""
        unknown = sorted(str(key) for key in self._value.keys() - self._asked)
        if unknown:
            # The name comes from whoever wrote the document: quoted, and cut short.
            raise FieldError(f"{self._where} holds an unknown field {unknown[0][:40]!r}")

    def _ask(self, key: str) -> object:
        if key not in self._value:
            raise FieldError(f"{self._name(key)} is missing")
        self._asked.add(key)
        return self._value[key]

    def _name(self, key: str) -> str:
        return f"{key} of {self._where}"
