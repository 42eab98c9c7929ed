"""Checks of the text of params.yaml, and messages for its faults."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from talud.errors import ParamsError

_TEXT_TAG = "tag:yaml.org,2002:str"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+")  # of YAML 1.2
_NON_TEXT_TYPES = {  # of keys that are no text, by their tag in YAML 1.1
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:timestamp": "a date",
}


class Frozen(BaseModel):
    """Part of params.yaml, immutable and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _checked_name(name: str) -> str:
    """Check a name, which becomes a file, a DVC stage and a registered model."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"the name '{name}' may hold letters, digits, _ and -, and begins with a letter or digit")
    return name


Name = Annotated[str, AfterValidator(_checked_name)]


def check_keys(text: str) -> None:
    """Check that all keys of a YAML text are text and unique.

    PyYAML silently keeps the last of equal keys.

    Raises:
        yaml.YAMLError: one stands twice, or the text is not YAML.
        ParamsError: one is no text.
    """
    nodes, seen = [yaml.compose(text, yaml.SafeLoader)], set()
    for node in nodes:
        if node is None or id(node) in seen:  # an alias
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
                        f'wherever it is named: "{name}"'
                    )
                if name in lines:
                    raise yaml.YAMLError(f"the key '{name}' in line {line} stands in line {lines[name]} already")
                lines[name] = line


def _non_text_type(key: yaml.ScalarNode) -> str | None:
    """Return the type that YAML gives to a key which is not text.

    YAML 1.1 and 1.2 are considered, since DVC reads the later one. None where the key is text.
    """
    if key.style is None and _NUMBER.fullmatch(key.value):
        return "a number"
    if key.tag in (_TEXT_TAG, _MERGE_TAG):
        return None
    return _NON_TEXT_TYPES.get(key.tag, "no text")


def validation_message(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first fault on one line, with the allowed keys where a key is wrong.

    Unknown keys come first, since a typo may make another key missing.
    """
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"] if part != "[key]"]
    where = ".".join(location)
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "model_type":
            message = "expected keys, each with its value"
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
    """Return the message for a value that YAML does not read as text."""
    if value is None:
        return "expected a text, but the value is empty; put null and ~ in quotes where they are names"
    if isinstance(value, bool):
        return "expected a text; YAML reads yes, no, on, off, true and false as something else: put it in quotes"
    return f"expected a text, but it is {str(value)[:60]!r} to YAML; put it in quotes"


def _allowed_keys(model: type[BaseModel], location: list[str]) -> list[str]:
    """Return the keys that are allowed at a location of the file."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[part].annotation
        else:  # a mapping of names to models
            current = current.__args__[-1]
    return list(current.model_fields)
