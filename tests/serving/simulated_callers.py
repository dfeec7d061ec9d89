"""Those who ask control for something in a simulated world, and what they may rely on since."""

from dataclasses import dataclass, field

from xgen_ray.errors import NameConflict
from xgen_ray.serving.effects import Answer


@dataclass
class Callers:
    """``ask`` and ``order`` begin a call, ``hear`` ends it, ``hang_up`` breaks all that wait."""

    open: set[str] = field(default_factory=set)
    # What the last acknowledged operation made of a name, and of a node: whether it is closed.
    promised: dict[str, bool] = field(default_factory=dict)
    closed: dict[str, bool] = field(default_factory=dict)
    # Names that control has unloaded by itself, to make room.
    evicted: set[str] = field(default_factory=set)
    _count: int = 0
    _answered: set[str] = field(default_factory=set)
    # What each caller wants of which name: that it is loaded (True), that it is not (False), or something of
    # it as it is (None), which takes nothing back that was promised.
    _asked: dict[str, tuple[str, bool | None]] = field(default_factory=dict)
    # What each caller wants of which node: a drain (True), or its end (False).
    _orders: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def ask(self, name: str, *, is_load: bool | None) -> str:
        caller = self._begin()
        self._asked[caller] = (name, is_load)
        return caller

    def order(self, node: str, *, is_closing: bool) -> str:
        caller = self._begin()
        self._orders[caller] = (node, is_closing)
        return caller

    def hear(self, answer: Answer) -> None:
        caller, is_error = answer.caller, answer.error is not None
        assert caller not in self._answered, "every caller is answered once"
        self._answered.add(caller)
        self.open.discard(caller)
        if caller in self._orders:
            node, is_closing = self._orders[caller]
            if not is_error:
                self.closed[node] = is_closing
            return
        name, is_load = self._asked[caller]
        if not is_error and is_load is not None:
            self.promised[name] = is_load
        elif is_load and not isinstance(answer.error, NameConflict):
            # A load that is refused for its name's sake changes nothing.
            self.promised.pop(name, None)

    def hang_up(self) -> None:
        """Their connections broke. They cannot know, so nothing is promised about what they asked for."""
        for caller in self.open:
            if caller in self._orders:
                self.closed.pop(self._orders[caller][0], None)
                continue
            name, is_load = self._asked[caller]
            if is_load is not None:
                self.promised.pop(name, None)
        self.open.clear()

    def _begin(self) -> str:
        self._count += 1
        caller = f"c{self._count}"
        self.open.add(caller)
        return caller
