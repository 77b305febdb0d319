"""Store files on Google Drive, with the credentials and the service of DVC's own client.

Guarantees: a copy is asked for by its id, since a listing may lag behind and the answer to an id does not; a second
upload with the same id is refused (409), so that a lost answer makes no twin. Memory: one piece of a file a thread.
Cannot: know of folders that another machine creates between our look and our upload; the resulting twin folders are
harmless.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

from googleapiclient.http import MediaFileUpload, MediaIoBaseDownload

from lib.errors import DvcPushError
from lib.process import limit_silence
from lib.remotes.answers import Pace, patiently
from lib.remotes.store_errors import explain
from lib.sync.stores.base import Progress, Store, StoredCopy

PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before a request is repeated: Drive counts its limits by the minute
PIECE = 8 * 2**20  # bytes of a file in one request: a thread has them in memory, and must send them within `SILENCE`
AT_ONCE = 32  # requests; each takes about 0.2 s, and Drive accepts some 200 a second of one user
POOL = 100  # identities that one request returns
logging.getLogger("googleapiclient.http").setLevel(logging.ERROR)  # it prints each refusal that is repeated here
_FOLDER = "application/vnd.google-apps.folder"
_FIELDS = "id,fileSize,md5Checksum,labels(trashed)"


class DriveObjects(Store):
    """A Google Drive folder. The identity of a copy is its file id; one path may have two copies at the same time.

    DVC's client signs in and builds the requests. They are sent here, because of the limits of that client:

    - It caches folder ids for its whole life. Here every listing begins at the root folder, so that folders of other
      machines and twin folders are found; only uploads use folder ids of earlier listings. A search never has more than
      one parent: the answer to `A in parents or B in parents` may silently leave out one of the two (rclone#9810).
    - It retries only 5xx and rate limits. Here dropped connections and 429 are retried too (`PAUSES`),
      `Retry-After` is obeyed, and fewer requests run at once after a refusal (`Pace`).
    - It restarts an interrupted upload. Here the upload's session is asked how many bytes have arrived.

    An `httplib2.Http` serves one thread at a time, so that each thread has its own; the tokens are shared.
    """

    keeps_twins = True

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        # the client sets no time limit: one broken connection would block the run for ever
        limit_silence()
        super().__init__(odb, f"gdrive://{odb.path}")
        # paths of folders begin with the id of the root folder
        self._home, self._base = self._home.strip("/"), str(odb.path).strip("/")
        self._root = self._base.partition("/")[0]
        self._trash_only = bool(odb.fs.config.get("gdrive_trash_only"))
        self._mine = threading.local()
        self._pace = Pace(AT_ONCE, explain)
        self._connections: list[Any] = []
        self._lock = threading.Lock()
        self._pool: list[str] = []  # identities that no copy has
        self._folders: dict[str, list[str]] = {}  # path → ids, as of the latest look
        self._making: dict[str, threading.Lock] = {}  # held while the folder of that path is created
        self._auth = self._send(lambda: odb.fs.fs.client.auth)  # pydrive2 signs in here
        if self._auth.service is None:
            self._send(self._auth.Authorize)
        self._files = self._auth.service.files()
        about: dict[str, Any] = {}
        if self._root not in ("root", "appDataFolder"):
            fields = "driveId,labels(trashed)"
            about = self._ask(self._files.get(fileId=self._root, fields=fields, supportsAllDrives=True))
        self._in_trash = _is_trashed(about)
        # listings search the root folder's place: a shared drive, or the user's own files
        shared = about.get("driveId")
        self._scope = {"driveId": shared, "corpora": "drive"} if shared else {"corpora": "default"}

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
        above, _, title = missing.rpartition("/")
        items = (item for parent in folders[above] for item in self._list(parent, _named(title), trashed=True))
        return any(item["title"] == title for item in items)

    def new_identities(self, count: int) -> list[str]:
        """Return ids that Drive has generated, a hundred at a time; meanwhile the folders of uploads are looked up."""
        space = "appDataFolder" if self._root == "appDataFolder" else "drive"
        with self._lock, ThreadPoolExecutor(1, thread_name_prefix="folders") as beside:
            folders = beside.submit(lambda: self._folders or self._find_folders())
            while len(self._pool) < count:
                self._pool += self._ask(self._files.generateIds(space=space, maxResults=POOL))["ids"]
            taken, self._pool = self._pool[:count], self._pool[count:]
        folders.result()  # raises its error
        return taken

    def create(self, path: str, source: Path, identity: str, progress: Progress = int) -> StoredCopy | None:
        """Upload a file with that id through a resumable session; Drive shows it only when it is complete."""
        try:
            made = self._insert(path, source, identity, progress)
        except DvcPushError as error:
            status = explain(error).status
            if status == HTTPStatus.CONFLICT and (earlier := self._get(identity)):
                made = earlier
            elif status == HTTPStatus.NOT_FOUND:  # the folder has been deleted
                self._folders = {}
                made = self._insert(path, source, identity, progress)
            else:
                raise
        if _is_trashed(made):
            self._folders = {}
            raise DvcPushError(
                f"{self.name}: {path} or its folder was moved to the trash of Google Drive.",
                remedy="restore it, or leave it there to store everything anew, then run sync_outputs() again.",
            )
        return _copy(made)

    def _insert(self, path: str, source: Path, identity: str, progress: Progress) -> dict[str, Any]:
        folder, _, title = f"{self._home}/{path}".rpartition("/")
        body = {"id": identity, "title": title, "parents": [{"id": self._make_folder(folder)}]}
        media = _Upload(str(source), "application/octet-stream", PIECE, resumable=True)
        request = self._files.insert(body=body, media_body=media, supportsAllDrives=True, fields=_FIELDS)
        made, reported = None, 0
        while made is None:  # after an error the client asks the session what has arrived, and resumes there
            _, made = self._send(lambda: request.next_chunk(http=self._http()))
            arrived = request.resumable_progress if made is None else media.size()
            progress(max(0, arrived - reported))
            reported = max(arrived, reported)
        return dict(made)

    def find(self, path: str) -> list[StoredCopy]:
        """Return the copies of a path, by listing its folder, twins too."""
        folder, _, title = f"{self._home}/{path}".rpartition("/")
        return self._list_files(self._find_path(folder)[folder]).get(title, [])

    def look(self, oids: Iterable[str]) -> dict[str, list[StoredCopy]]:
        """Return the copies of the objects, by listing each of their folders once, twins too."""
        wanted = set(oids)
        found = self._list_objects({oid[:2] for oid in wanted}) if wanted else {}
        return {oid: copies for oid, copies in found.items() if oid in wanted}

    def verify(self, path: str, identity: str) -> StoredCopy | None:  # noqa: ARG002  a file id needs no path
        """Return the file with that id; a file in the trash is not there."""
        item = self._get(identity)
        return None if item is None or _is_trashed(item) else _copy(item)

    def _get(self, identity: str) -> dict[str, Any] | None:
        try:
            return dict(self._ask(self._files.get(fileId=identity, fields=_FIELDS, supportsAllDrives=True)))
        except DvcPushError as error:
            if explain(error).status != HTTPStatus.NOT_FOUND:
                raise
        return None

    def delete(self, path: str, identity: str) -> None:  # noqa: ARG002  a file id needs no path
        """Delete by file id. Drive shows no part of an interrupted upload; its session expires in a week."""
        # in a shared drive most members may only trash a file; deleting is reserved for managers
        ways = [self._files.trash] if self._trash_only else [self._files.delete, self._files.trash]
        for way in ways:
            try:
                self._ask(way(fileId=identity, supportsAllDrives=True))
            except DvcPushError as error:
                trouble = explain(error)
                if trouble.status == HTTPStatus.NOT_FOUND:
                    return  # already deleted
                if way is ways[-1] or trouble.reason != "insufficientFilePermissions":
                    raise
            else:
                return

    def read(self, path: str, identity: str, target: Path) -> None:
        """Download the file with that id, piece by piece."""
        request = self._files.get_media(fileId=identity, supportsAllDrives=True)
        request.http = self._http()
        try:
            with target.open("wb") as file:
                download, done = MediaIoBaseDownload(file, request, chunksize=PIECE), False
                while not done:
                    _, done = self._send(download.next_chunk)
        except DvcPushError as error:
            if explain(error).status == HTTPStatus.NOT_FOUND:
                raise FileNotFoundError(f"{self.name}: {path} is not there (copy {identity})") from error
            raise

    def flat(self, prefix: str) -> dict[str, list[StoredCopy]]:
        """Return the files in the remote's own folder, twins too."""
        listed = self._list_files(self._find_path(self._home)[self._home])
        return {name: copies for name, copies in listed.items() if name.startswith(prefix)}

    def survey(self) -> dict[str, list[StoredCopy]]:
        """Return every object, by listing each folder of objects once, twins too."""
        return self._list_objects()

    def room(self) -> int | None:
        """Return what is left of the account's quota; None for a shared drive, which does not report its own."""
        if "driveId" in self._scope:
            return None
        quota = self._ask(self._auth.service.about().get(fields="quotaType,quotaBytesTotal,quotaBytesUsedAggregate"))
        if quota.get("quotaType") == "UNLIMITED" or not int(quota.get("quotaBytesTotal") or 0):
            return None
        return max(0, int(quota["quotaBytesTotal"]) - int(quota["quotaBytesUsedAggregate"]))

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._connections:
            self._connections.pop().close()
        self._mine = threading.local()

    # ── folders ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _find_folders(self) -> dict[str, list[str]]:
        """Return the ids of the base folders and of every folder in them; uploads forget earlier ids."""
        folders = self._find_path(self._base)
        for parent in list(folders[self._base]):
            for item in self._list(parent, f"mimeType='{_FOLDER}'"):
                folders.setdefault(f"{self._base}/{item['title']}", []).append(item["id"])
        self._folders = folders
        return folders

    def _find_path(self, path: str) -> dict[str, list[str]]:
        """Return {path: ids} for every folder on a path, twins too."""
        here, folders = self._root, {self._root: [self._root]}
        for title in path.split("/")[1:]:
            items = [item for parent in folders[here] for item in self._list(parent, _named(title))]
            here = f"{here}/{title}"
            folders[here] = [item["id"] for item in items if item["title"] == title]  # Drive's search ignores case
        return folders

    def _make_folder(self, path: str) -> str:
        """Return the folder to upload into, created if missing; among twins, the one that DVC uses too."""
        if path == self._root:
            return self._root
        above, _, title = path.rpartition("/")
        parent = self._make_folder(above)
        with self._making.setdefault(path, threading.Lock()):  # folders of different paths are created side by side
            folders = self._folders or self._find_folders()
            if not folders.get(path):
                body = {"title": title, "parents": [{"id": parent}], "mimeType": _FOLDER}
                made = self._ask(self._files.insert(body=body, supportsAllDrives=True, fields="id"))
                folders[path] = [made["id"]]
            return min(folders[path])

    def _list_objects(self, titles: Collection[str] = ()) -> dict[str, list[StoredCopy]]:
        """Return every object in the folders with these titles, or in all, which are listed side by side."""
        begin = f"{self._base}/"
        folders = {
            path.removeprefix(begin): ids
            for path, ids in self._find_folders().items()
            if path.startswith(begin) and (not titles or path.removeprefix(begin) in titles)
        }
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="listing") as pool:
            listed = zip(folders, pool.map(self._list_files, folders.values()), strict=True)
            return {folder + title: copies for folder, files in listed for title, copies in files.items()}

    def _list_files(self, folders: Iterable[str]) -> dict[str, list[StoredCopy]]:
        """Return {title: copies} of the files in these folders."""
        found: dict[str, list[StoredCopy]] = {}
        for item in (item for folder in folders for item in self._list(folder)):
            if item["mimeType"] != _FOLDER:
                found.setdefault(item["title"], []).append(_copy(item))
        return found

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _list(self, parent: str, which: str = "", *, trashed: bool = False) -> Iterator[dict[str, Any]]:
        """Yield all items of a folder, those in the trash or those that are not, from all pages."""
        request = self._files.list(
            q=f"'{parent}' in parents and trashed={str(trashed).lower()}" + (f" and {which}" if which else ""),
            maxResults=1000,
            supportsAllDrives=True,
            includeItemsFromAllDrives=True,
            fields="nextPageToken,items(id,title,mimeType,fileSize,md5Checksum)",
            **self._scope,
        )
        while request is not None:
            answer = self._ask(request)
            yield from answer["items"]
            request = self._files.list_next(request, answer)

    def _ask(self, request: Any) -> Any:  # noqa: ANN401  what Google's client returns
        return self._send(lambda: request.execute(http=self._http()))

    def _http(self) -> Any:  # noqa: ANN401  httplib2.Http
        http = getattr(self._mine, "http", None)
        if http is None:
            http = self._mine.http = self._auth.Get_Http_Object()
            self._connections.append(http)
        return http

    def _send(self, act: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Return the result of `act`, in its turn, repeated after each of `PAUSES` while its error is transient."""
        with self._push_errors():
            return patiently(self._pace(act), explain, PAUSES)


def _named(title: str) -> str:
    """Return the search for folders with this title, in any case."""
    quoted = title.replace("\\", "\\\\").replace("'", "\\'")
    return f"mimeType='{_FOLDER}' and title='{quoted}'"


def _copy(item: dict[str, Any]) -> StoredCopy:
    return StoredCopy(item["id"], int(item.get("fileSize") or 0), item.get("md5Checksum"))


def _is_trashed(item: dict[str, Any]) -> bool:
    return bool(item.get("labels", {}).get("trashed"))


class _Upload(MediaFileUpload):  # type: ignore[misc]
    """A file whose pieces are sent as bytes.

    A layer that sends a request a second time (after 401, or over a new connection) would continue a stream where it
    stopped, and Drive would wait for the rest.
    """

    def has_stream(self) -> bool:
        """Return False, so that `getbytes` is called for each piece."""
        return False
