"""Reading a job file: YAML without its traps, and `--set` overrides on top."""

import posixpath
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from toprovar_batch.worker.errors import JobSpecError
from toprovar_batch.worker.storage import absolute, is_url, read_bytes, storage_errors, what_happened

from .errors import describe_value


class StrictLoader(yaml.SafeLoader):
    """Safe YAML that also refuses duplicate keys, keys that are not text, and aliases.

    Aliases could make a value contain itself or grow without bound, and a job file has no use for them.
    `4:2:0` is text: YAML 1.1 takes it for a number to the base of 60.
    """

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """Resolve as usual, but for numbers with colons."""
        tag: str = super().resolve(kind, value, implicit)
        numeric = tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        return "tag:yaml.org,2002:str" if numeric and ":" in value else tag

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose as usual, but refuse `*alias`."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not supported", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct as usual, but refuse a key that is there twice or is not text."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.tag != "tag:yaml.org,2002:str":
                name = f"key {key_node.value!r}" if isinstance(key_node, yaml.ScalarNode) else "key here"
                problem = f"the {name} is not text; put it in quotes"
            elif key_node.value in seen:
                problem = f"the key {key_node.value!r} is there twice"
            else:
                seen.add(key_node.value)
                continue
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct as usual; a scalar that its own type refuses (date 2024-13-45) keeps its line."""
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError) as error:
            problem = f"{str(node.value)[:60]!r} is not a valid {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def read_job_file(path: str, what: str = "job file") -> dict[str, Any]:
    """Read a YAML job file, or another file of the same kind.

    Args:
        path: local path or fsspec URL.
        what: to call it in errors.

    Returns:
        The mapping it holds.

    Raises:
        JobSpecError: the file is missing, unreadable, empty, not UTF-8, not YAML or not a mapping.
    """
    if not path:
        raise JobSpecError(f"the name of the {what} is empty; give one")
    try:
        raw = read_bytes(path)
    except FileNotFoundError as error:
        reason = what_happened(error)
        if reason is not error:
            raise JobSpecError(f"{path}: the {what} cannot be read: {reason}") from error
        raise JobSpecError(f"{path}: there is no such {what}") from error
    except IsADirectoryError as error:
        raise JobSpecError(f"{path} is a folder; give the {what} in it") from error
    except (ImportError, ValueError) as error:
        raise JobSpecError(f"{path}: the {what} cannot be read: {error}") from error
    except storage_errors() as error:
        raise JobSpecError(f"{path}: the {what} cannot be read: {error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise JobSpecError(f"{path}, line {line}: the {what} is not UTF-8 text") from error
    data = parse_yaml(text, path)
    if data is None:
        needs = "prompts.source and output" if what == "job file" else "name"
        raise JobSpecError(f"{path}: the {what} is empty; it needs at least {needs}")
    if not isinstance(data, dict):
        raise JobSpecError(f"{path}: a {what} is a mapping of keys, this one is {describe_value(data)}")
    return data


def parse_yaml(text: str, source: str) -> Any:
    """Parse one strict YAML document; `source` names it in errors.

    Raises:
        JobSpecError: naming `source` and the line.
    """
    try:
        # S506: StrictLoader is a SafeLoader.
        return yaml.load(text, StrictLoader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}" if mark else source
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise JobSpecError(f"{where}: not readable as YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        problem = f"the character U+{error.character:04X} is not allowed"
        raise JobSpecError(f"{source}, line {line}: not readable as YAML: {problem}") from error
    except RecursionError as error:
        raise JobSpecError(f"{source}: not readable as YAML: nested too deeply") from error


def parse_override(override: str) -> tuple[list[str], Any]:
    """Split one `--set a.b=value` into its path of keys and its value, read as YAML.

    Raises:
        JobSpecError: there is no `=`, a key is empty, or the value is not YAML.
    """
    dotted, equals, text = override.partition("=")
    keys = [key.strip() for key in dotted.split(".")]
    shown = f"--set {' '.join(override.split())}"
    if not equals or not all(keys):
        raise JobSpecError(f"{shown}: write it as key.sub=value, for example sampling.seed=7")
    # In YAML a dash alone is a list of nothing, which nobody means.
    return keys, "-" if text.strip() == "-" else parse_yaml(text, shown)


def apply_override(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set one value in a nested mapping, in place; groups that are missing are made.

    Raises:
        JobSpecError: a key on the way holds a value instead of a group.
    """
    group = data
    for depth, key in enumerate(keys[:-1], start=1):
        if group.get(key) is None:
            group[key] = {}
        group = group[key]
        if not isinstance(group, dict):
            raise JobSpecError(f"--set {'.'.join(keys)}: {'.'.join(keys[:depth])} is a value, not a group")
    group[keys[-1]] = value


def anchor_path(path: str, folder: str) -> str:
    """`path` made absolute against `folder`, which may itself be a URL; URLs stay as they are.

    Raises:
        JobSpecError: it begins with the name of a user whom this machine does not know.
    """
    if not path or is_url(path):
        return path
    if is_url(folder):
        return path if path.startswith("/") else posixpath.join(folder, path)
    try:
        return absolute(path, Path(folder))
    except ValueError as error:
        raise JobSpecError(f"{path}: {error}") from error


def freeze(value: Any) -> Any:
    """YAML's lists as tuples, which is what strict validation takes."""
    if isinstance(value, dict):
        return {key: freeze(item) for key, item in value.items()}
    return tuple(freeze(item) for item in value) if isinstance(value, list) else value
