"""The scheduler against a world that carries out its actions late, in any order, and breaks things.

`World` keeps its own books from the actions alone and checks every action and the whole state against them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from loopaid.core.actions import Action, CloseSession, Grant, Refuse, StartSession, Yield
from loopaid.core.claims import SessionKey
from loopaid.core.scheduler import Scheduler
from loopaid.core.sessions import PoolLimits, SchedulerLimits
from loopaid.model import Isolation

LANGUAGES = ("python", "javascript")
FOREVER = 1e9
EXECUTIONS_MAX = 20


@dataclass
class Batch:
    name: str
    language: str
    key: SessionKey
    priority: int
    wanted: int
    worthwhile: int = 9
    held: set[str] = field(default_factory=set)
    grants: int = 0


@dataclass
class Env:
    """A session as the world sees it."""

    language: str
    ordered_at: float
    place: str = "starting"  # then ready, leased, stopping
    key: SessionKey | None = None
    executions: int = 0
    asked_back: bool = False
    holder: Batch | None = None


def executions_for(key: SessionKey) -> int:
    return 1 if key.isolation is Isolation.PROCESS else EXECUTIONS_MAX


class World:
    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.scheduler = Scheduler(limits, prefix="")
        self.now = 0.0
        self.batches: dict[str, Batch] = {}
        self.envs: dict[str, Env] = {}
        self.failing: dict[str, float] = {}  # languages whose last start failed, and when
        self._names = 0
        self._before: dict[str, int] = {}  # sessions per language, and of all, at the last check

    # What the scheduler asks for

    def apply(self, actions: list[Action]) -> list[Action]:
        granted = {action.session_id for action in actions if isinstance(action, Grant)}
        for action in actions:
            match action:
                case StartSession(session_id, language):
                    assert session_id not in self.envs
                    self.envs[session_id] = Env(language, self.now)
                case Grant(session_id, claim_id, executions_max):
                    env, batch = self.envs[session_id], self.batches[claim_id]
                    assert env.executions < executions_max == executions_for(batch.key)
                    self._granted(env, session_id, batch)
                case Yield(session_id, claim_id, _):
                    env = self.envs[session_id]
                    assert env.holder is not None and env.holder.name == claim_id
                    assert not env.asked_back, "asked twice"
                    assert session_id not in granted, "granted and asked back in the same moment"
                    env.asked_back = True
                case CloseSession(session_id, _):
                    assert self.envs[session_id].place == "ready"
                    self.envs[session_id].place = "stopping"
                case Refuse(claim_id, _):
                    assert not self.batches.pop(claim_id).held
        return actions

    def _granted(self, env: Env, session_id: str, batch: Batch) -> None:
        assert env.place == "ready", f"{session_id} is {env.place}"
        assert env.language == batch.language
        assert env.key in (None, batch.key), "a session changed its artifact"
        assert len(batch.held) < batch.wanted
        env.place, env.key, env.holder = "leased", batch.key, batch
        batch.held.add(session_id)
        batch.grants += 1

    # What happens in the world

    def claim(
        self,
        language: str,
        program: str,
        priority: int,
        wanted: int,
        worthwhile: int = 9,
        isolation: Isolation = Isolation.SESSION,
    ) -> Batch:
        self._names += 1
        batch = Batch(f"b{self._names}", language, SessionKey(1, f"{language} {program}", isolation), priority, 0)
        self.batches[batch.name] = batch
        self.change(batch, priority, wanted, worthwhile)
        return batch

    def change(self, batch: Batch, priority: int, wanted: int, worthwhile: int) -> None:
        batch.priority, batch.wanted, batch.worthwhile = priority, wanted, worthwhile
        self.apply(
            self.scheduler.claim(
                self.now,
                batch.name,
                language=batch.language,
                key=batch.key,
                priority=priority,
                wanted=wanted,
                worthwhile=worthwhile,
            )
        )

    def withdraw(self, batch: Batch) -> None:
        del self.batches[batch.name]
        batch.wanted = 0
        self.apply(self.scheduler.withdraw(self.now, batch.name))

    def started(self, session_id: str, cost: float) -> None:
        env = self.envs[session_id]
        env.place = "ready"
        if env.ordered_at > self.failing.get(env.language, FOREVER):
            del self.failing[env.language]
        self.apply(self.scheduler.session_started(self.now, session_id, cost))

    def failed(self, session_id: str) -> None:
        self.failing[self.envs.pop(session_id).language] = self.now
        self.apply(self.scheduler.session_failed(self.now, session_id, "broken"))

    def release(self, session_id: str, clean: bool = True) -> None:
        self._end_lease(session_id)
        self.envs[session_id].place = "ready"
        self.envs[session_id].executions += 1
        self.apply(self.scheduler.release(self.now, session_id, executions=1, clean=clean))

    def closed(self, session_id: str) -> None:
        del self.envs[session_id]
        self.apply(self.scheduler.session_closed(self.now, session_id))

    def lost(self, session_id: str) -> None:
        env = self.envs[session_id]
        if env.place == "leased":
            self._end_lease(session_id)
        if env.place == "starting" or (env.place == "ready" and env.key is None):
            self.failing[env.language] = self.now
        del self.envs[session_id]
        self.apply(self.scheduler.session_lost(self.now, session_id, "died"))

    def _end_lease(self, session_id: str) -> None:
        env = self.envs[session_id]
        assert env.holder is not None
        env.holder.held.remove(session_id)
        env.holder, env.asked_back = None, False

    def resize(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.apply(self.scheduler.resize(self.now, limits))
        for pool in limits.pools:
            envs = [env for env in self.envs.values() if env.language == pool.language]
            unused = [env for env in envs if env.place == "ready"]
            staying = [env for env in envs if env.place != "stopping" and not env.asked_back]
            assert len(staying) <= pool.size_max or not unused, "an unused session was kept instead of a used one"

    def tick(self) -> list[Action]:
        return self.apply(self.scheduler.tick(self.now))

    def at(self, place: str) -> list[str]:
        return [session_id for session_id, env in self.envs.items() if env.place == place]

    def asked_back(self) -> list[str]:
        return [session_id for session_id, env in self.envs.items() if env.asked_back]

    def step(self) -> bool:
        """Do one thing that was asked for, or let time pass to the next deadline. False: nothing is left to do
        but to wait for the end of some session."""
        if starting := self.at("starting"):
            self.started(starting[0], 0.05)
        elif stopping := self.at("stopping"):
            self.closed(stopping[0])
        elif asked_back := self.asked_back():
            self.release(asked_back[0])
        else:
            deadline = self.scheduler.next_deadline()
            if deadline is None or deadline >= FOREVER:
                return False
            self.now = max(self.now, deadline)
            self.tick()
        return True

    # What must hold at any time

    def check(self) -> None:
        by_language = {language: [e for e in self.envs.values() if e.language == language] for language in LANGUAGES}
        self._check_size("all", len(self.envs), self.limits.sessions_max)
        for pool in self.limits.pools:
            envs = by_language[pool.language]
            self._check_size(pool.language, len(envs), pool.size_max)
            self._check_statistics(pool.language, envs)
            room = len(envs) < pool.size_max and len(self.envs) < self.limits.sessions_max
            self._check_nobody_waits_for_nothing(pool.language, envs, room)

    def _check_size(self, name: str, count: int, size: int) -> None:
        assert count <= max(size, self._before.get(name, 0)), "more than before, although there are too many"
        self._before[name] = count

    def _check_statistics(self, language: str, envs: list[Env]) -> None:
        statistics = self.scheduler.statistics(language, self.now)
        assert statistics.total == len(envs)
        assert statistics.starting == sum(e.place == "starting" for e in envs)
        assert statistics.spares == sum(e.place == "ready" and e.key is None for e in envs)
        assert statistics.idle == sum(e.place == "ready" and e.key is not None for e in envs)
        assert statistics.active == sum(e.place == "leased" for e in envs)
        assert statistics.stopping == sum(e.place == "stopping" for e in envs)
        running = statistics.total - statistics.starting
        assert statistics.created == running + sum(statistics.destroyed.values())

    def _check_nobody_waits_for_nothing(self, language: str, envs: list[Env], room: bool) -> None:
        lacking = [b for b in self.batches.values() if b.language == language and len(b.held) < b.wanted]
        ready = [env for env in envs if env.place == "ready"]
        for batch in lacking:
            assert not [env for env in ready if env.key in (None, batch.key)], f"{batch} waits beside a free session"
        starting = sum(env.place == "starting" for env in envs)
        if room and language not in self.failing:
            worth = sum(max(0, min(batch.wanted, batch.worthwhile) - len(batch.held)) for batch in lacking)
            assert worth <= starting, "a slot is free"


def limits(python: int, javascript: int, together: int, warm: int) -> SchedulerLimits:
    return SchedulerLimits(
        pools=(PoolLimits("python", python, warm), PoolLimits("javascript", javascript)),
        sessions_max=together,
        idle_timeout_s=300,
        lifetime_max_s=1000,
        executions_max=EXECUTIONS_MAX,
        slice_ms=2000,
    )


def pick(data: st.DataObject, choices: list[str]) -> str:
    return data.draw(st.sampled_from(sorted(choices)))


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        python=st.integers(1, 4), javascript=st.integers(1, 3), together=st.integers(1, 5), warm=st.integers(0, 2)
    )
    def begin(self, python: int, javascript: int, together: int, warm: int) -> None:
        self.world = World(limits(python, javascript, together, warm))
        self.world.tick()

    @rule(
        language=st.sampled_from(LANGUAGES),
        program=st.sampled_from("ABC"),
        priority=st.integers(0, 9),
        wanted=st.integers(0, 4),
        worthwhile=st.integers(1, 4),
        isolation=st.sampled_from(Isolation),
    )
    def batch_arrives(
        self, language: str, program: str, priority: int, wanted: int, worthwhile: int, isolation: Isolation
    ) -> None:
        self.world.claim(language, program, priority, wanted, worthwhile, isolation)

    @precondition(lambda self: self.world.batches)
    @rule(data=st.data(), priority=st.integers(0, 9), wanted=st.integers(0, 4), worthwhile=st.integers(1, 4))
    def batch_wants_something_else(self, data: st.DataObject, priority: int, wanted: int, worthwhile: int) -> None:
        batch = self.world.batches[pick(data, list(self.world.batches))]
        self.world.change(batch, priority, wanted, worthwhile)

    @precondition(lambda self: self.world.batches)
    @rule(data=st.data())
    def batch_goes(self, data: st.DataObject) -> None:
        self.world.withdraw(self.world.batches[pick(data, list(self.world.batches))])

    @precondition(lambda self: self.world.at("starting"))
    @rule(data=st.data(), cost=st.sampled_from([0.01, 0.1, 2.0]))
    def session_starts(self, data: st.DataObject, cost: float) -> None:
        self.world.started(pick(data, self.world.at("starting")), cost)

    @precondition(lambda self: self.world.at("starting"))
    @rule(data=st.data())
    def session_fails_to_start(self, data: st.DataObject) -> None:
        self.world.failed(pick(data, self.world.at("starting")))

    @precondition(lambda self: self.world.at("leased"))
    @rule(data=st.data(), clean=st.booleans())
    def lease_is_released(self, data: st.DataObject, clean: bool) -> None:
        self.world.release(pick(data, self.world.at("leased")), clean)

    @precondition(lambda self: self.world.asked_back())
    @rule(data=st.data())
    def lease_is_returned_as_asked(self, data: st.DataObject) -> None:
        self.world.release(pick(data, self.world.asked_back()))

    @precondition(lambda self: self.world.at("stopping"))
    @rule(data=st.data())
    def session_is_closed(self, data: st.DataObject) -> None:
        self.world.closed(pick(data, self.world.at("stopping")))

    @precondition(lambda self: self.world.envs)
    @rule(data=st.data())
    def session_dies(self, data: st.DataObject) -> None:
        self.world.lost(pick(data, list(self.world.envs)))

    @rule(language=st.sampled_from(LANGUAGES), count=st.integers(0, 3))
    def somebody_warms_a_pool(self, language: str, count: int) -> None:
        self.world.apply(self.world.scheduler.warm(self.world.now, language, count))

    @rule(language=st.sampled_from(LANGUAGES))
    def somebody_clears_a_pool(self, language: str) -> None:
        self.world.apply(self.world.scheduler.clear(self.world.now, language))
        assert not self.world.at("idle")

    @rule(python=st.integers(1, 4), javascript=st.integers(1, 3), together=st.integers(1, 5), warm=st.integers(0, 2))
    def sizes_change(self, python: int, javascript: int, together: int, warm: int) -> None:
        self.world.resize(limits(python, javascript, together, warm))

    @rule(seconds=st.sampled_from([0.001, 0.5, 3.0, 30.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        """Whoever drives the scheduler keeps its deadline, and before that there is nothing to do."""
        deadline = self.world.scheduler.next_deadline()
        if deadline is None or self.world.now + seconds < deadline:
            self.world.now += seconds
            assert self.world.tick() == []

    @rule()
    def deadline_is_kept(self) -> None:
        deadline = self.world.scheduler.next_deadline()
        if deadline is not None:
            self.world.now = max(self.world.now, deadline)
            self.world.tick()
            after = self.world.scheduler.next_deadline()
            assert after is None or after > self.world.now, "a tick that leaves its own deadline behind"

    @invariant()
    def books_agree(self) -> None:
        self.world.check()

    @invariant()
    def nothing_was_left_undone(self) -> None:
        deadline = self.world.scheduler.next_deadline()
        if deadline is None or deadline > self.world.now:
            assert self.world.tick() == []
            after = self.world.scheduler.next_deadline()
            assert after is None or (deadline is not None and after >= deadline), "a deadline was missing"

    def teardown(self) -> None:
        """If from now on everything works and leases come back when asked for, everybody is served."""
        if not hasattr(self, "world"):
            return
        before = {batch.name: batch.grants for batch in self.world.batches.values()}
        waiting = [batch for batch in self.world.batches.values() if batch.wanted and not batch.held]
        for _ in range(3000):
            waiting = [b for b in waiting if b.grants == before[b.name] and b.name in self.world.batches]
            if not waiting:
                return
            assert self.world.step(), f"nobody does anything for {waiting}"
            self.world.check()
        raise AssertionError(f"never served: {waiting}")


SchedulerMachine.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
TestSchedulerMachine = SchedulerMachine.TestCase


arrivals = st.lists(
    st.tuples(st.sampled_from("AB"), st.integers(0, 9), st.integers(1, 6), st.sampled_from([0.0, 0.3, 5.0, 60.0])),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=150)
@given(arrivals, st.integers(4, 8))
def test_shares_settle_by_priority_and_then_evenly(arriving: list[tuple[str, int, int, float]], size: int) -> None:
    world = World(limits(size, 1, size, 0))
    batches = []
    for program, priority, wanted, pause in arriving:
        batches.append(world.claim("python", program, priority, wanted))
        until = world.now + pause
        while world.at("starting") or (world.scheduler.next_deadline() or FOREVER) <= until:
            world.step()
        world.now = until
    for _ in range(200):
        if not world.step() or world.now > 900:
            break
    else:
        raise AssertionError("the shares never settle")

    assert sum(len(b.held) for b in batches) == min(size, sum(b.wanted for b in batches))
    for some in batches:
        assert some.held
        for other in batches:
            if len(some.held) < some.wanted and len(other.held) > 1:
                assert other.priority >= some.priority
                if other.priority == some.priority:
                    assert len(other.held) <= len(some.held) + 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 9)), min_size=1, max_size=30), st.integers(1, 3))
def test_batches_of_one_item_each_are_all_served_whatever_they_are(arriving: list[tuple[str, int]], size: int) -> None:
    world = World(limits(size, 1, size, 0))
    batches = [world.claim("python", program, priority, 1) for program, priority in arriving]
    for _ in range(10 * len(arriving)):
        if leased := world.at("leased"):
            holder = world.envs[leased[0]].holder
            assert holder is not None
            world.withdraw(holder)
            world.release(leased[0])
        elif not world.batches:
            break
        else:
            world.step()
        world.check()
    assert [batch.grants for batch in batches] == [1] * len(batches)
