"""The acceptance head of SpecDec++ (Huang et al. 2024, arXiv 2405.19715): how likely a drafted token is to be kept.

It reads the draft model's last hidden state, the input of its output embedding, from the pass whose input is the
token. A head belongs to one drafter, named by its hash: on another model's hidden states it would say anything. It
lies beside the model as `acceptance_head.safetensors`; what it was trained for stands in that file's metadata.

Shapes: n tokens, d hidden size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from paceline.errors import InvalidInput

FILE = "acceptance_head.safetensors"
FORMAT = "paceline acceptance head 1"
MAX_BLOCKS = 16
_TRAIN = "train one for this drafter with python -m models.train_acceptance_head, or remove the file"
_FIELD = "acceptance_head"


@dataclass(frozen=True, slots=True)
class HeadInfo:
    """What a head is and was trained for."""

    hidden_size: int
    num_blocks: int
    is_tied: bool  # one block, applied `num_blocks` times, as in the paper's code
    drafter_hash: str  # as in ModelInfo
    target: str  # name or folder
    target_hash: str
    temperature: float  # at which it was taught what is accepted
    thresholds: Mapping[float, float]  # by cost ratio: where to stop, on text that it was not trained on
    auc: float  # there: of the head for whether a token is kept

    def __post_init__(self) -> None:
        if not (1 <= self.hidden_size <= 2**20 and 0 <= self.num_blocks <= MAX_BLOCKS):
            raise ValueError(f"{self.num_blocks} blocks of {self.hidden_size}")
        for ratio, threshold in self.thresholds.items():
            if not (math.isfinite(ratio) and ratio > 0 and 0 < threshold <= 1):
                raise ValueError(f"threshold {threshold} at cost ratio {ratio}")
        if not self.thresholds:
            raise ValueError("no threshold")


class AcceptanceHead(nn.Module):
    """Residual blocks x + SiLU(Wx + b), then a linear map to two classes: rejected, accepted."""

    def __init__(self, hidden_size: int, *, num_blocks: int, is_tied: bool) -> None:
        """A head whose blocks do nothing yet: their weights are zero, as the paper's code begins."""
        super().__init__()
        self._num_blocks = num_blocks
        num_weights = min(1, num_blocks) if is_tied else num_blocks
        self.blocks = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_weights))
        self.classes = nn.Linear(hidden_size, 2)
        for block in self.blocks:
            assert isinstance(block, nn.Linear)
            nn.init.zeros_(block.weight)
            nn.init.zeros_(block.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[n, d] -> scores [n, 2] of rejected and accepted."""
        for index in range(self._num_blocks):
            hidden = hidden + nn.functional.silu(self.blocks[index % len(self.blocks)](hidden))
        scores: Tensor = self.classes(hidden)
        return scores

    @torch.inference_mode()
    def accept_probs(self, hidden: Tensor) -> Tensor:
        """[n, d] -> probabilities [n] that the tokens are accepted."""
        probs: Tensor = self(hidden).softmax(-1)[:, 1]
        return probs


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A head and what it was trained for."""

    module: AcceptanceHead
    info: HeadInfo

    def accept_probs(self, hidden: Tensor) -> Tensor:
        return self.module.accept_probs(hidden)


def save(head: TrainedHead, path: Path) -> None:
    """Write the head in bfloat16. Raises OSError."""
    tensors = {name: value.detach().cpu().bfloat16().contiguous() for name, value in head.module.state_dict().items()}
    info = asdict(head.info) | {"thresholds": {str(ratio): at for ratio, at in head.info.thresholds.items()}}
    save_file(tensors, path, metadata={"format": FORMAT, "info": json.dumps(info)})
    path.chmod(0o644)


def load(path: Path, *, drafter_hash: str, device: str = "cpu") -> TrainedHead:
    """The head in float32. Raises InvalidInput for a file that is no head, or another drafter's."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            info = _info(metadata)
            if info.drafter_hash != drafter_hash:
                was = f"it was trained for the drafter {info.drafter_hash} and this one is {drafter_hash}"
                raise InvalidInput(_FIELD, str(path), f"{was}; {_TRAIN}")
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
        module = AcceptanceHead(info.hidden_size, num_blocks=info.num_blocks, is_tied=info.is_tied)
        module.load_state_dict(tensors)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [""]
        fix = f"is no head that can be read ({type(error).__name__}: {reason[0][:200]}); {_TRAIN}"
        raise InvalidInput(_FIELD, str(path), fix) from error
    return TrainedHead(module.to(device).requires_grad_(False).eval(), info)


def beside(folder: Path, *, drafter_hash: str, device: str = "cpu") -> TrainedHead | None:
    """The head that lies in the model's folder, None if there is none. Raises InvalidInput, as `load` does."""
    path = folder / FILE
    return load(path, drafter_hash=drafter_hash, device=device) if path.exists() else None


def _info(metadata: Mapping[str, str]) -> HeadInfo:
    if metadata.get("format") != FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
    given: dict[str, Any] = json.loads(metadata["info"])
    thresholds = {float(ratio): float(at) for ratio, at in given.pop("thresholds").items()}
    return HeadInfo(**given, thresholds=thresholds)
