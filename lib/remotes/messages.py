"""Send messages to the addresses of `NOTIFY_URLS`, with Apprise.

Guarantees: `send` returns within `LIMIT` seconds whatever the services do, and raises nothing. No address is shown: a
problem names the service and the position in `NOTIFY_URLS`, from 1, and what Apprise says without credentials.
Cannot: know that a message was read, or repeat one that was refused.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lib.errors import CredentialsError
from lib.remotes.credentials import Credentials

LIMIT = 60.0  # seconds for all addresses together


def check_addresses(credentials: Credentials) -> str:
    """Return the services of the addresses as text. Raises `CredentialsError` for those that Apprise cannot read."""
    services = [(number, _read(url)) for number, url in enumerate(credentials.notify_urls, 1)]
    if wrong := [str(number) for number, service in services if service is None]:
        raise CredentialsError(
            f"{credentials.source}: NOTIFY_URLS has addresses that Apprise cannot read: number {', '.join(wrong)}.",
            state="nothing was trained; no address is shown here.",
            remedy="write them as Apprise's list of services shows (https://appriseit.com/services/).",
        )
    return ", ".join(str(service.service_name) for _, service in services if service)


def send(credentials: Credentials, title: str, text: str, picture: Path | None = None) -> list[str]:
    """Send a message to every address, with the picture where the service takes some; return what went wrong."""
    if not credentials.notify_urls:
        return []
    problems: list[str] = []
    over = threading.Event()

    def work() -> None:
        problems.extend(_send_all(credentials, title, text, picture))  # each as soon as it is found
        over.set()

    # a daemon: a service that never answers does not keep the process alive
    threading.Thread(target=work, name="messages", daemon=True).start()
    if not over.wait(LIMIT):
        return [*problems, f"NOTIFY_URLS: not every message was sent within {LIMIT:.0f} s"]
    return problems


def _send_all(credentials: Credentials, title: str, text: str, picture: Path | None) -> Iterator[str]:
    for number, url in enumerate(credentials.notify_urls, 1):
        try:
            problem = _send_one(url, title, text, picture)
        except Exception as error:  # noqa: BLE001  a message must never cost a run
            problem = f"{type(error).__name__}: {error}"
        if problem:
            yield credentials.redact(f"NOTIFY_URLS, number {number}: {problem}")


def _send_one(url: str, title: str, text: str, picture: Path | None) -> str:
    """Send a message to one address; return why that failed, empty if it did not."""
    import apprise

    service = _read(url)
    if service is None:
        return "Apprise cannot read it"
    shown = str(picture) if picture and picture.is_file() and service.attachment_support else None
    with apprise.LogCapture(level=logging.WARNING, fmt="%(message)s") as said:
        sent = service.notify(body=text, title=title, attach=apprise.AppriseAttachment(shown) if shown else None)
        lines = said.getvalue().split("\n")
    return "" if sent else f"{service.service_name}: {' '.join(filter(None, lines)) or 'it was not sent'}"


def _read(url: str) -> Any:  # noqa: ANN401  a service of Apprise's, which has no types; None if it cannot read the URL
    import apprise

    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it would print the address
    return apprise.Apprise.instantiate(url)
