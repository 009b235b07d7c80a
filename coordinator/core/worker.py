"""A member of a pool: what it has said of itself, what was measured of it, and the requests that it holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.core.gain import Speed, gain
from coordinator.core.pace import Pace
from coordinator.core.passes import PassTimes
from paceline.types import Role, WorkerInfo

_NO_COST_S = 1e-4  # a token of a drafter that has measured nothing: those without a model
# What a full worker is taken for, against an empty one: so much slower beyond what its costs say. Requests of a
# drafter share its passes at little cost; those of a verifier also wait for one another's prompts.
_CROWDED = {Role.DRAFTER: 0.5, Role.VERIFIER: 1.0}
_DOUBTFUL = 4.0  # what is silent is taken for so many times slower: better than nobody, worse than any other
_FORGET_S = 60.0  # a drafter without requests for so long is as new: it may have been slow for a reason that is gone


@dataclass(frozen=True, slots=True)
class Kind:
    """What workers have in common that a wish can tell apart, or that makes them draft alike."""

    role: Role
    is_trusted: bool = False  # of a drafter: its rows are believed
    policies: tuple[str, ...] = ()  # that a drafter offers; empty = it has not said
    model_hash: str = ""


@dataclass(slots=True)
class Worker:
    """See the top of the file."""

    name: str
    info: WorkerInfo
    is_trusted: bool = False  # of a drafter: its rows are believed
    number: int = 0  # grows with each that joins
    rtt_s: float | None = None  # of a call that needs no model
    requests: dict[str, None] = field(default_factory=dict)  # a set that remembers its order
    # What its requests have measured of it, for the next ones too.
    pace: Pace = field(default_factory=Pace)  # of a drafter
    passes: PassTimes = field(default_factory=PassTimes)  # of a verifier
    num_others: int = 0  # requests of other coordinators: the fewest that its last two heartbeats left for them
    _num_more: int = 0  # that the last one told of, beside this coordinator's own
    is_draining: bool = False
    is_suspected: bool = False  # it has missed a turn of its heartbeat
    full_until_s: float = 0.0  # it has refused a request for want of a place
    num_refused: int = 0  # such requests in a row, since its last heartbeat
    idle_since_s: float | None = None  # of its heartbeats, the first one without a request
    kind: Kind = field(init=False)

    def __post_init__(self) -> None:
        info = self.info
        is_drafter = info.role is Role.DRAFTER
        self.pace.can_branch = bool(info.dtype)  # one without weights knows of no other tokens
        self.kind = Kind(info.role, self.is_trusted, info.policies, info.model_hash) if is_drafter else Kind(info.role)

    @property
    def num_seqs(self) -> int:
        """Requests that it holds, of all coordinators."""
        return len(self.requests) + self.num_others

    @property
    def load(self) -> float:
        """The share of its places that are taken, by whomever; what others take is as old as its last heartbeat."""
        return self.num_seqs / self.info.max_num_seqs

    def is_free(self, now_s: float) -> bool:
        """Whether it may be given another request.

        The places of others do not count: it may have had one more since, or have kept one, and it says no by itself.
        """
        has_place = len(self.requests) < self.info.max_num_seqs and now_s >= self.full_until_s
        return has_place and not self.is_draining and self.pace.breaker.allows(now_s, len(self.requests))

    def free_at_s(self, now_s: float) -> float | None:
        """When it is free by the mere passing of time; None if it takes an event."""
        at_s = max(self.full_until_s, self.pace.breaker.rests_until_s)
        return at_s if at_s > now_s else None

    def speed(self) -> Speed:
        """As a drafter, with one request more than it has."""
        num_requests, pace = self.num_seqs, self.pace
        draft_s = self._step_s(num_requests + 1)
        if pace.draft_s is not None:  # at about the present load
            draft_s = pace.draft_s * draft_s / self._step_s(max(1, num_requests))
        delay_s = self.rtt_s or 0.0 if pace.delay_s is None else pace.delay_s
        return Speed(draft_s, delay_s, pace.acceptance)

    def _step_s(self, num_requests: int) -> float:
        """A token for each of so many requests, as the worker itself estimates it."""
        cost = self.info.cost
        return max(1e-6, cost.ms(num_requests, num_requests, 0) / 1e3) if cost else _NO_COST_S

    def cost(self, passes: PassTimes) -> float:
        """What taking it costs, the less the better: 1 = an idle verifier's own pace.

        Of a drafter beside a verifier of such `passes`; of a verifier against one of such `passes`.
        """
        doubt = _DOUBTFUL if self.is_suspected or self.pace.is_silent else 1.0
        crowding = 1 + _CROWDED[self.info.role] * max(self.load, self.info.cache.share if self.info.cache else 0.0)
        if self.info.role is Role.DRAFTER:
            return doubt * crowding / gain(self.speed(), passes)
        own_s, plain_s = self.passes.seconds(self.num_seqs + 1), passes.seconds(1)
        return doubt * crowding * (own_s / plain_s if own_s and plain_s else 1.0)

    def heard(self, info: WorkerInfo, rtt_s: float | None, now_s: float) -> None:
        """It has renewed its lease, and says how it is."""
        self.info = self.info.renewed(info)
        # What has just been closed may be counted there for a moment still, and is nobody's else.
        num_more = max(0, info.num_requests - len(self.requests))
        self.num_others, self._num_more = min(self._num_more, num_more), num_more
        self.is_suspected, self.num_refused = False, 0
        if rtt_s is not None:
            self.rtt_s = rtt_s
        if self.requests:
            self.idle_since_s = None
        elif self.idle_since_s is None:
            self.idle_since_s = now_s
        elif now_s - self.idle_since_s >= _FORGET_S:
            self.pace = Pace(breaker=self.pace.breaker, can_branch=self.pace.can_branch, kin=self.pace.kin)
            self.idle_since_s = None
