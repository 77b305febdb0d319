"""Store objects on Google Drive, with the credentials and the service of DVC's own client.

`DriveObjects` documents what is guaranteed and what is not.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from lib.process import limit_silence
from lib.remotes.drive_errors import explain
from lib.sync.stores.base import MARK, MARK_TEXT, Progress, StoredCopy, home_of, push_errors

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before a request is repeated: Drive counts its limits by the minute
PIECE = 64 * 2**20  # bytes in one request of an upload; at most this much is sent again after a broken connection
BLOCK = 2**16
_FOLDER = "application/vnd.google-apps.folder"


class DriveObjects:
    """A Google Drive folder. The identity of a copy is its file id; one path may have two copies at the same time.

    DVC's client signs in and builds the requests. They are sent here, because of the limits of that client:

    - It caches folder ids for its whole life. Here every look begins at the root folder. Folders of other machines are
      found, all twin folders (created at the same time, or by a request whose answer was lost) are listed, and items in
      the trash do not count. A look costs one listing for each folder, whatever the number of objects: the base
      folders, the folders in the base, and those that may contain an object. A search never has more than one parent:
      Drive's answers to `A in parents or B in parents` may silently leave out one of the two (rclone#9810).
    - It retries only 5xx and rate limits. Here dropped connections and 429 are retried too (`PAUSES`).
    - It restarts an interrupted upload, which makes a twin if only the answer was lost. Here the upload's session is
      asked how many bytes have arrived, and a file whose answer was lost is found to be complete.

    Threads: an `httplib2.Http` serves one thread at a time, so that each thread has its own; the tokens are shared, and
    renewed under the lock of their file. Memory: a file is sent in blocks, whatever its size.

    Cannot: know of folders that another machine creates between our look and our upload; the resulting twin folders are
    harmless. Not promised: an upload into a folder that is moved to the trash meanwhile.
    """

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        # the client sets no time limit: one broken connection would block the run for ever
        limit_silence()
        self.name = f"gdrive://{odb.path}"
        self._path_of: Callable[[str], str] = odb.oid_to_path
        self._root, *self._base = odb.path.strip("/").split("/")
        self._home = tuple(home_of(odb.path).strip("/").split("/")[1:])
        self._trash_only = bool(odb.fs.config.get("gdrive_trash_only"))
        self._mine = threading.local()
        self._connections: list[Any] = []
        self._making = threading.Lock()
        self._folders: dict[tuple[str, ...], list[str]] = {}  # path below the root → ids, as of the latest look
        with self._push_errors(state="nothing was uploaded or changed."):
            self._auth = _patiently(lambda: odb.fs.fs.client.auth)  # pydrive2 signs in here
            if self._auth.service is None:
                _patiently(self._auth.Authorize)
            self._files = self._auth.service.files()
            self._scope = self._search_scope()

    def _search_scope(self) -> dict[str, str]:
        """Return the search parameters for the root folder's place: a shared drive, or the user's own files."""
        if self._root in ("root", "appDataFolder"):
            return {"corpora": "default"}
        about = self._ask(self._files.get(fileId=self._root, fields="driveId", supportsAllDrives=True))
        return {"driveId": about["driveId"], "corpora": "drive"} if about.get("driveId") else {"corpora": "default"}

    # ── the store's methods ────────────────────────────────────────────────────────────────────────────────────────

    def look(self, oids: Iterable[str]) -> dict[str, dict[str, StoredCopy]]:
        """Return the copies of the objects, by listing the objects' folders, twins too."""
        wanted: dict[tuple[str, ...], dict[str, str]] = {}
        for oid in oids:
            folder, title = self._place(oid)
            wanted.setdefault(folder, {})[title] = oid
        found: dict[str, dict[str, StoredCopy]] = {}
        if not wanted:
            return found
        with self._push_errors():
            self._find_folders()
            for folder, titles in wanted.items():
                for item in (item for parent in self._folders.get(folder, ()) for item in self._list(parent)):
                    if item["title"] in titles and item["mimeType"] != _FOLDER:
                        copy = StoredCopy(int(item.get("fileSize") or 0), item.get("md5Checksum"))
                        found.setdefault(titles[item["title"]], {})[item["id"]] = copy
        return found

    def upload(self, oid: str, source: Path, label: str, progress: Progress) -> None:  # noqa: ARG002
        """Upload one more file through a resumable session; Drive shows it only when it is complete."""
        folder, title = self._place(oid)
        with self._push_errors():
            self._insert(folder, title, _media(source, progress))

    def _insert(self, folder: tuple[str, ...], title: str, media: Any) -> None:  # noqa: ANN401  a MediaUpload
        body = {"title": title, "parents": [{"id": self._make_folder(folder)}]}
        request = self._files.insert(body=body, media_body=media, supportsAllDrives=True, fields="id")
        whole = None
        while whole is None:  # after an error the client asks the session what has arrived, and resumes there
            _, whole = _patiently(lambda: request.next_chunk(http=self._http()))

    def delete(self, oid: str, identity: str) -> None:  # noqa: ARG002  a file id needs no path
        """Delete by file id: another copy under the same path has another id."""
        with self._push_errors():
            self._remove(identity)

    def _remove(self, identity: str) -> None:
        # in a shared drive most members may only trash a file; deleting is reserved for managers
        ways = [self._files.trash] if self._trash_only else [self._files.delete, self._files.trash]
        for way in ways:
            try:
                self._ask(way(fileId=identity, supportsAllDrives=True))
            except Exception as error:
                trouble = explain(error)
                if trouble.status == HTTPStatus.NOT_FOUND:
                    return  # already deleted
                if way is ways[-1] or trouble.reason != "insufficientFilePermissions":
                    raise
            else:
                return

    def discard(self, oid: str, label: str) -> None:
        """Do nothing: Drive shows no part of an interrupted upload; an unfinished session expires in a week."""

    def survey(self) -> dict[str, list[StoredCopy]]:
        """Return every object, by listing each folder of objects once, twins too."""
        found: dict[str, list[StoredCopy]] = {}
        with self._push_errors():
            self._find_folders()
            for path, parents in self._folders.items():
                if len(path) != len(self._base) + 1:
                    continue
                for item in (item for parent in parents for item in self._list(parent)):
                    if item["mimeType"] != _FOLDER:
                        copy = StoredCopy(int(item.get("fileSize") or 0), item.get("md5Checksum"))
                        found.setdefault(path[-1] + item["title"], []).append(copy)
        return found

    def marks(self) -> set[str]:
        """Return the names of the marks in the remote's own folder."""
        with self._push_errors():
            return {item["title"].removeprefix(MARK) for item in self._marks()}

    def mark(self, name: str) -> None:
        """Upload a small file in the same way as an object."""
        with self._push_errors(), tempfile.NamedTemporaryFile() as file:
            file.write(MARK_TEXT)
            file.flush()
            self._insert(self._home, f"{MARK}{name}", _media(Path(file.name), int))

    def unmark(self, name: str) -> None:
        """Delete every file of that name: a repeated request whose answer was lost may have created two."""
        with self._push_errors():
            for item in self._marks():
                if item["title"] == f"{MARK}{name}":
                    self._remove(item["id"])

    def _marks(self) -> list[dict[str, Any]]:
        parents = self._find_path(self._home)[self._home]
        items = (item for parent in parents for item in self._list(parent))
        return [item for item in items if item["title"].startswith(MARK) and item["mimeType"] != _FOLDER]

    def room(self) -> int | None:
        """Return what is left of the account's quota; None for a shared drive, which does not report its own."""
        with self._push_errors():
            if "driveId" in self._scope:
                return None
            fields = "quotaType,quotaBytesTotal,quotaBytesUsedAggregate"
            quota = self._ask(self._auth.service.about().get(fields=fields))
        if quota.get("quotaType") == "UNLIMITED" or not int(quota.get("quotaBytesTotal") or 0):
            return None
        return max(0, int(quota["quotaBytesTotal"]) - int(quota["quotaBytesUsedAggregate"]))

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._connections:
            self._connections.pop().close()
        self._mine = threading.local()

    # ── folders ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _place(self, oid: str) -> tuple[tuple[str, ...], str]:
        """Return the object's folder below the root, and its title."""
        _, *folders, title = self._path_of(oid).strip("/").split("/")
        return tuple(folders), title

    def _find_folders(self) -> None:
        """Read the ids of the base folders and of every folder in them; earlier ids are discarded."""
        path = tuple(self._base)
        folders = self._find_path(path)
        for parent in list(folders[path]):
            for item in self._list(parent, f"mimeType='{_FOLDER}'"):
                folders.setdefault((*path, item["title"]), []).append(item["id"])
        self._folders = folders

    def _find_path(self, titles: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
        """Return {path: folder ids} for every folder on a path below the root, twins too."""
        folders: dict[tuple[str, ...], list[str]] = {(): [self._root]}
        path: tuple[str, ...] = ()
        for title in titles:
            quoted = title.replace("\\", "\\\\").replace("'", "\\'")
            items = [
                item
                for parent in folders[path]
                for item in self._list(parent, f"mimeType='{_FOLDER}' and title='{quoted}'")
                if item["title"] == title  # Drive's search ignores case
            ]
            path = (*path, title)
            folders[path] = [item["id"] for item in items]
        return folders

    def _make_folder(self, path: tuple[str, ...]) -> str:
        """Return the folder to upload into, created if missing; among twins, the one that DVC uses too."""
        with self._making:
            if not self._folders:
                self._find_folders()
            folders = self._folders
            for depth in range(1, len(path) + 1):
                here, above = path[:depth], path[: depth - 1]
                if not folders.get(here):
                    body = {"title": here[-1], "parents": [{"id": min(folders[above])}], "mimeType": _FOLDER}
                    made = self._ask(self._files.insert(body=body, supportsAllDrives=True, fields="id"))
                    folders[here] = [made["id"]]
            return min(folders[path])

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _list(self, parent: str, which: str = "") -> list[dict[str, Any]]:
        """Return all items of a folder that are not in the trash, from all pages."""
        query = f"'{parent}' in parents and trashed=false" + (f" and {which}" if which else "")
        found: list[dict[str, Any]] = []
        page = None
        while True:
            answer = self._ask(
                self._files.list(
                    q=query,
                    maxResults=1000,
                    pageToken=page,
                    supportsAllDrives=True,
                    includeItemsFromAllDrives=True,
                    fields="nextPageToken,items(id,title,mimeType,fileSize,md5Checksum)",
                    **self._scope,
                )
            )
            found += answer["items"]
            page = answer.get("nextPageToken")
            if not page:
                return found

    def _ask(self, request: Any) -> Any:  # noqa: ANN401  what Google's client returns
        return _patiently(lambda: request.execute(http=self._http()))

    def _http(self) -> Any:  # noqa: ANN401  httplib2.Http
        http = getattr(self._mine, "http", None)
        if http is None:
            http = self._mine.http = self._auth.Get_Http_Object()
            self._connections.append(http)
        return http

    def _push_errors(self, state: str = "") -> AbstractContextManager[None]:
        return push_errors(self.name, _drive_trouble, state)


def _patiently(act: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return the result of `act`, repeated after each of `PAUSES` while its error is transient."""
    for pause in (*PAUSES, None):
        try:
            return act()
        except Exception as error:
            if pause is None or not explain(error).is_transient:
                raise
        time.sleep(pause * random.uniform(0.5, 1.0))  # jitter: not all machines at the same moment
    raise AssertionError


def _drive_trouble(error: BaseException) -> tuple[str, str]:
    trouble = explain(error)
    return trouble.what, f"{trouble.remedy}, then run sync_outputs() again."


class _Piece:
    """A range of a file as the body of a request.

    Each iteration starts at the beginning of the range: a layer that sends the body a second time (after 401, or over a
    new connection) sends all of it. An open file would continue where it stopped, and the server would wait for the
    rest.
    """

    def __init__(self, source: Path, begin: int, length: int, reached: Callable[[int], object]) -> None:
        self._source, self._begin, self._length, self._reached = source, begin, length, reached

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[bytes]:
        left = self._length
        with self._source.open("rb") as file:
            file.seek(self._begin)
            while left and (block := file.read(min(left, BLOCK))):
                yield block
                left -= len(block)
                self._reached(self._begin + self._length - left)


def _media(source: Path, progress: Progress) -> Any:  # noqa: ANN401  googleapiclient has no types
    """Return a file as a request body that Google's client uploads piece by piece."""
    from googleapiclient.http import MediaUpload

    furthest = 0

    def reached(position: int) -> None:
        nonlocal furthest
        if position > furthest:  # bytes that are sent again are not reported again
            progress(position - furthest)
            furthest = position

    class Pieces(MediaUpload):  # type: ignore[misc]
        def __init__(self) -> None:
            self._size = source.stat().st_size

        def chunksize(self) -> int:
            return PIECE

        def mimetype(self) -> str:
            return "application/octet-stream"

        def size(self) -> int:
            return self._size

        def resumable(self) -> bool:
            return True

        def getbytes(self, begin: int, length: int) -> _Piece:
            return _Piece(source, begin, max(0, min(length, self._size - begin)), reached)

    return Pieces()


def open_remote(odb: Any) -> DriveObjects:  # noqa: ANN401  DVC's object database
    """Open the remote that DVC has configured."""
    return DriveObjects(odb)
