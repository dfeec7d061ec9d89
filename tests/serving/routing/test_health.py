"""Back-off, trials, and what is no failure at all."""

from xgen_ray.serving.routing.health import Health
from xgen_ray.serving.routing.rules import RoutingRules

RULES = RoutingRules(backoff_s=1.0, backoff_max_s=8.0, full_s=0.5)


def failing(times: int, at: float = 0.0) -> tuple[Health, float]:
    """A record with so many failures in a row, and when the last one was."""
    health = Health(RULES)
    for ticket in range(times):
        at = max(at, health.blocked_until)
        health.chosen(ticket)
        health.failed(ticket, started=at, now=at + 0.1)
    return health, at + 0.1


def test_the_pause_doubles_with_each_failure_up_to_a_bound() -> None:
    pauses = []
    for times in range(1, 7):
        health, at = failing(times)
        pauses.append(round(health.blocked_until - at, 6))
    assert pauses == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_an_engine_that_dies_with_many_requests_has_failed_once() -> None:
    health = Health(RULES)
    for ticket in range(30):
        health.failed(ticket, started=0.0, now=5.0 + ticket / 1000)
    assert health.failures == 1
    assert health.blocked_until == 6.0


def test_after_the_pause_one_request_tries_and_no_second() -> None:
    health, at = failing(2)
    assert not health.may_be_asked(at + 1.9)
    assert health.may_be_asked(at + 2.0)
    health.chosen(7)
    assert not health.may_be_asked(at + 3.0)


def test_a_trial_that_succeeds_ends_the_doubt() -> None:
    health, at = failing(3)
    health.chosen(7)
    health.answered(7, started=at + 5)
    assert health.well
    assert health.may_be_asked(at)


def test_a_trial_that_fails_waits_twice_as_long() -> None:
    health, at = failing(2)
    health.chosen(7)
    health.failed(7, started=at + 2, now=at + 3)
    assert health.blocked_until == at + 3 + 4.0


def test_the_first_byte_of_a_trial_makes_room_for_the_next() -> None:
    health, at = failing(2)
    health.chosen(7)
    health.answering(6)
    assert not health.may_be_asked(at + 2)
    health.answering(7)
    assert health.may_be_asked(at + 2)
    assert health.failures == 2


def test_an_engine_that_always_breaks_off_waits_longer_and_longer() -> None:
    health, at = failing(2)
    health.chosen(7)
    health.answering(7)
    health.chosen(8)
    health.failed(7, started=at + 2, now=at + 9)
    assert health.blocked_until == at + 9 + 4.0
    health.failed(8, started=at + 8, now=at + 9.1)
    assert health.failures == 3


def test_an_answer_that_ends_well_ends_the_trial_of_another() -> None:
    health, at = failing(1)
    health.chosen(7)
    health.answering(7)
    health.chosen(8)
    health.answered(7, started=at + 1)
    assert health.well
    assert health.may_be_asked(at + 2)


def test_a_trial_whose_client_left_decides_nothing_and_makes_room_for_the_next() -> None:
    health, at = failing(2)
    health.chosen(7)
    health.undecided(7)
    assert health.failures == 2
    assert health.may_be_asked(at + 2)


def test_an_answer_to_a_request_from_before_the_failure_proves_nothing() -> None:
    health = Health(RULES)
    health.failed(1, started=2.0, now=3.0)
    health.answered(2, started=1.0)
    assert not health.may_be_asked(3.5)


def test_a_full_engine_pauses_without_having_failed() -> None:
    health = Health(RULES)
    health.full(1, now=3.0)
    assert not health.may_be_asked(3.4)
    assert health.may_be_asked(3.5)
    assert health.failures == 0
    health.answered(2, started=3.6)
    assert health.well
