"""What pydantic found wrong in a job, said in one sentence that names the key and the mend."""

from collections.abc import Iterator
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from toprovar_batch.worker.words import nearest

EXPECTED = {
    "float_type": "a number",
    "int_type": "a whole number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "finite_number": "a finite number",
    "model_type": "a group of keys",
    "model_attributes_type": "a group of keys",
}
_TAG_ERRORS = ("union_tag_invalid", "union_tag_not_found")
LIMITS = {"greater_than_equal": "ge", "greater_than": "gt", "less_than_equal": "le", "less_than": "lt"}
LIMIT_WORDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}


def field_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of every key that `model` takes, groups before what they hold."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        below = (
            path for group in _groups_of(field.annotation) for path in field_paths(group, f"{prefix}{name}.")
        )
        yield from dict.fromkeys(below)  # members of a union share keys


def explain(error: ValidationError, model: type[BaseModel]) -> tuple[str, str]:
    """Translate the first failure of a validation.

    Args:
        error: what `model.model_validate` raised.
        model: the model that refused its input.

    Returns:
        The dotted key it is about, and a sentence without a full stop that starts with that key. Failures
        at other keys are counted at its end.
    """
    by_key: dict[str, list[tuple[str, Any]]] = {}
    groups: dict[str, type[BaseModel]] = {}
    for detail in error.errors(include_url=False):
        key, item, groups[key] = _key_of(detail["loc"], model)
        if detail["type"] in _TAG_ERRORS:
            key = f"{key}.{detail['ctx']['discriminator'].strip(chr(39))}"
        by_key.setdefault(key, []).append((item, detail))
    key, details = next(iter(by_key.items()))
    sentence = _sentence(key, details, model, groups.get(key, model))
    others = len(by_key) - 1
    return key, f"{sentence} (and {others} more)" if others else sentence


def describe_value(value: Any) -> str:
    """A value as a user would call it: kind and short text."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list | tuple):
        return f"the list {_shorten(str(list(value)))}"
    if isinstance(value, int | float):
        return _shorten(str(value))
    return (
        f"the text {_shorten(value)!r}" if isinstance(value, str) else f"the {type(value).__name__} {value}"
    )


def _groups_of(annotation: Any) -> list[type[BaseModel]]:
    """The models behind an annotation: one, also behind `Model | None`, or the members of a union."""
    return [
        candidate
        for candidate in (annotation, *get_args(annotation))
        if isinstance(candidate, type) and issubclass(candidate, BaseModel)
    ]


def _key_of(location: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, str, type[BaseModel]]:
    """Split pydantic's location into the dotted key, the index inside a list value ("" or "[2]"), and the key's group.

    Locations also hold the names of union members (`cfg_scale.float`, `policy.dense`), which mean nothing to a user.
    """
    keys: list[str] = []
    group = model
    rest = list(location)
    while rest:
        key = str(rest.pop(0))
        keys.append(key)
        field = group.model_fields.get(key)
        below = [] if field is None else _groups_of(field.annotation)
        if len(below) > 1 and rest:  # a union, whose member is named next
            name = rest.pop(0)
            below = [member for member in below if _tag(member) == name]
        if not below:
            break
        if rest:
            group = below[0]
    return ".".join(keys), "".join(f"[{part}]" for part in rest if isinstance(part, int)), group


def _others(group: type[BaseModel], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The other members of the union in `model` that `group` is one of."""
    unions = [_groups_of(field.annotation) for field in model.model_fields.values()]
    return [other for union in unions if group in union for other in union if other is not group]


def _tags(key: str, model: type[BaseModel]) -> list[str]:
    """The names by which the members of a union are told, whose key of the name is `key`."""
    members: list[type[BaseModel]] = [model]
    for name in key.split(".")[:-1]:
        members = _groups_of(members[0].model_fields[name].annotation)
    return [str(_tag(member)) for member in members]


def _tag(member: type[BaseModel]) -> Any:
    """The name by which a union tells its member."""
    return member.model_fields["name"].default if "name" in member.model_fields else None


def _sentence(
    key: str, details: list[tuple[str, Any]], model: type[BaseModel], group: type[BaseModel]
) -> str:
    """One sentence from all failures of one key; a union gives one failure for each member."""
    # What failed deepest, and by its value rather than by its type, is what the user meant.
    item, detail = max(details, key=lambda pair: (bool(pair[0]), not pair[1]["type"].endswith("_type")))
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(key, model, group)
    if kind == "missing":
        return f"{key} is missing and has no default"
    if kind == "value_error":
        return f"{key}{item}: {context['error']}".removeprefix(": ")  # a rule about several keys has no key
    if kind in {"string_too_short", "too_short"}:
        return f"{key}{item} must not be empty"
    if kind == "union_tag_not_found":
        return f"{key} is missing and has no default; it is one of {', '.join(_tags(key, model))}"
    if kind == "union_tag_invalid":
        expected, value = _choices(context["expected_tags"]), value[key.rpartition(".")[2]]
    elif kind == "literal_error":
        expected = _choices(context["expected"])
    elif kind in LIMITS:
        limit = context[LIMITS[kind]]
        expected = (
            f"{LIMIT_WORDS[LIMITS[kind]]} {format(limit, '.2g') if isinstance(limit, float) else limit}"
        )
    else:
        kinds = dict.fromkeys(EXPECTED.get(d["type"], d["msg"]) for i, d in details if i == item)
        expected = " or ".join(kinds)
    return f"{key}{item} must be {expected}, got {describe_value(value)}{_hint(value, expected)}"


def _unknown_key(key: str, model: type[BaseModel], group: type[BaseModel]) -> str:
    """Name the unknown key and the existing one it most resembles, in its own group first."""
    prefix, _, leaf = key.rpartition(".")
    siblings = list(group.model_fields)
    elsewhere = {path.rpartition(".")[2]: path for path in reversed(list(field_paths(model))) if path != key}
    near_sibling, near_elsewhere = nearest(leaf, siblings), nearest(leaf, elsewhere)
    owners = [_tag(other) for other in _others(group, model) if leaf in other.model_fields]
    if owners:
        return f"unknown key {key}; it belongs to {prefix} {', '.join(owners)}, not to {_tag(group)}"
    if leaf in elsewhere:
        near = elsewhere[leaf]
    elif near_sibling is not None:
        near = f"{prefix}.{near_sibling}" if prefix else near_sibling
    elif near_elsewhere is not None and not elsewhere[near_elsewhere].startswith(f"{prefix}."):
        near = elsewhere[near_elsewhere]
    else:
        owner = f"{prefix} {_tag(group)}" if _tag(group) else prefix or "a job"
        return f"unknown key {key}; {owner} takes {', '.join(siblings)}"
    return f"unknown key {key}; did you mean {near}?"


def _choices(expected: str) -> str:
    """The allowed values of a literal, as "one of a, b, c"."""
    options = [option.strip("'") for option in expected.replace(" or ", ", ").split(", ")]
    return f"one of {', '.join(options)}" if len(options) > 1 else options[0]


def _hint(value: Any, expected: str) -> str:
    """Where YAML 1.1 reads something else than the user wrote, or a choice is misspelled: what to write."""
    if isinstance(value, str) and expected.startswith("one of "):
        near = nearest(value, expected.removeprefix("one of ").split(", "))
        return f"; did you mean {near}?" if near else ""
    if isinstance(value, str) and "number" in expected:
        return _number_hint(value)
    if expected == "text" and isinstance(value, bool):
        return "; YAML reads yes, no, on, off, true and false as booleans, put the text in quotes"
    quotable = expected == "text" and value is not None and not isinstance(value, dict | list | tuple)
    return "; put it in quotes" if quotable else ""


def _number_hint(text: str) -> str:
    """How to write the number that `text` was meant to be; empty when it is none."""
    try:
        number = float(text)
    except ValueError:
        return ""
    if not isinstance(yaml.safe_load(text), str):
        return "; write it without quotes"
    return f"; YAML reads {text} as text, write {int(number) if number.is_integer() else number}"


def _shorten(text: str, limit: int = 60) -> str:
    """Text cut to `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
