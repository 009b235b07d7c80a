"""`make proto` writes docs/wire.md with this: every service, message and field of proto/, with its comment.

The schema's comments are the reference; this only lays them out. Needs grpcio-tools, as generating the code does.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from google.protobuf.descriptor_pb2 import (  # type: ignore[import-untyped]
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

PROTO = Path(__file__).parents[1] / "proto"
PAGE = Path(__file__).parents[1] / "docs" / "wire.md"
_HEAD = """# Wire reference

Made of the comments in `proto/paceline/wire/` by `make proto`; change those. [protocol.md](protocol.md) says what the
messages mean together. Every number has its range, every list its bound: a message outside them is refused by name.
"""
# Places in a file's descriptor, by which comments are found (descriptor.proto has the numbers).
_MESSAGE, _ENUM, _SERVICE, _SYNTAX = 4, 5, 6, 12
_FIELD, _METHOD, _VALUE = 2, 2, 2

Comments = Mapping[tuple[int, ...], str]


def main() -> int:
    PAGE.write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """The whole page, as Markdown."""
    return "\n".join([_HEAD, *(line for file in _files() for line in _file(file))]) + "\n"


def _files() -> list[FileDescriptorProto]:
    from grpc_tools import protoc

    paths = sorted(str(path) for path in PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        code = protoc.main(["protoc", f"-I{PROTO}", f"--descriptor_set_out={out}", "--include_source_info", *paths])
        if code:
            raise SystemExit(code)
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def _file(file: FileDescriptorProto) -> Iterator[str]:
    comments = {
        tuple(at.path): " ".join(f"{at.leading_comments} {at.trailing_comments}".split())
        for at in file.source_code_info.location
    }
    yield f"## {Path(file.name).name}\n\n{comments.get((_SYNTAX,), '')}\n"
    for i, service in enumerate(file.service):
        yield from _service(service, comments, (_SERVICE, i))
    for i, message in enumerate(file.message_type):
        yield from _message(message, comments, (_MESSAGE, i))
    for i, enum in enumerate(file.enum_type):
        yield from _enum(enum, comments, (_ENUM, i))


def _service(service: ServiceDescriptorProto, comments: Comments, at: tuple[int, ...]) -> Iterator[str]:
    yield f"### service {service.name}\n\n{comments.get(at, '')}\n\n| call | takes | answers | |\n|---|---|---|---|"
    for i, method in enumerate(service.method):
        takes = "stream of " * method.client_streaming + _link(method.input_type)
        answers = "stream of " * method.server_streaming + _link(method.output_type)
        yield f"| `{method.name}` | {takes} | {answers} | {_cell(comments.get((*at, _METHOD, i), ''))} |"
    yield ""


def _message(message: DescriptorProto, comments: Comments, at: tuple[int, ...]) -> Iterator[str]:
    yield f"### {message.name}\n\n{comments.get(at, '')}\n"
    if not message.field:
        return
    yield "| | field | type | |\n|---|---|---|---|"
    for i, field in enumerate(message.field):
        comment = _cell(comments.get((*at, _FIELD, i), ""))
        yield f"| {field.number} | `{field.name}` | {_type(field, message)} | {comment} |"
    yield ""


def _enum(enum: EnumDescriptorProto, comments: Comments, at: tuple[int, ...]) -> Iterator[str]:
    yield f"### enum {enum.name}\n\n{comments.get(at, '')}\n\n| | value | |\n|---|---|---|"
    for i, value in enumerate(enum.value):
        yield f"| {value.number} | `{value.name}` | {_cell(comments.get((*at, _VALUE, i), ''))} |"
    yield ""


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    if field.type_name:
        entry = next((nested for nested in message.nested_type if field.type_name.endswith(f".{nested.name}")), None)
        if entry is not None and entry.options.map_entry:
            return f"map of {_type(entry.field[0], entry)} to {_type(entry.field[1], entry)}"
        name = _link(field.type_name)
    else:
        name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"list of {name}"
    if field.proto3_optional:
        return f"{name}, or absent"
    return f"{name}, one of {message.oneof_decl[field.oneof_index].name}" if field.HasField("oneof_index") else name


def _link(type_name: str) -> str:
    name = type_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})" if ".paceline." in type_name else name


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
