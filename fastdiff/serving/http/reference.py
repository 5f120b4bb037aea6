"""The page /docs: the routes as OpenAPI describes them, as plain HTML, for pages here load nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import Any

__all__ = ["reference"]


def reference(openapi: dict[str, Any]) -> str:
    """The HTML of an OpenAPI description."""
    info = openapi["info"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{escape(info['title'])}</title><link rel=stylesheet href=static/style.css>",
        f"<main><h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        "<p>As a description for programs: <a href=openapi.json>openapi.json</a></p>",
    ]
    for path, methods in openapi["paths"].items():
        for method, about in methods.items():
            parts.append(
                f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(about.get('summary', ''))}</p>"
            )
            if about.get("description"):
                parts.append(f"<p>{escape(about['description'])}</p>")
            parts += _answers(about.get("responses", {}))
    for name, schema in openapi.get("components", {}).get("schemas", {}).items():
        parts += _fields(name, schema)
    return "".join([*parts, "</main></html>"])


def _answers(responses: dict[str, Any]) -> list[str]:
    lines = (f"<li><code>{escape(status)}</code> {escape(it['description'])}</li>" for status, it in responses.items())
    return ["<ul>", *lines, "</ul>"]


def _fields(name: str, schema: dict[str, Any]) -> list[str]:
    rows = [
        f"<tr><th scope=row><code>{escape(field)}</code></th><td>{escape(_kind(about))}</td>"
        f"<td>{escape(about.get('description', ''))}</td></tr>"
        for field, about in schema.get("properties", {}).items()
    ]
    return [f"<h2 id={escape(name)}>{escape(name)}</h2><table>", *rows, "</table>"] if rows else []


def _kind(about: dict[str, Any]) -> str:
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_kind(part) for part in about["anyOf"] if part.get("type") != "null"))
    if about.get("type") == "array":
        return f"list of {_kind(about.get('items', {}))}"
    return str(about.get("type", about.get("$ref", "").rpartition("/")[2] or "anything"))
