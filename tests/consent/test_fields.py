import pytest

from consent.fields import FieldError, Fields

DOCUMENT = {"text": "a", "null": None, "count": 3, "flag": True, "texts": ["a"], "one": {"a": 1}}


def fields() -> Fields:
    return Fields(DOCUMENT, where="the thing")


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda: fields().text("count"), "count of the thing must be a non-empty text"),
        (lambda: fields().text("no"), "no of the thing is missing"),
        (lambda: fields().optional_text("count"), "count of the thing must be a non-empty text"),
        (lambda: fields().count("flag"), "flag of the thing must be an integer of at least 0"),
        (lambda: fields().flag("count"), "count of the thing must be true or false"),
        (lambda: fields().texts("text"), "text of the thing must be a list of non-empty texts"),
        (lambda: fields().each("one"), "one of the thing must be a list of objects"),
        (lambda: fields().each("texts"), r"texts of the thing\[0\] must be an object"),
        (lambda: fields().inner("text"), "text of the thing must be an object"),
        (lambda: fields().inner("one").text("b"), "b of one of the thing is missing"),
        (lambda: fields().finish(), "the thing holds an unknown field 'count'"),
        (lambda: Fields([], where="the thing"), "the thing must be an object"),
    ],
)
def test_what_is_wrong_is_one_sentence(read: object, message: str) -> None:
    with pytest.raises(FieldError, match=message):
        read()  # type: ignore[operator]


def test_a_document_that_was_read_completely_is_finished() -> None:
    read = fields()
    said = (
        read.text("text"),
        read.optional_text("null"),
        read.count("count"),
        read.flag("flag"),
        read.texts("texts"),
        read.inner("one").keys(),
    )
    read.finish()

    assert said == ("a", None, 3, True, ("a",), ("a",))
