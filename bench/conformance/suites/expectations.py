"""A pytest plugin for tests of others: which fail here for a reason, and which fields are left out on their way.

The file that CONFORMANCE_EXPECTED names has tables, each with ``test``, a pattern that finds tests by their id:

- ``[[apart]]``, ``why``: these judge no server, and do not run.
- ``[[fails]]``, ``says``, ``why``: these fail with such words. An answer of 5xx is never expected.
- ``[[without]]``, ``fields``: what our 400s name is left out, field by field, and the rest must be answered. A picture
  that is none is replaced by one.

An entry that stays without effect fails the run: the lists say what is, not what may be.
"""

from __future__ import annotations

import base64
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, BadRequestError
from openai._base_client import AsyncAPIClient, SyncAPIClient

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAUUlEQVR42u3PMQ0AMAgAMJga5CAbWVPBQdI6aE5XXPbiOAEBAQEBAQEBAQEB"
    "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAYF9H5KYAcAV7LD0AAAAAElFTkSuQmCC"
)
EXPECTED: dict[str, list[dict[str, Any]]] = tomllib.loads(Path(os.environ["CONFORMANCE_EXPECTED"]).read_text())
used: set[int] = set()
left_out: set[str] = set()


def entry_for(kind: str, test: str, said: str = "") -> dict[str, Any] | None:
    for entry in EXPECTED.get(kind, []):
        if re.search(entry["test"], test) and re.search(entry.get("says", ""), said):
            used.add(id(entry))
            return entry
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    apart = [item for item in items if entry_for("apart", item.nodeid)]
    items[:] = [item for item in items if item not in apart]
    config.hook.pytest_deselected(items=apart)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: Any = yield
    if report.failed and call.excinfo is not None:
        error = call.excinfo.value
        broken = isinstance(error, APIStatusError) and error.status_code >= 500
        if not broken and (entry := entry_for("fails", item.nodeid, str(error))) is not None:
            report.outcome, report.wasxfail = "skipped", entry["why"]
    return report


@pytest.fixture(autouse=True)
def fields_left_out(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test leaves out is what its entry lists."""
    entry = entry_for("without", request.node.nodeid)
    left_out.clear()
    with pytest.MonkeyPatch.context() as patch:
        if entry is not None:
            patch.setattr(SyncAPIClient, "request", _leaving_out(SyncAPIClient.request, entry["fields"]))
            patch.setattr(AsyncAPIClient, "request", _leaving_out_async(AsyncAPIClient.request, entry["fields"]))
        yield
    if entry is not None and left_out != set(entry["fields"]):
        pytest.fail(f"left out: {sorted(left_out)}")


def _without(error: BadRequestError, options: Any, fields: list[str]) -> None:
    """Take the field out of a request that the error names, or raise the error."""
    field = re.split(r"[.\[]", error.param or "")[0]
    if field not in fields or field in left_out:
        raise error
    left_out.add(field)
    files = [(name, file) for name, file in options.files or () if name != field]
    if field == "image":
        files.append((field, ("a.png", PNG)))
    options.files = files or None
    (options.json_data or {}).pop(field, None)


def _leaving_out(send: Any, fields: list[str]) -> Any:
    def request(client: Any, cast_to: Any, options: Any, **how: Any) -> Any:
        while True:
            try:
                return send(client, cast_to, options.model_copy(), **how)
            except BadRequestError as error:
                _without(error, options, fields)

    return request


def _leaving_out_async(send: Any, fields: list[str]) -> Any:
    async def request(client: Any, cast_to: Any, options: Any, **how: Any) -> Any:
        while True:
            try:
                return await send(client, cast_to, options.model_copy(), **how)
            except BadRequestError as error:
                _without(error, options, fields)

    return request


def pytest_sessionfinish(session: pytest.Session) -> None:
    unused = [entry for entries in EXPECTED.values() for entry in entries if id(entry) not in used]
    for entry in unused:
        print(f"\nnot so: {entry}")
    if unused:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
