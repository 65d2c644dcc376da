"""``python -m quintet_common.probe [URL]``: whether the server in this container answers 200, for HEALTHCHECK.

Needs nothing but the standard library, and is done in a few hundredths of a second. What it prints is kept by the
container engine: ``docker inspect --format '{{json .State.Health}}' CONTAINER``.
"""

from __future__ import annotations

import sys
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

URL = "http://127.0.0.1:8000/ready"
SECONDS = 3.0
_SHOWN = 2000


def probe(url: str) -> tuple[bool, str]:
    """Whether ``url`` answers 200 in time, and the beginning of the answer or the reason why there is none."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname or "", address.port, timeout=SECONDS)
    try:
        connection.request("GET", address.path or "/")
        response = connection.getresponse()
        text = response.read(_SHOWN).decode(errors="replace")
    except (OSError, HTTPException) as error:
        return False, f"{url}: {error}"
    finally:
        connection.close()
    return response.status == 200, f"{response.status} {text}"


def main() -> None:
    healthy, said = probe(sys.argv[1] if len(sys.argv) > 1 else URL)
    sys.stdout.write(said + "\n")
    sys.exit(not healthy)


if __name__ == "__main__":
    main()
