"""The engine's one door: one model, many sequences, one ragged forward pass at a time.

A drafter and a verifier run the same engine; nothing here knows which one it is. A Runner belongs to one
thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from paceline.cache_use import CacheUse
from paceline.engine import weights
from paceline.engine.executor import Executor, Options, prepare
from paceline.engine.info import ModelInfo
from paceline.engine.parallel import Leader
from paceline.engine.plan import Chunk, build
from paceline.engine.pool import BlockPool, Extension, PoolFull
from paceline.engine.prefix import PrefixStats
from paceline.engine.room import Claim, Sharing, share
from paceline.engine.step import Outputs
from paceline.errors import InvalidInput

__all__ = ["Chunk", "Claim", "ModelInfo", "Outputs", "PoolFull", "PrefixStats", "Runner"]


class Runner:
    """A loaded model over a paged KV pool. Create it with `load`."""

    def __init__(self, executor: Executor | Leader, pool: BlockPool, info: ModelInfo) -> None:
        self.info = info
        self._executor = executor
        self._pool = pool

    @classmethod
    def load(
        cls,
        model: str,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        max_num_tokens: int | None = None,
        kv_cache_bytes: int | None = None,
        gpu_memory_utilization: float = 0.9,
        block_size: int = 16,
        revision: str | None = None,
        max_model_len: int | None = None,
        tensor_parallel_size: int = 1,
        tensor_parallel_timeout_s: float = 20.0,
        ranks_socket: str | None = None,
        prefix_caching: bool = True,
        enforce_eager: bool = False,
    ) -> Runner:
        """Loads and validates `model`, a folder or a Hugging Face name. Raises InvalidInput, Unsupported.

        The pool holds `max_num_tokens` tokens over all sequences, or what fits in `kv_cache_bytes` on each
        rank; by default what is left of `gpu_memory_utilization`, or 1 GiB on a CPU. `max_model_len` must fit into it;
        by default it is the model's, whatever the pool holds. `enforce_eager`: no CUDA graphs. `ranks_socket`: where
        ranks come that something else starts. Sets torch to one thread: a second one makes a busy CPU ten times slower.
        """
        _check_options(dtype, device, max_num_tokens, kv_cache_bytes, block_size, tensor_parallel_size)
        torch.set_num_threads(1)
        checkpoint = weights.inspect(model, revision=revision, max_model_len=max_model_len)
        options = Options(
            folder=str(checkpoint.folder),
            dtype=dtype,
            device=device,
            max_num_tokens=max_num_tokens,
            kv_cache_bytes=kv_cache_bytes,
            block_size=block_size,
            max_model_len=max_model_len,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=gpu_memory_utilization,
            enforce_eager=enforce_eager,
        )
        executor: Executor | Leader
        if tensor_parallel_size > 1:
            executor = Leader.start(checkpoint, options, timeout_s=tensor_parallel_timeout_s, ranks_socket=ranks_socket)
        else:
            executor = prepare(checkpoint, options)
        _check_room(executor, options)
        model_hash, tokenizer_hash = checkpoint.hashes()
        info = ModelInfo(
            model_hash=model_hash,
            tokenizer_hash=tokenizer_hash,
            vocab_size=executor.vocab_size,
            max_model_len=checkpoint.max_model_len,
            eos_token_ids=weights.eos_token_ids(executor.model),
            dtype=dtype,
            device=device,
            folder=str(checkpoint.folder),
            num_parameters=executor.num_parameters,
        )
        salt = f"{model_hash} {dtype}"
        return cls(executor, BlockPool(executor.num_blocks, block_size, salt=salt, prefix_caching=prefix_caching), info)

    def open(self, sequence: str, token_ids: Sequence[int] = ()) -> int:
        """Adds a sequence; how many leading `token_ids` are cached already. Raises InvalidInput if it is open."""
        self._pool.open(sequence)
        return self._pool.adopt(sequence, token_ids)

    def adopt(self, sequence: str, token_ids: Sequence[int]) -> int:
        """Shares what other sequences have cached of `token_ids` with one that has cached nothing yet.

        Returns how many tokens that is: whole blocks, and at least one token less than `token_ids`.
        """
        return self._pool.adopt(sequence, token_ids)

    def close(self, sequence: str) -> None:
        """Lets go of the sequence's blocks, which stay cached until room is wanted; unknown ids are a no-op."""
        self._pool.close(sequence)

    def restart(self, sequence: str) -> None:
        """Takes all blocks from a sequence, which stays open: its tokens must be forwarded, or adopted, anew."""
        self._pool.close(sequence)
        self._pool.open(sequence)

    def forget(self, sequence: str) -> None:
        """Frees all that a sequence has cached, for the prefix cache too. Raises UnknownRequest if it is not open."""
        self._pool.cut(sequence, 0)

    def length(self, sequence: str) -> int:
        """Cached tokens of a sequence. Raises UnknownRequest if it is not open."""
        return self._pool.length(sequence)

    @property
    def num_held_blocks(self) -> int:
        """Blocks that an open sequence holds; those which are only remembered are not among them."""
        return self._pool.num_blocks - self._pool.num_free_blocks

    def room(self) -> int:
        """Tokens in free blocks. A sequence may also fill up the last block that it owns."""
        return self._pool.num_free_blocks * self._pool.block_size

    def claim(self, sequence: str, num_tokens: int) -> Claim:
        """What a sequence that wants to hold `num_tokens` has and needs, in blocks."""
        size = self._pool.block_size
        return Claim(sequence, -(-self._pool.length(sequence) // size), -(-num_tokens // size))

    def share(self, claims: Sequence[Claim]) -> Sharing:
        """Who may go on, by age; see `room.py`. `claims`: of all sequences, oldest first."""
        return share(claims, self._pool.num_free_blocks, self._pool.num_owned_blocks)

    @property
    def prefix_stats(self) -> PrefixStats:
        """How much of the prompts was found cached, since the start."""
        return self._pool.prefix_stats

    def cache_use(self, num_preemptions: int = 0) -> CacheUse:
        """What the pool holds now; may be asked at any time, from any thread."""
        size, stats = self._pool.block_size, self._pool.prefix_stats
        num_free = self._pool.num_free_blocks
        return CacheUse(
            num_tokens=size * self._pool.num_blocks,
            num_used_tokens=size * (self._pool.num_blocks - num_free),
            num_queried_tokens=stats.num_queried_tokens,
            num_found_tokens=stats.num_hit_tokens,
            num_preemptions=num_preemptions,
            block_size=size,
        )

    def forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """One ragged forward pass: logits [sum of num_rows, vocab_size] float32, rows in the chunks' order.

        Each chunk cuts its sequence to `start` and extends it by its tokens. A chunk without tokens only
        cuts. Raises PoolFull, UnknownRequest, or ValueError (a caller's bug) before anything has changed. If
        the pass itself fails, every sequence of the step is left cut to its `start`, or to the start of a shared
        block before it.

        The result is an inference tensor: arithmetic in place needs `torch.inference_mode()` around it.
        """
        return self.forward_with_hidden(chunks).logits

    def forward_with_hidden(self, chunks: Sequence[Chunk]) -> Outputs:
        """`forward`, and beside each row of logits the hidden state that it comes from."""
        self._check(chunks)
        chunks = [self._from_writable_start(chunk) for chunk in chunks]
        wishes = [Extension(chunk.sequence, chunk.start, chunk.start + len(chunk.token_ids)) for chunk in chunks]
        tables = self._pool.extend(wishes)
        pairs = [pair for pair in zip(chunks, tables, strict=True) if len(pair[0].token_ids)]
        if not pairs:
            nothing = torch.empty(0, self.info.vocab_size, device=self.info.device)
            return Outputs(nothing, nothing[:, :0])
        plan = build([chunk for chunk, _ in pairs], [table for _, table in pairs])
        try:
            rows = self._executor.run(plan)
        except BaseException:
            for chunk in chunks:
                self._pool.cut(chunk.sequence, chunk.start)
            raise
        for chunk, _ in pairs:
            self._pool.record(chunk.sequence, chunk.start, chunk.token_ids)
        return rows

    @property
    def lost(self) -> str | None:
        """Why no forward pass will ever succeed again, if so: a tensor parallel group has lost a rank."""
        return self._executor.lost

    def shutdown(self) -> None:
        """Ends the other ranks of a tensor parallel group, if there are any. May be repeated."""
        self._executor.shutdown()

    def check_integrity(self) -> None:
        """Raises AssertionError if a block is leaked, miscounted, shared unlawfully, or held without need."""
        self._pool.check_integrity()

    def _from_writable_start(self, chunk: Chunk) -> Chunk:
        """The chunk, with the kept part of a block before it if that block is shared and so cannot be written.

        That part is forwarded once more, into a block of the sequence's own. It happens only after a rollback into
        what another sequence has taken over, and costs less than a block of tokens.
        """
        if not len(chunk.token_ids):
            return chunk
        start, token_ids = self._pool.writable_start(chunk.sequence, chunk.start)
        return replace(chunk, start=start, token_ids=[*token_ids, *chunk.token_ids]) if token_ids else chunk

    def _check(self, chunks: Sequence[Chunk]) -> None:
        if len({chunk.sequence for chunk in chunks}) < len(chunks):
            raise ValueError("a sequence appears twice in one step")
        for chunk in chunks:
            count = len(chunk.token_ids)
            if not 0 <= chunk.num_rows <= count:
                raise ValueError(f"{chunk.sequence!r} wants {chunk.num_rows} rows of {count} tokens")
            if chunk.start + count > self.info.max_model_len:
                raise ValueError(f"{chunk.sequence!r} exceeds max_model_len={self.info.max_model_len}")
            if count and (min(chunk.token_ids) < 0 or max(chunk.token_ids) >= self.info.vocab_size):
                raise ValueError(f"{chunk.sequence!r} has a token id outside 0..{self.info.vocab_size - 1}")


def _check_room(executor: Executor | Leader, options: Options) -> None:
    num_slots = executor.num_blocks * options.block_size
    if options.max_model_len is not None and options.max_model_len > num_slots:
        executor.shutdown()
        fix = f"the KV cache holds only {num_slots} tokens; lower it, or give the cache more memory"
        raise InvalidInput("max_model_len", options.max_model_len, fix)


def _check_options(
    dtype: str,
    device: str,
    max_num_tokens: int | None,
    kv_cache_bytes: int | None,
    block_size: int,
    tensor_parallel_size: int,
) -> None:
    if dtype not in weights.DTYPES:
        raise InvalidInput("dtype", dtype, f"choose one of {', '.join(weights.DTYPES)}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput("device", device, f"torch cannot use it ({error}); use cpu or cuda") from error
    limits = {"max_num_tokens": max_num_tokens, "block_size": block_size, "kv_cache_bytes": kv_cache_bytes}
    for field, value in (limits | {"tensor_parallel_size": tensor_parallel_size}).items():
        if value is not None and value < 1:
            raise InvalidInput(field, value, "must be at least 1")
