"""A small world in virtual time: the simulator's, with the tests' usual workers and requests.

Everything random comes from one seed, which every failure prints. A world has an event budget, so that a livelock is
a failing test and not a hanging one. The network loses, delays, duplicates and reorders; workers die and come back.
"""

from __future__ import annotations

from bench.simulator import world
from bench.simulator.law import Iid
from bench.simulator.network import Network
from bench.simulator.workers import Drafter as ToyDrafter
from bench.simulator.workers import Verifier as ToyVerifier
from bench.simulator.world import Client
from coordinator.core.events import RequestSpec
from coordinator.core.limits import Limits
from paceline.length_policy import LengthPolicy
from paceline.types import Mode, Rule, SamplingParams, StepCost, Tokens

__all__ = ["Client", "Network", "ToyDrafter", "ToyVerifier", "World"]


class World(world.World):
    """See the top of the file."""

    def __init__(
        self, seed: int, *, network: Network | None = None, limits: Limits | None = None, budget: int = 200_000
    ) -> None:
        super().__init__(seed, network=network, limits=limits, budget=budget, is_logged=True)

    def verifier(self, name: str = "v0", *, pass_s: float = 0.016, places: int = 64) -> ToyVerifier:
        return self.add_verifier(name, StepCost(1e3 * pass_s, 0, 0, 0), places=places)

    def drafter(
        self,
        name: str = "d0",
        *,
        token_s: float = 0.0013,
        agreement: float = 0.8,
        places: int = 64,
        known: float = 1.0,
        network: Network | None = None,
    ) -> ToyDrafter:
        """`network`: its own, beside the world's."""
        cost = StepCost(1e3 * token_s, 0, 0, 0)
        return self.add_drafter(name, cost, Iid(agreement), places=places, known=known, network=network)

    def request(
        self,
        request_id: str = "r0",
        *,
        prompt: Tokens = (1, 2, 3),
        max_tokens: int = 40,
        mode: Mode | None = Mode.PEARL,
        rule: Rule | None = None,
        length: int | None = 4,
        window: int | None = 2,
        stop_token_ids: Tokens = (),
    ) -> Client:
        return self.submit(
            RequestSpec(
                request_id,
                prompt,
                max_tokens,
                SamplingParams(temperature=0),
                seed=1,
                draft_seed=2,
                stop_token_ids=stop_token_ids,
                mode=mode,
                rule=rule,
                policy=LengthPolicy.of("fixed", {"length": length}) if length else None,
                window=window,
            )
        )
