"""What replicas say reaches control on two ways, and not always in the order in which it was said."""

from tests.serving.builders import failure, replica
from tests.serving.machine_builders import Control, only
from xgen_ray.schema import Phase
from xgen_ray.serving.effects import Publish
from xgen_ray.serving.events import ReplicaReported


def test_an_answer_from_before_a_replica_was_ready_changes_nothing() -> None:
    control = Control()
    control.load()
    app = control.place()
    loading, ready = replica(state="loading", since=10.0), replica(since=15.0)
    control.feed(ReplicaReported(app, loading))
    control.feed(ReplicaReported(app, ready))
    assert control.phase() is Phase.READY
    assert control.feed(ReplicaReported(app, loading)) == ()
    assert control.phase() is Phase.READY


def test_a_replica_that_failed_is_not_shown_when_it_answers_once_more() -> None:
    control = Control()
    app = control.ready()
    effects = control.feed(ReplicaReported(app, replica(state="failed")))
    assert only(effects, Publish).table.routes["small"].engines == ()
    assert control.state.models["small"].apps[app].replicas == {}
    assert control.phase() is Phase.RECOVERING


def test_an_answer_from_before_a_replicas_end_does_not_bring_it_back() -> None:
    control = Control()
    control.load()
    app = control.place()
    loading, ended = replica(state="loading", since=10.0), replica(state="failed", since=12.0)
    control.feed(ReplicaReported(app, loading))
    control.feed(ReplicaReported(app, ended, failure("gpu_page_fault", 12.0)))
    assert control.feed(ReplicaReported(app, loading)) == ()
    assert control.state.models["small"].apps[app].replicas == {}
    control.feed(ReplicaReported(app, replica("r2", since=13.0)))
    assert control.phase() is Phase.READY
    assert control.state.models["small"].apps[app].replicas.keys() == {"r2"}


def test_how_a_replica_ended_is_heard_after_its_last_answer() -> None:
    control = Control()
    app = control.ready()
    ended = replica(state="failed", since=20.0)
    control.feed(ReplicaReported(app, ended))
    control.feed(ReplicaReported(app, ended, failure("gpu_page_fault", 20.0)))
    model = control.state.models["small"]
    assert [one.failure for one in model.failures] == ["gpu_page_fault"]
    assert model.apps[app].replicas == {}
