"""The baseline: transformers' assisted generation on the same pair, in a process of its own with one thread.

Reads one JSON object a line ({"token_ids", "max_tokens", "temperature", "knobs"}) and answers one: {"num_tokens",
"seconds"}. `knobs` is null for plain decoding, else [num_assistant_tokens, schedule, confidence threshold]. The
assistant's schedule and threshold persist between calls in transformers, so both are set anew each time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

Knobs = tuple[int, str, float]

# The library's default first, then what helps a drafter that is wrong one time in five.
SETTINGS: tuple[Knobs, ...] = (
    (20, "constant", 0.4),
    (5, "constant", 0.0),
    (8, "constant", 0.0),
    (8, "constant", 0.4),
    (12, "heuristic", 0.3),
)


class Assisted:
    """The process, as a context manager; `generate` waits for its answer."""

    def __init__(self, target: str, drafter: str, *dtypes: str) -> None:
        self._command = [sys.executable, "-m", "bench.assisted", target, drafter, *dtypes]

    def __enter__(self) -> Assisted:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)

    def generate(
        self, token_ids: tuple[int, ...], max_tokens: int, temperature: float, knobs: Knobs | None
    ) -> tuple[int, float]:
        """Tokens generated and seconds taken."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        ask = {"token_ids": token_ids, "max_tokens": max_tokens, "temperature": temperature, "knobs": knobs}
        self._process.stdin.write(json.dumps(ask) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return int(answer["num_tokens"]), float(answer["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("target", "drafter", "dtype", "drafter_dtype"):
        parser.add_argument(name)
    given = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    torch.set_num_threads(1)
    dtype, drafter_dtype = getattr(torch, given.dtype), getattr(torch, given.drafter_dtype)
    target: Any = AutoModelForCausalLM.from_pretrained(given.target, dtype=dtype)
    drafter: Any = AutoModelForCausalLM.from_pretrained(given.drafter, dtype=drafter_dtype)
    for line in sys.stdin:
        ask = json.loads(line)
        settings: dict[str, Any] = {"max_new_tokens": ask["max_tokens"], "do_sample": ask["temperature"] > 0}
        if settings["do_sample"]:
            settings |= {"temperature": ask["temperature"], "top_k": 0, "top_p": 1.0}
        if ask["knobs"]:
            number, schedule, threshold = ask["knobs"]
            config = drafter.generation_config
            config.num_assistant_tokens = number
            config.num_assistant_tokens_schedule = schedule
            config.assistant_confidence_threshold = threshold
            settings["assistant_model"] = drafter
        prompt = torch.tensor([ask["token_ids"]])
        started_s = time.perf_counter()
        with torch.inference_mode():
            output = target.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
        seconds = time.perf_counter() - started_s
        print(json.dumps({"num_tokens": output.shape[1] - prompt.shape[1], "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
