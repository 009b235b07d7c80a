"""Options of `vllm serve` that `paceline serve` has not, and what to do instead: no typing error, so no near name."""

from __future__ import annotations

from collections.abc import Mapping

_ADAPTERS = "adapters are not served; merge them into the model's weights"
_BUILT_IN = "the engine decides that itself; leave it out"
_CACHED = "prefixes are always cached; leave it out"
_CONSTRAINED = "constrained output is not served; leave it out"
_DTYPE = "weights are served in --dtype, float32 or bfloat16"
_LOGS = "say --log-level"
_PASSES = "a pass takes the tokens that --max-num-batched-tokens lets it; leave it out"
_TOKENIZER = "the target's own tokenizer is taken; leave it out"
_TOOLS = "tools are not served; leave it out"

UNOFFERED: Mapping[str, str] = {
    "--compilation-config": _BUILT_IN,
    "--cpu-offload-gb": "a model must fit into the device's memory; split it by --tensor-parallel-size",
    "--data-parallel-size": "`paceline ray up` runs several verifiers, and so do `coordinator` and `verifier` by hand",
    "--disable-log-requests": _LOGS,
    "--disable-log-stats": _LOGS,
    "--distributed-executor-backend": "on Ray, say `paceline ray up`",
    "--download-dir": "set HF_HOME",
    "--enable-auto-tool-choice": _TOOLS,
    "--enable-chunked-prefill": _PASSES,
    "--enable-lora": _ADAPTERS,
    "--enable-prefix-caching": _CACHED,
    "--guided-decoding-backend": _CONSTRAINED,
    "--hf-token": "set HF_TOKEN",
    "--kv-cache-dtype": "the KV cache has the model's --dtype",
    "--load-format": "weights are read from safetensors; leave it out",
    "--lora-modules": _ADAPTERS,
    "--max-seq-len-to-capture": _BUILT_IN,
    "--no-enable-chunked-prefill": _PASSES,
    "--no-enable-prefix-caching": _CACHED,
    "--num-speculative-tokens": "say --length-policy fixed:length=N",
    "--pipeline-parallel-size": "say --tensor-parallel-size",
    "--quantization": _DTYPE,
    "--reasoning-parser": "reasoning is part of the text; leave it out",
    "--seed": "a request brings its own seed; leave it out",
    "--speculative-model": "say --drafter",
    "--swap-space": "say --kv-cache-memory, beyond which requests wait",
    "--tokenizer": _TOKENIZER,
    "--tokenizer-mode": _TOKENIZER,
    "--tool-call-parser": _TOOLS,
    "--trust-remote-code": "a model's own code is never run; leave it out (docs/compatibility.md has the families)",
    "--uvicorn-log-level": _LOGS,
}
