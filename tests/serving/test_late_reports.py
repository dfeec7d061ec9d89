"""What replicas say reaches control on two ways, and not always in the order in which it was said."""

from tests.serving.builders import replica
from tests.serving.test_machine import Control, only
from xgen_ray.schema import Phase
from xgen_ray.serving.state import Publish, ReplicaReported


def test_an_answer_from_before_a_replica_was_ready_changes_nothing() -> None:
    control = Control()
    control.load()
    pool = control.place()
    loading, ready = replica(state="loading", since=10.0), replica(since=15.0)
    control.feed(ReplicaReported(pool, loading))
    control.feed(ReplicaReported(pool, ready))
    assert control.phase() is Phase.READY
    assert control.feed(ReplicaReported(pool, loading)) == ()
    assert control.phase() is Phase.READY


def test_a_replica_that_failed_is_not_shown_when_it_answers_once_more() -> None:
    control = Control()
    pool = control.ready()
    effects = control.feed(ReplicaReported(pool, replica(state="failed")))
    assert only(effects, Publish).table.routes["small"].engines == ()
    assert control.state.models["small"].pools[pool].replicas == {}
    assert control.phase() is Phase.RECOVERING
