"""Store files on Google Drive, with the credentials and the service of DVC's own client.

`DriveObjects` documents what is guaranteed and what is not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from http import HTTPStatus
from pathlib import Path
from typing import Any

from lib.errors import DvcPushError
from lib.process import limit_silence
from lib.remotes.answers import patiently
from lib.remotes.drive_errors import explain
from lib.sync.stores.base import Progress, StoredCopy, absent, home_of, push_errors

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before a request is repeated: Drive counts its limits by the minute
PIECE = 64 * 2**20  # bytes in one request; at most this much is sent again after a broken connection
BLOCK = 2**16
POOL = 100  # identities that one request returns
_FOLDER = "application/vnd.google-apps.folder"
_FIELDS = "id,fileSize,md5Checksum,labels(trashed)"


class DriveObjects:
    """A Google Drive folder. The identity of a copy is its file id; one path may have two copies at the same time.

    An id is generated before the upload. A second upload with the same id is refused (409), so that a lost answer makes
    no twin, and a copy is asked for by its id: a listing may lag behind, the answer to an id does not.

    DVC's client signs in and builds the requests. They are sent here, because of the limits of that client:

    - It caches folder ids for its whole life. Here every listing begins at the root folder. Folders of other machines
      are found, all twin folders (created at the same time, or by a request whose answer was lost) are listed, and
      items in the trash do not count. A look costs one listing for each folder, whatever the number of objects: the
      base folders, the folders in the base, and those that may contain an object. A search never has more than one
      parent: Drive's answers to `A in parents or B in parents` may silently leave out one of the two (rclone#9810).
      Only uploads use folder ids of earlier listings.
    - It retries only 5xx and rate limits. Here dropped connections and 429 are retried too (`PAUSES`), and
      `Retry-After` is obeyed.
    - It restarts an interrupted upload. Here the upload's session is asked how many bytes have arrived.

    Threads: an `httplib2.Http` serves one thread at a time, so that each thread has its own; the tokens are shared, and
    renewed under the lock of their file. Memory: a file is sent in blocks, whatever its size.

    Cannot: know of folders that another machine creates between our look and our upload; the resulting twin folders are
    harmless.
    """

    keeps_twins = True

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        # the client sets no time limit: one broken connection would block the run for ever
        limit_silence()
        self.name = f"gdrive://{odb.path}"
        self._object_path: Callable[[str], str] = odb.oid_to_path
        self._root, *self._base = odb.path.strip("/").split("/")
        self._home = home_of(odb.path.strip("/"))
        self._trash_only = bool(odb.fs.config.get("gdrive_trash_only"))
        self._mine = threading.local()
        self._connections: list[Any] = []
        self._lock = threading.Lock()
        self._pool: list[str] = []  # identities that no copy has
        self._folders: dict[tuple[str, ...], list[str]] = {}  # path below the root → ids, as of the latest look
        with self._push_errors(state="nothing was uploaded or changed."):
            self._auth = _patiently(lambda: odb.fs.fs.client.auth)  # pydrive2 signs in here
            if self._auth.service is None:
                _patiently(self._auth.Authorize)
            self._files = self._auth.service.files()
            about: dict[str, Any] = {}
            if self._root not in ("root", "appDataFolder"):
                fields = "driveId,labels(trashed)"
                about = self._ask(self._files.get(fileId=self._root, fields=fields, supportsAllDrives=True))
        self._in_trash = _is_trashed(about)
        # listings search the root folder's place: a shared drive, or the user's own files
        shared = about.get("driveId")
        self._scope = {"driveId": shared, "corpora": "drive"} if shared else {"corpora": "default"}

    # ── the store's methods ────────────────────────────────────────────────────────────────────────────────────────

    def address(self) -> str:
        """Return the id of the root folder and the path in it."""
        return f"gdrive://{self._home}"

    def limits(self, probe: str) -> str:  # noqa: ARG002
        """Return nothing: Drive has what deleting needs. Raises `DvcPushError` if the folder is in the trash."""
        if self._in_trash or self._is_below_trash():
            raise DvcPushError(
                f"{self.name}: the folder is in the trash of Google Drive.",
                state="nothing was uploaded or changed.",
                remedy="restore it there (or delete it there for good, to begin anew), or name another folder in "
                ".dvc/config, and run again.",
            )
        return ""

    def _is_below_trash(self) -> bool:
        """Return whether a folder of the path to the objects is missing, and in the trash."""
        folders = self._find_path(self._base)
        missing = next((path for path, ids in folders.items() if not ids), None)
        if missing is None:
            return False
        parent, title = folders[missing[:-1]], missing[-1]
        return any(item["title"] == title for each in parent for item in self._list(each, _named(title), trashed=True))

    def path_of(self, oid: str) -> str:
        """Return the path of an object below the remote's own folder."""
        return self._object_path(oid).strip("/").removeprefix(f"{self._home}/")

    def new_identities(self, count: int) -> list[str]:
        """Return ids that Drive has generated; one request is enough for many calls."""
        space = "appDataFolder" if self._root == "appDataFolder" else "drive"
        with self._push_errors(), self._lock:
            while len(self._pool) < count:
                self._pool += self._ask(self._files.generateIds(space=space, maxResults=POOL))["ids"]
            taken, self._pool = self._pool[:count], self._pool[count:]
        return taken

    def create(self, path: str, source: Path, identity: str, progress: Progress = int) -> StoredCopy | None:
        """Upload a file with that id through a resumable session; Drive shows it only when it is complete."""
        folder, title = self._place(path)
        media = _media(source, progress)
        with self._push_errors():
            try:
                made = self._insert(folder, title, identity, media)
            except Exception as error:
                status = explain(error).status
                if status == HTTPStatus.CONFLICT and (earlier := self._get(identity)):
                    made = earlier
                elif status == HTTPStatus.NOT_FOUND:  # the folder has been deleted
                    self._folders = {}
                    made = self._insert(folder, title, identity, media)
                else:
                    raise
            if _is_trashed(made):
                self._folders = {}
                raise DvcPushError(
                    f"{self.name}: {path} or its folder was moved to the trash of Google Drive.",
                    remedy="restore it, or leave it there to store everything anew, then run sync_outputs() again.",
                )
        return _copy(made)

    def _insert(self, folder: tuple[str, ...], title: str, identity: str, media: Any) -> dict[str, Any]:  # noqa: ANN401
        body = {"id": identity, "title": title, "parents": [{"id": self._make_folder(folder)}]}
        request = self._files.insert(body=body, media_body=media, supportsAllDrives=True, fields=_FIELDS)
        made: Any = None
        while made is None:  # after an error the client asks the session what has arrived, and resumes there
            _, made = _patiently(lambda: request.next_chunk(http=self._http()))
        return dict(made)

    def find(self, path: str) -> list[StoredCopy]:
        """Return the copies of a path, by listing its folder, twins too."""
        folder, title = self._place(path)
        with self._push_errors():
            return [_copy(item) for item in self._files_at(folder) if item["title"] == title]

    def look(self, oids: Iterable[str]) -> dict[str, list[StoredCopy]]:
        """Return the copies of the objects, by listing the objects' folders, twins too."""
        wanted: dict[tuple[str, ...], dict[str, str]] = {}
        for oid in oids:
            folder, title = self._place(self.path_of(oid))
            wanted.setdefault(folder, {})[title] = oid
        found: dict[str, list[StoredCopy]] = {}
        if not wanted:
            return found
        with self._push_errors():
            folders = self._find_folders()
            for folder, titles in wanted.items():
                for item in self._files_in(folders.get(folder, ())):
                    if item["title"] in titles:
                        found.setdefault(titles[item["title"]], []).append(_copy(item))
        return found

    def verify(self, path: str, identity: str) -> StoredCopy | None:  # noqa: ARG002  a file id needs no path
        """Return the file with that id; a file in the trash is not there."""
        with self._push_errors():
            item = self._get(identity)
        return None if item is None or _is_trashed(item) else _copy(item)

    def _get(self, identity: str) -> dict[str, Any] | None:
        try:
            item: dict[str, Any] = self._ask(self._files.get(fileId=identity, fields=_FIELDS, supportsAllDrives=True))
        except Exception as error:
            if explain(error).status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return item

    def delete(self, path: str, identity: str) -> None:  # noqa: ARG002  a file id needs no path
        """Delete by file id. Drive shows no part of an interrupted upload; its session expires in a week."""
        # in a shared drive most members may only trash a file; deleting is reserved for managers
        ways = [self._files.trash] if self._trash_only else [self._files.delete, self._files.trash]
        with self._push_errors():
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

    def read(self, path: str, identity: str, target: Path, progress: Progress = int) -> None:
        """Download the file with that id, piece by piece."""
        from googleapiclient.http import MediaIoBaseDownload

        if self.verify(path, identity) is None:
            raise absent(self, path, identity)
        with self._push_errors(), target.open("wb") as file:
            request = self._files.get_media(fileId=identity, supportsAllDrives=True)
            request.http = self._http()
            download, done = MediaIoBaseDownload(file, request, chunksize=PIECE), False
            while not done:
                before = file.tell()
                _, done = _patiently(download.next_chunk)
                progress(file.tell() - before)

    def flat(self, prefix: str) -> dict[str, list[StoredCopy]]:
        """Return the files in the remote's own folder, twins too."""
        home, _ = self._place("")
        found: dict[str, list[StoredCopy]] = {}
        with self._push_errors():
            for item in self._files_at(home):
                if item["title"].startswith(prefix):
                    found.setdefault(item["title"], []).append(_copy(item))
        return found

    def survey(self) -> dict[str, list[StoredCopy]]:
        """Return every object, by listing each folder of objects once, twins too."""
        found: dict[str, list[StoredCopy]] = {}
        with self._push_errors():
            for path, parents in self._find_folders().items():
                if len(path) == len(self._base) + 1:
                    for item in self._files_in(parents):
                        found.setdefault(path[-1] + item["title"], []).append(_copy(item))
        return found

    def room(self) -> int | None:
        """Return what is left of the account's quota; None for a shared drive, which does not report its own."""
        if "driveId" in self._scope:
            return None
        with self._push_errors():
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

    def _place(self, path: str) -> tuple[tuple[str, ...], str]:
        """Return the folder of a path, below the root, and its title."""
        _, *folders, title = f"{self._home}/{path}".split("/")
        return tuple(folders), title

    def _find_folders(self) -> dict[tuple[str, ...], list[str]]:
        """Return the ids of the base folders and of every folder in them; uploads forget earlier ids."""
        path = tuple(self._base)
        folders = self._find_path(path)
        for parent in list(folders[path]):
            for item in self._list(parent, f"mimeType='{_FOLDER}'"):
                folders.setdefault((*path, item["title"]), []).append(item["id"])
        self._folders = folders
        return folders

    def _find_path(self, titles: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
        """Return {path: folder ids} for every folder on a path below the root, twins too."""
        folders: dict[tuple[str, ...], list[str]] = {(): [self._root]}
        path: tuple[str, ...] = ()
        for title in titles:
            items = [
                item
                for parent in folders[path]
                for item in self._list(parent, _named(title))
                if item["title"] == title  # Drive's search ignores case
            ]
            path = (*path, title)
            folders[path] = [item["id"] for item in items]
        return folders

    def _make_folder(self, path: tuple[str, ...]) -> str:
        """Return the folder to upload into, created if missing; among twins, the one that DVC uses too."""
        with self._lock:
            folders = self._folders or self._find_folders()
            for depth in range(1, len(path) + 1):
                here, above = path[:depth], path[: depth - 1]
                if not folders.get(here):
                    body = {"title": here[-1], "parents": [{"id": min(folders[above])}], "mimeType": _FOLDER}
                    made = self._ask(self._files.insert(body=body, supportsAllDrives=True, fields="id"))
                    folders[here] = [made["id"]]
            return min(folders[path])

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _files_at(self, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        return self._files_in(self._find_path(path)[path])

    def _files_in(self, parents: Iterable[str]) -> Iterator[dict[str, Any]]:
        return (item for parent in parents for item in self._list(parent) if item["mimeType"] != _FOLDER)

    def _list(self, parent: str, which: str = "", *, trashed: bool = False) -> list[dict[str, Any]]:
        """Return all items of a folder, those in the trash or those that are not, from all pages."""
        query = f"'{parent}' in parents and trashed={str(trashed).lower()}" + (f" and {which}" if which else "")
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


def _named(title: str) -> str:
    """Return the search for folders with this title, in any case."""
    quoted = title.replace("\\", "\\\\").replace("'", "\\'")
    return f"mimeType='{_FOLDER}' and title='{quoted}'"


def _patiently(act: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Return the result of `act`, repeated after each of `PAUSES` while its error is transient."""
    return patiently(act, explain, PAUSES)


def _drive_trouble(error: BaseException) -> tuple[str, str]:
    trouble = explain(error)
    return trouble.what, f"{trouble.remedy}, then run sync_outputs() again."


def _copy(item: dict[str, Any]) -> StoredCopy:
    return StoredCopy(item["id"], int(item.get("fileSize") or 0), item.get("md5Checksum"))


def _is_trashed(item: dict[str, Any]) -> bool:
    return bool(item.get("labels", {}).get("trashed"))


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
