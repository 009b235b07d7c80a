"""A larger copy of a Llama checkpoint that computes the same logits: the cost of a big model, for timing.

    python -m models.expand models/demo-target build/target-90m --parameters 90M

Added weights do nothing, and are not zeros that a kernel could skip (after Chen et al. 2016, "Net2Net"):

- Wider: the residual stream gets new dimensions that stay zero, because nothing writes to them. Matrices that
  read from the stream have random weights there. RMSNorm divides by the root of the mean square, and the mean
  over H' instead of H dimensions is smaller by H / H': the norms' weights are scaled by sqrt(H / H') and
  epsilon by H / H', which restores the value exactly.
- More heads and more units in the feed-forward part: random weights in, zeros out.
- Deeper: layers whose output projections are zero.

sqrt(H / H') is a power of two when H' / H is a power of four, and then exact in any float format. Other ratios
round the norms' weights: harmless in float32 (1e-7), but in bfloat16 logits move by about 1 %, and then the copy
is not the same model. Automatic shapes only use exact ratios.

Shape letters: H hidden size, L layers, I intermediate size, primes for the copy.
"""

import argparse
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from models.corpus import InputError
from models.shapes import write_directory

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# The scale of the added weights: that of freshly initialised Llama models.
NOISE = 0.02
# What common models of this kind have: intermediate size by hidden size.
USUAL_RATIO = 2.75


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes that cost depends on. `num_heads` is a multiple of `num_kv_heads`; both are even or 1."""

    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied: bool

    @property
    def num_parameters(self) -> int:
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = (1 if self.tied else 2) * self.vocab_size * self.hidden_size
        return embeddings + self.num_layers * layer + self.hidden_size


def expand(
    source_dir: str | Path,
    output_dir: str | Path,
    *,
    hidden_size: int | None = None,
    num_layers: int | None = None,
    intermediate_size: int | None = None,
    num_heads: int | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
) -> Shape:
    """Write the copy and return its shape; sizes that are not given (and the dtype) stay as they are.

    Raises InputError if the source is no Llama model, or if a size is smaller than the source's.
    """
    source, output = Path(source_dir), Path(output_dir)
    config, old = read_shape(source)
    group = old.num_heads // old.num_kv_heads
    heads = num_heads or old.num_heads
    new = Shape(
        hidden_size=hidden_size or old.hidden_size,
        num_layers=num_layers or old.num_layers,
        intermediate_size=intermediate_size or old.intermediate_size,
        num_heads=heads,
        num_kv_heads=heads // group,
        head_dim=old.head_dim,
        vocab_size=old.vocab_size,
        tied=old.tied,
    )
    check_growth(old, new, group)
    weights = load_file(source / "model.safetensors")
    kind = dtype or weights["model.norm.weight"].dtype
    generator = torch.Generator().manual_seed(seed)
    expanded = {name: tensor.to(kind).contiguous() for name, tensor in expanded_weights(weights, old, new, generator)}

    def write(fresh: Path) -> None:
        save_file(expanded, fresh / "model.safetensors", metadata={"format": "pt"})
        _write_json(fresh / "config.json", expanded_config(config, old, new, kind))
        for name in (*TOKENIZER_FILES, "generation_config.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, fresh / name)
        (fresh / "README.md").write_text(card(source.name, old, new), encoding="utf-8")

    write_directory(output, write)
    return new


def read_shape(source: Path) -> tuple[dict[str, Any], Shape]:
    """The source's config.json, as it is and as a Shape."""
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"SOURCE {source}: has no readable config.json ({error}); give a model's folder") from error
    if config.get("model_type") != "llama":
        raise InputError(f"SOURCE {source}: model_type is {config.get('model_type')!r}; only 'llama' is supported")
    for field in ("attention_bias", "mlp_bias"):
        if config.get(field):
            raise InputError(f"SOURCE {source}: {field} is true; only models without biases are supported")
    if not (source / "model.safetensors").is_file():
        raise InputError(f"SOURCE {source}: has no model.safetensors; weights must be in this one file")
    heads = config["num_attention_heads"]
    return config, Shape(
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        intermediate_size=config["intermediate_size"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def check_growth(old: Shape, new: Shape, group: int) -> None:
    for field in ("hidden_size", "num_layers", "intermediate_size", "num_heads"):
        if getattr(new, field) < getattr(old, field):
            raise InputError(
                f"{field} {getattr(new, field)}: is below the source's {getattr(old, field)}; expansion only adds"
            )
    if new.hidden_size % new.num_heads:
        raise InputError(
            f"num_heads {new.num_heads}: must divide hidden_size {new.hidden_size}, or transformers refuses the model"
        )
    if new.num_heads % group or (new.num_kv_heads % 2 and new.num_heads != old.num_heads):
        raise InputError(
            f"num_heads {new.num_heads}: must be a multiple of {2 * group} (the source has {group} heads per "
            "key-value head, and both numbers must stay even)"
        )


def expanded_weights(
    weights: dict[str, torch.Tensor], old: Shape, new: Shape, generator: torch.Generator
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and float32 tensor of every weight of the copy."""
    # What a fresh weight looks like depends on what it is multiplied with: see the top of this file.
    scale = norm_scale(old, new)
    sizes = _layer_sizes(new)

    def reads(tensor: torch.Tensor | None, rows: int, columns: int) -> torch.Tensor:
        """Added rows feed what is ignored later, added columns meet zeros: both may be anything."""
        return _placed(tensor, torch.randn(rows, columns, generator=generator) * NOISE)

    def writes(tensor: torch.Tensor | None, rows: int, columns: int) -> torch.Tensor:
        """Added columns would write to the real dimensions, added rows to the new ones: both must be zero."""
        return _placed(tensor, torch.zeros(rows, columns))

    def norm(tensor: torch.Tensor | None) -> torch.Tensor:
        scaled = None if tensor is None else tensor.float() * scale
        return _placed(scaled, torch.rand(new.hidden_size, generator=generator))

    yield "model.embed_tokens.weight", writes(weights["model.embed_tokens.weight"], new.vocab_size, new.hidden_size)
    yield "model.norm.weight", norm(weights["model.norm.weight"])
    if not old.tied:
        yield "lm_head.weight", reads(weights["lm_head.weight"], new.vocab_size, new.hidden_size)
    for layer in range(new.num_layers):
        prefix = f"model.layers.{layer}."
        for name, (rows, columns) in sizes.items():
            make: Callable[[torch.Tensor | None, int, int], torch.Tensor]
            make = writes if name in ("self_attn.o_proj", "mlp.down_proj") else reads
            yield f"{prefix}{name}.weight", make(weights.get(f"{prefix}{name}.weight"), rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", norm(weights.get(f"{prefix}{name}.weight"))


def norm_scale(old: Shape, new: Shape) -> float:
    """What keeps `weight * x / rms(x)` the same when x gets zeros added: the root mean square shrinks by it."""
    return math.sqrt(old.hidden_size / new.hidden_size)


def _layer_sizes(shape: Shape) -> dict[str, tuple[int, int]]:
    heads, kv_heads = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    return {
        "self_attn.q_proj": (heads, shape.hidden_size),
        "self_attn.k_proj": (kv_heads, shape.hidden_size),
        "self_attn.v_proj": (kv_heads, shape.hidden_size),
        "self_attn.o_proj": (shape.hidden_size, heads),
        "mlp.gate_proj": (shape.intermediate_size, shape.hidden_size),
        "mlp.up_proj": (shape.intermediate_size, shape.hidden_size),
        "mlp.down_proj": (shape.hidden_size, shape.intermediate_size),
    }


def _placed(tensor: torch.Tensor | None, background: torch.Tensor) -> torch.Tensor:
    """The background with the tensor in its first rows and columns. Heads, too, are added at the end."""
    if tensor is not None:
        background[tuple(slice(size) for size in tensor.shape)] = tensor.float()
    return background


def expanded_config(config: dict[str, Any], old: Shape, new: Shape, dtype: torch.dtype) -> dict[str, Any]:
    changed = dict(config)
    changed.pop("torch_dtype", None)
    return changed | {
        "hidden_size": new.hidden_size,
        "num_hidden_layers": new.num_layers,
        "intermediate_size": new.intermediate_size,
        "num_attention_heads": new.num_heads,
        "num_key_value_heads": new.num_kv_heads,
        "head_dim": new.head_dim,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6) * old.hidden_size / new.hidden_size,
        "dtype": str(dtype).removeprefix("torch."),
    }


def shape_near(old: Shape, num_parameters: int) -> Shape:
    """The most usual of the exact shapes whose size is within 2 % of `num_parameters`.

    Usual means: USUAL_RATIO between intermediate and hidden size, heads as wide as the hidden size, and not many
    more layers than the source has, because every layer costs time beyond its parameters.
    """
    group = old.num_heads // old.num_kv_heads
    best: tuple[float, Shape] | None = None
    for factor in (1, 4, 16):
        hidden = old.hidden_size * factor
        for num_layers in range(old.num_layers, 4 * old.num_layers + 1):
            for num_heads in (old.num_heads * 2**i for i in range(8)):
                if hidden % num_heads:
                    continue
                bare = Shape(
                    hidden, num_layers, 0, num_heads, num_heads // group, old.head_dim, old.vocab_size, old.tied
                )
                rest = (num_parameters - bare.num_parameters) / (3 * hidden * num_layers)
                shape = Shape(
                    hidden,
                    num_layers,
                    max(64 * round(rest / 64), old.intermediate_size),
                    num_heads,
                    num_heads // group,
                    old.head_dim,
                    old.vocab_size,
                    old.tied,
                )
                if abs(shape.num_parameters / num_parameters - 1) > 0.02:
                    continue
                oddity = (
                    abs(math.log(shape.intermediate_size / (USUAL_RATIO * hidden)))
                    + 0.5 * abs(math.log(num_heads * old.head_dim / hidden))
                    + math.log(num_layers / old.num_layers)
                )
                if best is None or oddity < best[0]:
                    best = (oddity, shape)
    if best is None:
        raise InputError(
            f"--parameters {num_parameters:,}: no exact shape is near; the source has {old.num_parameters:,}, and "
            "29M, 90M and 212M are sizes that the demo target can take"
        )
    return best[1]


def card(source: str, old: Shape, new: Shape) -> str:
    return f"""---
license: apache-2.0
library_name: transformers
---

# {source}, expanded to {new.num_parameters / 1e6:.1f} M parameters

This is an **expanded copy** of `{source}` ({old.num_parameters / 1e6:.1f} M parameters), made by
`python -m models.expand`. It is no better than its source: it computes the same logits, and its extra weights do
nothing but cost time. It exists to time serving with a model of this size on text that a small model can write.

| | source | this copy |
|---|---|---|
| hidden size | {old.hidden_size} | {new.hidden_size} |
| layers | {old.num_layers} | {new.num_layers} |
| intermediate size | {old.intermediate_size} | {new.intermediate_size} |
| heads / key-value heads | {old.num_heads} / {old.num_kv_heads} | {new.num_heads} / {new.num_kv_heads} |

Never report its speed together with its size as if it were a trained model of that size.
"""


def parameters(text: str) -> int:
    """The number in `90M`, `1.5B`, `29000000`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMbB]?)", text)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of parameters; write for example 90M")
    return round(float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2].lower()])


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        sizes = {
            "hidden_size": arguments.hidden_size,
            "num_layers": arguments.num_layers,
            "intermediate_size": arguments.intermediate_size,
            "num_heads": arguments.num_heads,
        }
        _, old = read_shape(arguments.source)
        if arguments.parameters is not None:
            if any(size is not None for size in sizes.values()):
                raise InputError(f"--parameters {arguments.parameters:,}: give this or single sizes, not both")
            near = shape_near(old, arguments.parameters)
            sizes = {field: getattr(near, field) for field in sizes}
        dtype = DTYPES[arguments.dtype] if arguments.dtype else None
        new = expand(arguments.source, arguments.output, **sizes, seed=arguments.seed, dtype=dtype)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{new.num_parameters / 1e6:.1f} M parameters -> {arguments.output}: {new}")
    ratio = math.log(new.hidden_size / old.hidden_size, 4)
    if ratio != int(ratio):
        print("note: this width is not exact in bfloat16 and float16; multiply the source's by 4 or 16 instead")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.expand",
        description="Write a larger copy of a Llama model that computes the same logits.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of the model")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder to write")
    parser.add_argument("--parameters", type=parameters, metavar="N", help="size to come near: 29M, 90M, 212M, …")
    parser.add_argument("--hidden-size", type=int, help="exact in bfloat16 if 4 or 16 times the source's")
    parser.add_argument("--num-layers", type=int, help="layers in all")
    parser.add_argument("--intermediate-size", type=int, help="units of the feed-forward part")
    parser.add_argument("--num-heads", type=int, help="attention heads; key-value heads grow with them")
    parser.add_argument("--seed", type=int, default=0, help="of the weights that do nothing (default %(default)s)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the copy (default: the source's)")
    return parser


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
