import pytest

from consent import JsonValue, Log, LogError
from consent.topic import Told, Topic


def event(kind: str, at: int) -> dict[str, JsonValue]:
    return {"type": kind, "v": 1, "at": at}


@pytest.fixture
def topic(log: Log) -> Topic:
    return Topic(log, ("a.began", "a.ended"))


def test_the_events_of_a_topic_are_found_again(topic: Topic, log: Log) -> None:
    log.append(event("other", 1))
    first = topic.append(event("a.began", 2))
    Topic(log, ("b.began",)).append(event("b.began", 3))
    second = topic.append(event("a.ended", 4))

    assert topic.events() == [
        Told(first, event("a.began", 2)),
        Told(second, event("a.ended", 4)),
    ]
    assert topic.latest("a.began") == Told(first, event("a.began", 2))
    assert topic.latest("b.ended") is None
    topic.verify()


def test_an_event_of_another_type_is_refused(topic: Topic) -> None:
    with pytest.raises(ValueError, match=r"this topic holds no events of the type b\.began"):
        topic.append(event("b.began", 1))


def test_what_is_rolled_back_was_never_told(topic: Topic, log: Log) -> None:
    def fail() -> None:
        with log.transaction():
            topic.append(event("a.began", 1))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()

    assert (topic.events(), log.tree_size) == ([], 0)


def test_a_table_that_hides_an_event_is_detected(topic: Topic, log: Log) -> None:
    topic.append(event("a.began", 1))
    with log.transaction() as transaction:
        transaction.connection.execute("DELETE FROM topic")
    with pytest.raises(LogError, match="do not name the events that its log holds"):
        topic.verify()


def test_a_table_that_calls_an_event_something_else_is_not_believed(topic: Topic, log: Log) -> None:
    topic.append(event("a.began", 1))
    with log.transaction() as transaction:
        transaction.connection.execute("UPDATE topic SET kind = 'a.ended'")
    for read in (topic.events, topic.verify, lambda: topic.latest("a.ended")):
        with pytest.raises(LogError, match=r"entry 0 is not the a\.ended that the tables say"):
            read()


def test_an_event_outside_of_the_table_is_detected(topic: Topic, log: Log) -> None:
    log.append(event("a.began", 1))
    with pytest.raises(LogError, match="do not name the events that its log holds"):
        topic.verify()


@pytest.mark.parametrize("value", [7, None, True])
def test_a_field_that_is_no_text_is_refused(value: JsonValue) -> None:
    with pytest.raises(LogError, match="entry 3 holds no text 'x'"):
        Told(3, {"x": value}).text("x")


@pytest.mark.parametrize("value", ["7", None, True])
def test_a_field_that_is_no_number_is_refused(value: JsonValue) -> None:
    with pytest.raises(LogError, match="entry 3 holds no number 'x'"):
        Told(3, {"x": value}).number("x")
