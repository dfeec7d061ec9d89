"""What somebody reads next in a log, while engines die and others take their place."""

from tests.serving.builders import GIB, failure, replica, request, view
from tests.serving.machine_builders import Control
from xgen_ray.schema import LogPage
from xgen_ray.serving.effects import PrepareApp
from xgen_ray.serving.events import AppPrepared, ReplicaReported
from xgen_ray.serving.log_pages import Answer, home_of, next_page, page_of_one, where_to_start
from xgen_ray.serving.state import Model


def die(control: Control, app: str, replica_id: str, *last_words: str, end: int, at: float = 10.0) -> None:
    death = failure(at=at).model_copy(update={"log_tail": last_words, "log_end": end})
    control.feed(ReplicaReported(app, replica(replica_id, "failed"), death))


def model_of(control: Control) -> Model:
    return control.state.models["small"]


def read(
    control: Control, *answers: Answer, after: int = 0, of: str | None = None, limit: int = 9
) -> LogPage:
    return next_page(model_of(control), answers, after=after, limit=limit, of=of)


def told(page: LogPage) -> tuple[str | None, tuple[str, ...], int]:
    return page.replica_id, page.lines, page.next


def test_a_number_counts_in_the_log_that_it_was_read_in() -> None:
    assert where_to_start("r1", 400, "r1") == 400
    assert where_to_start("r2", 400, "r1") == 0
    assert where_to_start("r2", 400, None) == 400, "who does not say whose it is means this one"


def test_a_follower_stays_with_its_replica_while_that_lives() -> None:
    control = Control()
    control.ready()
    others = ("r0", ("another's",), 1), ("r1", ("its own",), 5)
    assert told(read(control, *others)) == ("r0", ("another's",), 1)
    assert told(read(control, *others, after=4, of="r1")) == ("r1", ("its own",), 5)
    assert told(read(control, others[0], after=4, of="r1")) == ("r1", (), 4), "it is only late to answer"


def test_what_an_engine_printed_last_comes_before_its_successors_log() -> None:
    control = Control()
    app = control.ready()
    die(control, app, "r1", "line 8", "line 9", end=10)
    successor = ("r2", ("line 0",), 1)
    assert told(read(control, successor, after=9, of="r1")) == ("r1", ("line 9",), 10)
    assert told(read(control, successor, after=10, of="r1")) == ("r2", ("line 0",), 1)
    assert told(read(control, after=10, of="r1")) == ("r1", (), 10), "there is none yet"
    early = read(control, successor, after=5, of="r1", limit=1)
    assert told(early) == ("r1", ("... 3 lines dropped", "line 8"), 9)


def test_engines_that_died_between_two_looks_are_told_in_turn() -> None:
    control = Control()
    app = control.ready()
    die(control, app, "r1", "of r1", end=7, at=10.0)
    die(control, app, "r2", "of r2", end=1, at=11.0)
    die(control, app, "r3", "of r3", end=1, at=12.0)
    page, pages = read(control, after=7, of="r1"), []
    while page.lines:
        pages.append(told(page))
        page = read(control, after=page.next, of=page.replica_id)
    assert pages == [("r2", ("of r2",), 1), ("r3", ("of r3",), 1)]


def test_other_replicas_deaths_are_nothing_to_who_waits_for_a_successor() -> None:
    control = Control()
    control.load(asked=request(replicas=2, options={"spread": True}))
    for effect in control.look("small", GIB, view("n1"), view("n2")):
        if isinstance(effect, PrepareApp):
            control.feed(AppPrepared(effect.app, effect.plan, 3.0))
    one, other = model_of(control).live
    for app, replica_id in ((one, "r1"), (other, "r9")):
        control.feed(ReplicaReported(app.name, replica(replica_id)))
    die(control, one.name, "r1", "of r1", end=1, at=10.0)
    die(control, other.name, "r9", "of r9", end=1, at=11.0)
    home = home_of(model_of(control), "r1")
    assert home is not None
    assert home.name == one.name
    assert told(read(control, of="r1")) == ("r1", ("of r1",), 1)
    assert told(read(control, after=1, of="r1")) == ("r1", (), 1)


def test_the_log_of_a_model_without_an_engine_is_what_the_last_one_said() -> None:
    control = Control()
    control.load()
    assert told(read(control)) == (None, (), 0)
    app = control.place()
    die(control, app, "r1", "line 8", "line 9", end=10)
    assert told(read(control)) == ("r1", ("... 8 lines dropped", "line 8", "line 9"), 10)


def test_one_replica_alone_is_followed_to_its_end() -> None:
    control = Control()
    app = control.ready()

    def one(*answers: Answer, after: int = 0, of: str | None = None) -> LogPage | None:
        return page_of_one(model_of(control), "r1", answers, after=after, limit=9, of=of)

    other = ("r2", ("another's",), 1)
    page = one(other, ("r1", ("its own",), 1), after=7, of="r2")
    assert page is not None
    assert told(page) == ("r1", ("its own",), 1)
    late = one(other, after=4, of="r1")
    assert late is not None
    assert told(late) == ("r1", (), 4)
    die(control, app, "r1", "line 8", "line 9", end=10)
    farewell = one(other, after=9, of="r1")
    assert farewell is not None
    assert told(farewell) == ("r1", ("line 9",), 10)
    assert one(other, after=10, of="r1") is None
    assert one(other) is None
