"""What somebody reads next in the log of a model, whose engines come and go. Pure.

A place in a log is a replica's id and a line's number. A replica has one engine and dies with it, so another
id is another engine's log, in which the number means nothing: that log is read from its start.
"""

from collections.abc import Sequence

from xgen_ray.process.logs import excerpt
from xgen_ray.schema import FailureReport, LogPage
from xgen_ray.serving.state import App, Model

# A replica's id, lines of its, and the number of the next one.
Answer = tuple[str, tuple[str, ...], int]


def where_to_start(replica_id: str | None, after: int, of: str | None) -> int:
    """The number to read this replica's log from, for one who has read that of ``of`` up to ``after``."""
    return after if of in (None, replica_id) else 0


def home_of(model: Model, replica_id: str | None) -> App | None:
    """The app that a replica is of, or was: its successor is of the same. None if it is of none by now."""
    if replica_id is None:
        return None
    homes = (app for app in model.live if replica_id in app.replicas or replica_id in app.ended)
    return next(homes, None)


def next_page(
    model: Model, answers: Sequence[Answer], *, after: int, limit: int, of: str | None = None
) -> LogPage:
    """The page for one who has read the log of ``of`` up to ``after``; None: of none yet.

    He stays with a replica while it lives. Of one that has failed he gets the last lines, then those of
    replicas that failed after it in its place, then the log of the one that is there now.
    """
    nothing = LogPage(model=model.name, replica_id=of, lines=(), next=after)
    found = {answer[0]: answer for answer in answers}
    if of in found:
        return _page(model, found[of])
    home = home_of(model, of)
    if home is not None and of in home.replicas:
        # It lives, and is only late to answer.
        return nothing
    for failure in _since(model, of, home):
        page = _last_words(model, failure, after, limit, of)
        if page.lines:
            return page
    if answers:
        return _page(model, min(answers))
    if of is None and model.failures:
        return _last_words(model, model.failures[0], after, limit, of)
    return nothing


def page_of_one(
    model: Model, replica_id: str, answers: Sequence[Answer], *, after: int, limit: int, of: str | None
) -> LogPage | None:
    """The same of one replica and no other. None: it is gone, and who followed it has had its last words."""
    start = where_to_start(replica_id, after, of)
    theirs = [answer for answer in answers if answer[0] == replica_id]
    page = next_page(model, theirs, after=start, limit=limit, of=replica_id)
    lives = theirs or any(replica_id in app.replicas for app in model.live)
    farewell = of == replica_id == page.replica_id and page.lines
    return page if lives or farewell else None


def _page(model: Model, answer: Answer) -> LogPage:
    replica_id, lines, position = answer
    return LogPage(model=model.name, replica_id=replica_id, lines=lines, next=position)


def _since(model: Model, of: str | None, home: App | None) -> list[FailureReport]:
    """The failure of this replica and those after it, in its home if it has one still; oldest first."""
    ids = [failure.replica_id for failure in model.failures]
    if of is None or of not in ids:
        return []
    failures = model.failures[: ids.index(of) + 1]
    return [one for one in reversed(failures) if home is None or one.replica_id in home.ended]


def _last_words(model: Model, failure: FailureReport, after: int, limit: int, of: str | None) -> LogPage:
    tail, replica_id = failure.log_tail, failure.replica_id
    total = len(tail) if failure.log_end is None else failure.log_end
    lines, position = excerpt(tail, total, where_to_start(replica_id, after, of), limit)
    return LogPage(model=model.name, replica_id=replica_id, lines=lines, next=position)
