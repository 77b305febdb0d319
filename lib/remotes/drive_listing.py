"""List the objects of a DVC remote on Google Drive, through DVC's own client.

Guarantees: each folder is listed once, as it is now, and each of several twins. A refusal that passes by itself is
waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lib.remotes.answers import patiently
from lib.remotes.store_errors import explain

AT_ONCE = 16  # requests; each takes about 0.2 s, and Drive accepts some 200 a second of one user
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before a request is repeated
logging.getLogger("googleapiclient.http").setLevel(logging.ERROR)  # it prints each refusal that is repeated here


def list_objects(odb: Any, prefixes: Collection[str]) -> set[str]:  # noqa: ANN401  DVC's object database
    """Return the objects whose first two digits are in `prefixes`: the names of their folders."""
    drive = patiently(lambda: odb.fs.fs, explain, PAUSES)  # pydrive2 signs in here
    root, *titles = odb.path.strip("/").split("/")
    parents = [root]
    for title in titles:
        parents = [folder["id"] for folder in _find_folders(drive, parents, [title])]
    folders = _find_folders(drive, parents, prefixes)
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="listing") as pool:
        listed = pool.map(lambda folder: _list(drive, folder["id"]), folders)
        return {
            folder["title"] + item["title"] for folder, items in zip(folders, listed, strict=True) for item in items
        }


def _find_folders(drive: Any, parents: Iterable[str], titles: Collection[str]) -> list[Any]:  # noqa: ANN401  pydrive2's
    """Return the folders with one of these titles in any of the parents, twins too."""
    which = " and mimeType='application/vnd.google-apps.folder'"
    return [item for parent in parents for item in _list(drive, parent, which) if item["title"] in titles]


def _list(drive: Any, parent: str, which: str = "") -> list[Any]:  # noqa: ANN401
    """Return the id and the title of each item in a folder.

    pydrive2's own `ls` keeps the ids of folders as long as the process lives, and lists twin folders by one request:
    the answer to `A in parents or B in parents` may silently leave out one of the two (rclone#9810).
    """
    query = {"q": f"'{parent}' in parents and trashed=false{which}", "fields": "nextPageToken,items(id,title)"}
    pages = drive.client.ListFile({**query, "maxResults": 1000, **drive._list_params})  # noqa: SLF001
    found: list[Any] = []
    while (page := patiently(lambda: next(pages, None), explain, PAUSES)) is not None:
        found += page
    return found
