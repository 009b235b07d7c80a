"""How many files, sockets among them, this process may have open."""

from __future__ import annotations

import resource

WANTED = 65_536  # a connection is one, and a shell often allows no more than 1024


def allow_open_files(wanted: int = WANTED) -> int:
    """Raise the limit that a process may raise by itself as far as it goes, `wanted` at most; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    best = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < best:
        resource.setrlimit(resource.RLIMIT_NOFILE, (best, hard))
        return best
    return soft
