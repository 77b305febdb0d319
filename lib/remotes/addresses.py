"""Read the address of a Git repository: the only place that knows its forms."""

from __future__ import annotations

import re

from lib.errors import RemoteError

SSH = re.compile(
    r"""
    (?:git\+)?ssh://(?:[^@/]+@)?(?P<host>[^:/]+)(?::\d+)?/(?P<path>.+)  # the port is that of ssh alone
    | (?:[^@:/]+@)?(?P<short>[^@:/]{2,}):(?!//)(?P<rest>.+)  # git@host:path; one letter is a drive of Windows
    """,
    re.VERBOSE,
)
SLASHED = re.compile(r"://[^/\s:@\[]*:(?!\d*(?:/|$))([^/\s@]*/\S*)@")
"""A login whose password contains a /, at which every program takes the host and its port to end.

Cannot: see it if only digits precede the /: then it is a port, and the @ is one of the path."""


def refuse_slash(key: str, address: str, command: str) -> None:
    """Raise `RemoteError` for an address with such a password; `command` sets another one.

    Git and DVC would print the beginning of the password.
    """
    if SLASHED.search(address):
        raise RemoteError(
            f"{key} has a password with a /, and no program can read such an address.",
            remedy=f"`{command}`, without user and password: keys belong in secrets.json. In an address a / of a "
            "password is written as %2F.",
        )


def without_user(url: str) -> str:
    """Return a URL without the user name, password or token that it may contain, for messages."""
    return re.sub(r"://[^/\s]*@", "://", SLASHED.sub("://", url))  # to the last @: a password may contain one


def public_url(url: str) -> str:
    """Return the address of a repository over HTTPS, without any user name or token; a path stays as it is."""
    ssh = SSH.fullmatch(url)
    if ssh is None:
        return without_user(url)
    host = ssh["host"] or ssh["short"]
    if host == "ssh.github.com":  # GitHub's host for ssh over port 443
        host = "github.com"
    return f"https://{host}/{(ssh['path'] or ssh['rest']).lstrip('/')}"


def host_and_path(url: str) -> str:
    """Return what names a repository, over HTTPS and SSH alike: its host and path, or its path on this machine."""
    return re.sub(r"^\w+://", "", public_url(url)).rstrip("/").removesuffix(".git")
