"""One OpenAPI document out of those of all services."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

_OWN = frozenset(("/v1/models", "/v1/models/{model}"))
_TEXT, _TEXT_OR_NULL = {"type": "string"}, {"type": ["string", "null"]}
_FIELDS = {"message": _TEXT, "type": _TEXT, "param": _TEXT_OR_NULL, "code": _TEXT_OR_NULL}
_ERROR = {
    "description": "What is wrong, and with which field",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {"error": {"type": "object", "required": list(_FIELDS), "properties": _FIELDS}},
            }
        }
    },
}


def merge(documents: Iterable[tuple[str, dict[str, Any]]], own: dict[str, Any]) -> dict[str, Any]:
    """``own`` with the paths and components of ``documents``, which are (name of the service, document).

    The same path in two of them stays as the first says. Components of one name that differ are renamed after their
    service, and the references to them with them.
    """
    result: dict[str, Any] = json.loads(json.dumps(own))
    result["tags"] = list(result.get("tags", []))
    components: dict[str, dict[str, Any]] = result.setdefault("components", {})
    for name, document in documents:
        document = _with_free_names(document, components, name)
        for section, entries in document.get("components", {}).items():
            components.setdefault(section, {}).update(entries)
        for path, operations in document.get("paths", {}).items():
            if path not in _OWN:
                for method, operation in operations.items():
                    result["paths"].setdefault(path, {}).setdefault(method, operation)
        result["tags"] += [tag for tag in document.get("tags", []) if tag not in result["tags"]]
    _add_errors(result)
    return result


def _add_errors(document: dict[str, Any]) -> None:
    """Every path answers errors in OpenAI's shape, and none as FastAPI says of itself."""
    document["components"].setdefault("responses", {})["Error"] = _ERROR
    for operations in document["paths"].values():
        for operation in operations.values():
            responses = operation.setdefault("responses", {})
            responses.pop("422", None)
            for status in ("4XX", "5XX"):
                responses.setdefault(status, {"$ref": "#/components/responses/Error"})


def _with_free_names(document: dict[str, Any], taken: dict[str, dict[str, Any]], service: str) -> dict[str, Any]:
    """The document with every component renamed whose name is taken by a different one."""
    renamed = {}
    for section, entries in document.get("components", {}).items():
        there = taken.get(section, {})
        for name, entry in entries.items():
            if name in there and there[name] != entry:
                renamed[f"#/components/{section}/{name}"] = f"#/components/{section}/{service}_{name}"
    if not renamed:
        return document
    document = _replace_refs(document, renamed)
    for old, new in renamed.items():
        _, _, section, name = old.split("/", 3)
        entries = document["components"][section]
        entries[new.rsplit("/", 1)[1]] = entries.pop(name)
    return document


def _replace_refs(node: Any, renamed: dict[str, str]) -> Any:
    if isinstance(node, list):
        return [_replace_refs(item, renamed) for item in node]
    if isinstance(node, dict):
        replaced = {key: _replace_refs(value, renamed) for key, value in node.items()}
        reference = replaced.get("$ref")
        if isinstance(reference, str):
            replaced["$ref"] = renamed.get(reference, reference)
        return replaced
    return node
