"""Sphinx extension that generates reference tables from the code.

The fragments are written before each build to `docs/reference/_generated/`, which git ignores; the pages include them.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click
from typer.core import TyperGroup

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
_API = "api"
_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the generation as the first step of a build."""
    app.connect("builder-inited", write_fragments)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("doctree-resolved", replace_hyphens)
    return {"parallel_read_safe": True}


def write_fragments(_app: Sphinx) -> None:
    """Write every generated fragment whose content has changed."""
    folder = DOCS / "reference" / "_generated"
    folder.mkdir(exist_ok=True)
    logging.disable(logging.INFO)  # libraries that the service imports report their set-up
    texts = fragments()
    logging.disable(logging.NOTSET)
    for name, text in texts.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def shorten_signature(
    _app: Sphinx, _what: str, _name: str, obj: object, _options: object, signature: str | None, annotation: str | None
) -> tuple[str, str | None] | None:
    """Replace the signature of a pydantic model or of a class with private fields."""
    if not inspect.isclass(obj) or not signature:
        return None
    if issubclass(obj, BaseModel):
        return "(*, " + ", ".join(
            f"{key}={field.default!r}" for key, field in obj.model_fields.items()
        ) + ")", annotation
    return ("", annotation) if " _" in signature else None


def replace_hyphens(_app: Sphinx, doctree: nodes.document, _name: str) -> None:
    """Replace the hyphens between a parameter and its description by a dash.

    Sphinx's own replacement of hyphens is off, because it would also replace those of options such as `--out`.
    """
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def fragments() -> dict[str, str]:
    """Return the text of each fragment by name."""
    from talud.contract import Contract
    from talud.params import Params

    return {
        "cli": command_line(),
        "params": model_tables(Params, "params"),
        "contract": model_tables(Contract, "contract"),
        "settings": settings_table(),
        "http-api": http_api(),
        "modules": modules(),
        "benchmarks": benchmarks(),
        "service-benchmarks": service_benchmarks(),
    }


def command_line() -> str:
    """Return usage, arguments and options of every command, by command group."""
    from talud.cli.main import app

    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    context = typer.Context(group, info_name="talud")
    panels: dict[str, list[str]] = {}
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if not command.hidden:
            panel = getattr(command, "rich_help_panel", None)
            text = get_docs_for_click(obj=command, ctx=context, indent=2, call_prefix="talud")
            panels.setdefault(panel if isinstance(panel, str) else "Commands", []).append(text)
    return "\n".join(f"## {panel}\n\n" + "".join(texts) for panel, texts in panels.items())


def model_tables(model: type[BaseModel], page: str) -> str:
    """Return a table of the fields of a model, then of each model that it contains.

    Args:
        model: the outermost model.
        page: name of the page, with which its anchors begin.
    """
    schema = model.model_json_schema()
    models = schema.get("$defs", {})
    parts = [_field_table(schema, page, models)]
    for name in models:
        parts += _object(name, models, page)
    return "\n\n".join(parts) + "\n"


def _object(name: str, models: dict[str, Any], page: str, level: str = "##") -> Iterator[str]:
    schema = models[name]
    yield f"({page}-{name.lower()})="
    yield f"{level} {name}"
    if description := inspect.cleandoc(schema.get("description", "")):
        yield description
    yield _field_table(schema, page, models) if "properties" in schema else _type(schema, page).capitalize() + "."


def _field_table(schema: dict[str, Any], page: str, models: dict[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        (
            f"`{name}`",
            _type(field, page),
            "required" if name in required else _default(field),
            field.get("description") or _first_line(field, models),
        )
        for name, field in schema["properties"].items()
    ]
    return _table(("key", "type", "default", "description"), rows)


def _first_line(schema: dict[str, Any], models: dict[str, Any]) -> str:
    """Return the first line of the description of the model to which a field refers."""
    named = [schema, schema.get("additionalProperties"), *schema.get("anyOf", ())]
    names = [each["$ref"].rpartition("/")[2] for each in named if isinstance(each, dict) and "$ref" in each]
    return str(models[names[0]].get("description", "")).partition("\n")[0] if names else ""


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in lines
    )


def _type(schema: dict[str, Any], page: str) -> str:
    """Return the type of a value in words, with its limits."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{page}-{name.lower()})"
    if "anyOf" in schema or "oneOf" in schema:
        options = schema.get("anyOf") or schema["oneOf"]
        return " or ".join(dict.fromkeys(_type(each, page) for each in options))
    if "allOf" in schema:
        return _type(schema["allOf"][0], page)
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(each) if not isinstance(each, str) else each}`" for each in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any value")
    if kind == "array":
        if "prefixItems" in schema:
            return "list of " + ", ".join(_type(each, page) for each in schema["prefixItems"])
        return f"list of {_type(schema.get('items', {}), page)}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping of names to {_type(values, page)}" if isinstance(values, dict) else "mapping"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
    text = {"date": "date", "path": "path", "uri": "address"}.get(schema.get("format", ""), words.get(kind, kind))
    limits = [f"{sign} {schema[key]:g}" for key, sign in _LIMITS.items() if key in schema]
    return ", ".join([text, *limits])


def _default(schema: dict[str, Any]) -> str:
    default = schema.get("default", "")
    if default == "" or (isinstance(default, dict) and len(json.dumps(default)) > 40):
        return ""
    return f"`{default if isinstance(default, str) else json.dumps(default, ensure_ascii=False)}`"


def settings_table() -> str:
    """Return a table of the environment variables of the service."""
    from talud.serving.settings import Settings

    schema, prefix = Settings.model_json_schema(), Settings.model_config["env_prefix"]
    rows = [
        (f"`{prefix}{name.upper()}`", _type(field, "settings"), _default(field), field.get("description", ""))
        for name, field in schema["properties"].items()
    ]
    return _table(("variable", "type", "default", "description"), rows) + "\n"


def http_api() -> str:
    """Return the operations and objects of the service's OpenAPI description."""
    from talud.serving.app import create_app
    from talud.serving.settings import Settings

    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data=Path(folder), results=Path(folder) / "results")
        schema = create_app(settings, open_to_all=True).openapi()
    parts = ["## Operations"]
    for path, methods in schema["paths"].items():
        parts += [text for method, operation in methods.items() for text in _operation(method, path, operation)]
    parts.append("## Objects")
    models = schema.get("components", {}).get("schemas", {})
    for name in sorted(models):
        parts += _object(name, models, _API, "###")
    return "\n\n".join(parts) + "\n"


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### `{method.upper()} {path}`"
    yield inspect.cleandoc(operation.get("description") or operation.get("summary", ""))
    if parameters := operation.get("parameters"):
        rows = [
            (
                f"`{one['name']}`",
                one["in"],
                _type(one["schema"], _API),
                one.get("description", one["schema"].get("description", "")),
            )
            for one in parameters
        ]
        yield _table(("parameter", "in", "type", "description"), rows)
    if body := operation.get("requestBody"):
        content = ", ".join(
            f"`{kind}`: {_type(each.get('schema', {}), _API)}" for kind, each in body["content"].items()
        )
        yield f"Request body: {content}"
    rows = [
        (f"{status}", each.get("description", ""), ", ".join(f"`{kind}`" for kind in each.get("content", {})))
        for status, each in operation["responses"].items()
    ]
    yield _table(("status", "meaning", "content"), rows)


def modules() -> str:
    """Return a table of the first lines of all modules' docstrings, for each package."""
    source = ROOT / "src"
    parts: dict[str, list[tuple[str, ...]]] = {}
    for path in sorted((source / "talud").rglob("*.py")):
        names = path.relative_to(source).with_suffix("").parts
        package = ".".join(names[:-1])
        name = package if path.stem == "__init__" else ".".join(names)
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        parts.setdefault(package, []).append((f"`{name}`", docstring.partition("\n")[0]))
    tables = [f"## {package}\n\n{_table(('module', 'content'), rows)}" for package, rows in sorted(parts.items())]
    return "\n\n".join(tables) + "\n"


def benchmarks() -> str:
    """Return the table of `bench/results.json`."""
    rows = [
        (
            each["name"],
            f"{each['value']:g} {each['unit']}",
            each["target"],
            "yes" if each["met"] else "**no**",
            each["how"],
        )
        for each in json.loads((ROOT / "bench" / "results.json").read_text(encoding="utf-8"))
    ]
    return _table(("measurement", "value", "target", "met", "conditions"), rows) + "\n"


def service_benchmarks() -> str:
    """Return the table of `bench/service.json`."""
    figures = json.loads((ROOT / "bench" / "service.json").read_text(encoding="utf-8"))
    return _table(("figure", "value"), [(name, f"{value:,g}") for name, value in figures.items()]) + "\n"
