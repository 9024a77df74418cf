"""YAML from anywhere as plain values, within bounds: an alias that repeats aliases can unfold a kilobyte to gigabytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from explainode.errors import UserError

MAX_BYTES = 8 << 20
MAX_NODES = 200_000  # with every alias written out; our largest configurations have a few thousand
MAX_DEPTH = 60
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster where PyYAML was built with libyaml


def read_yaml(path: Path) -> Any:
    """The content of a file: mappings, lists and scalars.

    Raises:
        UserError: if it cannot be read, is no YAML, or is larger than any configuration, as it stands or with its aliases written out.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{path} has {path.stat().st_size / 2**20:.0f} MiB, and no configuration has more than {MAX_BYTES >> 20}"
            )
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged ({error}); restore it or run again") from error
    try:
        return load_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}); restore it or run again") from error


def load_yaml(text: str) -> Any:
    """The content of a text.

    Raises:
        yaml.YAMLError, ValueError: for what is no YAML, or unfolds to more than a configuration.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}, MAX_DEPTH) > MAX_NODES:
            raise ValueError(f"its aliases unfold to more than {MAX_NODES} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values a node stands for, aliases written out; a node that is met again is counted again, but not walked again."""
    if depth == 0:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    if id(node) not in known:
        parts = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_size(part, known, depth - 1) for part in parts)
    return known[id(node)]
