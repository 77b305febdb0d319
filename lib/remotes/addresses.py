"""Read the address of a Git repository: the only place that knows its forms."""

from __future__ import annotations

import re

SSH = re.compile(
    r"""
    (?:git\+)?ssh://(?:[^@/]+@)?(?P<host>[^:/]+)(?::\d+)?/(?P<path>.+)  # the port is that of ssh alone
    | (?:[^@:/]+@)?(?P<short>[^@:/]{2,}):(?!//)(?P<rest>.+)  # git@host:path; one letter is a drive of Windows
    """,
    re.VERBOSE,
)


def without_user(url: str) -> str:
    """Return a URL without the user name, password or token that it may contain, for messages."""
    return re.sub(r"://[^/\s]*@", "://", url)  # to the last @: a password may contain one


def public_url(url: str) -> str:
    """Return the address of a repository over HTTPS, without any user name or token; a path stays as it is."""
    ssh = SSH.fullmatch(url)
    if ssh is None:
        return without_user(url) if re.match("https?://", url, re.IGNORECASE) else url
    host = ssh["host"] or ssh["short"]
    if host == "ssh.github.com":  # GitHub's host for ssh over port 443
        host = "github.com"
    return f"https://{host}/{(ssh['path'] or ssh['rest']).lstrip('/')}"


def host_and_path(url: str) -> str:
    """Return what names a repository, over HTTPS and SSH alike: its host and path, or its path on this machine."""
    return re.sub(r"^\w+://", "", public_url(url)).rstrip("/").removesuffix(".git")
