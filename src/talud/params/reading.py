"""Checks and error messages of params.yaml."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from talud.errors import ParamsError

_TEXT_TAG = "tag:yaml.org,2002:str"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_NUMBER = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+"
)  # numbers of YAML 1.2
# Types of keys that are not text, by their tag in YAML 1.1.
_NON_TEXT_TYPES = {
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:timestamp": "a date",
}


class Frozen(BaseModel):
    """Section of params.yaml: immutable, and unknown keys are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _checked_name(name: str) -> str:
    """Check a name of files, DVC stages and registered models."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(
            f"the name '{name}' must consist of letters, digits, _ and -, and begin with a letter or digit"
        )
    return name


Name = Annotated[str, AfterValidator(_checked_name)]


def check_keys(text: str) -> None:
    """Check that YAML keys are strings and unique.

    PyYAML silently keeps the last of duplicate keys.

    Raises:
        yaml.YAMLError: a key is duplicated, or the text is not YAML.
        ParamsError: a key is not a string.
    """
    nodes, seen = [yaml.compose(text, yaml.SafeLoader)], set()
    for node in nodes:
        if node is None or id(node) in seen:  # empty, or visited through an alias
            continue
        seen.add(id(node))
        lines: dict[str, int] = {}
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                nodes.append(value)
                name, line = key.value, key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if kind := _non_text_type(key):
                    raise ParamsError(
                        f"the key {name} in line {line} is {kind} in YAML, not a name; put it in quotes, here and "
                        f'wherever it is used: "{name}"'
                    )
                if name in lines:
                    raise yaml.YAMLError(f"the key '{name}' in line {line} is a duplicate of line {lines[name]}")
                lines[name] = line


def _non_text_type(key: yaml.ScalarNode) -> str | None:
    """Return the type of a non-string key, or None.

    A key must be a string in YAML 1.1 (PyYAML) and in YAML 1.2 (DVC).
    """
    if key.style is None and _NUMBER.fullmatch(key.value):
        return "a number"
    if key.tag in (_TEXT_TAG, _MERGE_TAG):
        return None
    return _NON_TEXT_TYPES.get(key.tag, "not text")


def validation_message(error: ValidationError, model: type[BaseModel]) -> str:
    """Return a one-line message about the first error.

    Unknown keys come first, since a typo may cause another key to be missing. The message lists the allowed keys.
    """
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"] if part != "[key]"]
    where = ".".join(location)
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "model_type":
            message = "expected keys with values"
        if first["type"] == "missing":
            return f"the key '{where}' is missing"
        if first["type"] == "string_type":
            message = _not_text_message(first["input"])
        return f"{where}: {message}" if where else message
    allowed = sorted(_allowed_keys(model, location[:-1]))
    close = difflib.get_close_matches(location[-1], allowed, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown key '{where}'{hint} (allowed: {', '.join(allowed)})"


def _not_text_message(value: object) -> str:
    """Return the message for a value that is no string."""
    if value is None:
        return "expected text, but the value is empty; put null and ~ in quotes if they are names"
    if isinstance(value, bool):
        return "expected text, but YAML reads yes, no, on, off, true and false as booleans; put the value in quotes"
    return f"expected text, but YAML reads {str(value)[:60]!r} as another type; put the value in quotes"


def _allowed_keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """Return the keys allowed at a location."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[part].annotation
        else:  # a mapping of names to models
            current = current.__args__[-1]
    return list(current.model_fields)
