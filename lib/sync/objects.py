"""The DVC remote as the transaction sees it: identities under the paths of objects.

A kind of store joins by one class with five methods, `look`, `upload`, `delete`, `discard` and `close`:

- `look(oids)` gives, for each object that is there, its identities with their size in bytes. An identity names one
  stored copy for ever: whoever stores the object again makes another one. It asks the store, never a cache.
- `upload(oid, source, label)` stores one more copy and returns when it is whole; a cut one is not seen under the path.
  After an error the copy may be there or not. May run in several threads. `label` is the intent that pays for it.
- `delete(oid, identity)` removes that one copy, if it still stands there. May be repeated.
- `discard(oid, label)` removes what a cut upload of that label left elsewhere, if the store keeps such things.
- `close()` gives back what it holds.

Nothing here decides what may be deleted: `transaction.py` does.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import io
import json
import os
import random
import re
import secrets
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lib.errors import DvcPushError, RunError, SyncError

if TYPE_CHECKING:
    from lib.sync.intent import StoredObject

SILENCE = 120.0  # seconds without a byte after which a connection is given up: Google's client would wait for ever
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before Drive is asked again: its limits are counted by the minute
PIECE = 64 * 2**20  # bytes in one request of a Drive upload; at most this much is sent again after a cut
WHOLE = 2**30  # bytes up to which a file goes to S3 in one request, which cannot be seen half done
PART = 64 * 2**20  # bytes of a larger one's parts, each held in memory
BLOCK = 2**16
_FOLDER = "application/vnd.google-apps.folder"

Progress = Callable[[int], object]
"""Is told how many more bytes have left."""


@dataclass(frozen=True)
class Copy:
    """One stored copy of an object: its size in bytes and, where the store tells it, the MD5 of its content."""

    size: int
    md5: str | None = None


class Objects(Protocol):
    """What a kind of DVC remote must offer; the module's docstring says what each method promises."""

    name: str

    def look(self, oids: Iterable[str]) -> dict[str, dict[str, Copy]]:
        """Give the identities that stand under each object's path."""

    def upload(self, oid: str, source: Path, label: str, progress: Progress) -> None:
        """Store one more copy of the object."""

    def delete(self, oid: str, identity: str) -> None:
        """Remove that one copy."""

    def discard(self, oid: str, label: str) -> None:
        """Remove what a cut upload left."""

    def close(self) -> None:
        """Give back connections and locks."""


class DirectoryObjects:
    """A folder. The identity of a copy is its time of writing and its inode: replacing the file makes another."""

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        self.name = str(odb.path)
        self._path_of: Callable[[str], str] = odb.oid_to_path

    def look(self, oids: Iterable[str]) -> dict[str, dict[str, Copy]]:
        """Give the one copy that a path can hold."""
        found = {}
        for oid in oids:
            with contextlib.suppress(FileNotFoundError):
                status = Path(self._path_of(oid)).stat()
                found[oid] = {f"{status.st_mtime_ns}-{status.st_ino}": Copy(status.st_size)}
        return found

    def upload(self, oid: str, source: Path, label: str, progress: Progress) -> None:
        """Write beside the path, then rename: a reader never sees half an object."""
        target, part = Path(self._path_of(oid)), self._part(oid, label)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.chmod(0o444)  # as DVC keeps its objects
            part.replace(target)
            _fsync_folder(target.parent)
        finally:
            part.unlink(missing_ok=True)
        progress(source.stat().st_size)

    def delete(self, oid: str, identity: str) -> None:
        """Remove the file if it is still that copy."""
        if identity in self.look([oid]).get(oid, {}):
            Path(self._path_of(oid)).unlink(missing_ok=True)

    def discard(self, oid: str, label: str) -> None:
        """Remove the file that the upload was writing to."""
        self._part(oid, label).unlink(missing_ok=True)

    def _part(self, oid: str, label: str) -> Path:
        target = Path(self._path_of(oid))
        return target.with_name(f".{target.name}.{label}.tmp")

    def close(self) -> None:
        """Nothing is held."""


class DriveObjects:
    """A Google Drive folder. The identity of a copy is its file id; two copies of one path may stand side by side.

    DVC's client signs in and builds the requests; asking is done here, because of what that client does not do:

    - It remembers folder ids for its whole life. Here every look begins at the root folder. Another machine's folders
      are seen, twin folders (made at the same time, or by an answer that was lost) are all looked into, and what
      lies in the trash is not there. A look costs a listing for each folder, whatever the number of objects: base
      folders, base's folders, and those that may hold an object. Never more than one parent in a search: Drive's
      answers to `A in parents or B in parents` may leave out one of the two without saying so (rclone#9810).
    - It repeats 5xx and rate limits alone. Here dropped connections and 429 are repeated too (`PAUSES`).
    - It starts a cut upload anew, which makes a twin where only the answer was lost. Here the upload's session is
      asked how far it came, and a file whose answer was lost is found to be whole.

    Threads: an `httplib2.Http` serves one thread at a time, so each thread has its own; the tokens are shared, and
    renewed under the lock of their file. Memory: a file leaves in blocks, whatever its size.

    Cannot: know of folders that another machine makes between our look and our upload; then there are twin folders,
    which harm nobody. Not promised: an upload into a folder that somebody puts into the trash meanwhile.
    """

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        # the client sets no limit of its own, and one cut connection would hold the run for ever
        if socket.getdefaulttimeout() is None:
            socket.setdefaulttimeout(SILENCE)
        self.name = f"gdrive://{odb.path}"
        self._path_of: Callable[[str], str] = odb.oid_to_path
        self._root, *self._base = odb.path.strip("/").split("/")
        self._trash_only = bool(odb.fs.config.get("gdrive_trash_only"))
        self._mine = threading.local()
        self._connections: list[Any] = []
        self._making = threading.Lock()
        self._folders: dict[tuple[str, ...], list[str]] = {}  # path below the root → ids, as the latest look saw them
        with self._told(state="nothing was uploaded or changed."):
            self._auth = _patiently(lambda: odb.fs.fs.client.auth)  # pydrive2 signs in here
            if self._auth.service is None:
                _patiently(self._auth.Authorize)
            self._files = self._auth.service.files()
            self._scope = self._search_scope()

    def _search_scope(self) -> dict[str, str]:
        """Give what a search needs to know where the root folder is: in a shared drive, or among the user's own."""
        if self._root in ("root", "appDataFolder"):
            return {"corpora": "default"}
        about = self._ask(self._files.get(fileId=self._root, fields="driveId", supportsAllDrives=True))
        return {"driveId": about["driveId"], "corpora": "drive"} if about.get("driveId") else {"corpora": "default"}

    # ── the five methods ───────────────────────────────────────────────────────────────────────────────────────────

    def look(self, oids: Iterable[str]) -> dict[str, dict[str, Copy]]:
        """List the folders of the objects, twins too, and keep the files of their names."""
        wanted: dict[tuple[str, ...], dict[str, str]] = {}
        for oid in oids:
            folder, title = self._place(oid)
            wanted.setdefault(folder, {})[title] = oid
        found: dict[str, dict[str, Copy]] = {}
        if not wanted:
            return found
        with self._told():
            self._find_folders()
            for folder, titles in wanted.items():
                for item in (item for parent in self._folders.get(folder, ()) for item in self._list(parent)):
                    if item["title"] in titles and item["mimeType"] != _FOLDER:
                        copy = Copy(int(item.get("fileSize") or 0), item.get("md5Checksum"))
                        found.setdefault(titles[item["title"]], {})[item["id"]] = copy
        return found

    def upload(self, oid: str, source: Path, label: str, progress: Progress) -> None:  # noqa: ARG002
        """Insert one more file through a resumable session; Drive shows it when it is whole."""
        folder, title = self._place(oid)
        with self._told():
            parent = self._make_folder(folder)
            request = self._files.insert(
                body={"title": title, "parents": [{"id": parent}]},
                media_body=_media(source, progress),
                supportsAllDrives=True,
                fields="id",
            )
            whole = None
            while whole is None:  # after an error the client asks the session how far it came, and goes on from there
                _, whole = _patiently(lambda: request.next_chunk(http=self._http()))

    def delete(self, oid: str, identity: str) -> None:  # noqa: ARG002  a file id needs no path
        """Delete by file id: another copy of the same path is another id."""
        # in a shared drive most members may put away, and only managers destroy
        ways = [self._files.trash] if self._trash_only else [self._files.delete, self._files.trash]
        with self._told():
            for way in ways:
                refusal = self._refusal_of(way(fileId=identity, supportsAllDrives=True))
                if refusal is None or refusal.status == HTTPStatus.NOT_FOUND:
                    return  # not there any more is what was wanted
                if way is ways[-1] or refusal.reason != "insufficientFilePermissions":
                    raise refusal.error

    def discard(self, oid: str, label: str) -> None:
        """Drive keeps nothing of a cut upload that could be seen; a session that is not ended expires in a week."""

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._connections:
            self._connections.pop().close()
        self._mine = threading.local()

    # ── folders ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _place(self, oid: str) -> tuple[tuple[str, ...], str]:
        """Give the object's folder below the root, and its title."""
        _, *folders, title = self._path_of(oid).strip("/").split("/")
        return tuple(folders), title

    def _find_folders(self) -> None:
        """Note the ids of the base folders and of every folder in them; nothing that was known before counts."""
        folders: dict[tuple[str, ...], list[str]] = {(): [self._root]}
        path: tuple[str, ...] = ()
        for title in self._base:
            quoted = title.replace("\\", "\\\\").replace("'", "\\'")
            items = [
                item
                for parent in folders[path]
                for item in self._list(parent, f"mimeType='{_FOLDER}' and title='{quoted}'")
                if item["title"] == title  # Drive's search ignores case
            ]
            path = (*path, title)
            folders[path] = [item["id"] for item in items]
        for parent in list(folders[path]):
            for item in self._list(parent, f"mimeType='{_FOLDER}'"):
                folders.setdefault((*path, item["title"]), []).append(item["id"])
        self._folders = folders

    def _make_folder(self, path: tuple[str, ...]) -> str:
        """Give the folder to upload into, made where there is none; of twins the one that DVC takes too."""
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
        """Give what a folder holds outside of the trash, all pages of it."""
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

    def _ask(self, request: Any) -> Any:  # noqa: ANN401  what Google's client gives
        return _patiently(lambda: request.execute(http=self._http()))

    def _refusal_of(self, request: Any) -> _Refusal | None:  # noqa: ANN401
        """Ask, and give Drive's refusal instead of raising it; None when it was done."""
        from googleapiclient.errors import HttpError

        try:
            self._ask(request)
        except HttpError as error:
            return _Refusal.of(error)
        return None

    def _http(self) -> Any:  # noqa: ANN401  httplib2.Http
        http = getattr(self._mine, "http", None)
        if http is None:
            http = self._mine.http = self._auth.Get_Http_Object()
            self._connections.append(http)
        return http

    @contextlib.contextmanager
    def _told(self, state: str = "") -> Iterator[None]:
        """Turn what Google's clients raise into an error that says what to do."""
        try:
            yield
        except RunError:
            raise
        except Exception as error:
            what, remedy = _drive_trouble(error)
            raise DvcPushError(f"{self.name}: {what}", state=state, remedy=remedy) from error


@dataclass(frozen=True)
class _Refusal:
    """What Drive said when it did not do something."""

    error: Exception
    status: int
    reason: str
    message: str

    @classmethod
    def of(cls, error: BaseException) -> _Refusal | None:
        """Read it out of an error of Google's client; None where Drive did not answer."""
        from googleapiclient.errors import HttpError

        for cause in _causes(error):
            if isinstance(cause, HttpError):
                try:
                    told = json.loads(cause.content)["error"]
                    return cls(cause, int(cause.resp.status), told["errors"][0]["reason"], told["message"])
                except (ValueError, KeyError, TypeError, IndexError):  # a front end's page instead of Drive's answer
                    return cls(cause, int(cause.resp.status), "", f"HTTP {cause.resp.status}")
        return None

    @property
    def is_rate_limit(self) -> bool:
        """Whether the same request may be taken in a while."""
        limits = ("userRateLimitExceeded", "rateLimitExceeded")
        return self.status == HTTPStatus.TOO_MANY_REQUESTS or self.reason in limits


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Give the error, and what it was raised for."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _is_cut(error: BaseException) -> bool:
    """Whether the connection broke, or none came about."""
    from httplib2 import HttpLib2Error  # type: ignore[import-untyped]

    kinds = (ConnectionError, TimeoutError, ssl.SSLError, socket.gaierror, http.client.HTTPException, HttpLib2Error)
    return any(isinstance(cause, kinds) for cause in _causes(error))


def _passes(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    from oauth2client.client import HttpAccessTokenRefreshError  # type: ignore[import-untyped]

    refusal = _Refusal.of(error)
    if refusal is not None:
        return refusal.is_rate_limit or refusal.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    for cause in _causes(error):
        if isinstance(cause, HttpAccessTokenRefreshError):
            status = int(cause.status or 0)
            return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return _is_cut(error)


def _patiently(act: Callable[[], Any]) -> Any:  # noqa: ANN401
    """Do something with Drive, again after each pause while its trouble is one that passes."""
    for pause in (*PAUSES, None):
        try:
            return act()
        except Exception as error:
            if pause is None or not _passes(error):
                raise
        time.sleep(pause * random.uniform(0.5, 1.0))  # not all machines again at the same moment
    raise AssertionError


def _drive_trouble(error: BaseException) -> tuple[str, str]:
    """Say what Drive's trouble is, and what to do about it."""
    from oauth2client.client import AccessTokenRefreshError
    from pydrive2.auth import AuthError

    refusal = _Refusal.of(error)
    if refusal is not None:
        what = f"Google Drive refused: {refusal.message} ({refusal.reason or refusal.status})."
        return what, _remedy(refusal)
    told = next((cause for cause in _causes(error) if isinstance(cause, AccessTokenRefreshError)), None)
    if told is not None or any(isinstance(cause, AuthError) for cause in _causes(error)):
        what = f"Google does not accept the Drive credentials ({told or 'none are there'})."
        return what, (
            "make new ones, put them into secrets.json as GDRIVE_USER_CREDENTIALS (README, Prerequisites) and run "
            "again. Refresh tokens of an OAuth app in state Testing end after 7 days: publish the app."
        )
    if _is_cut(error):
        what = f"the connection to Google Drive broke ({type(error).__name__}: {error})."
        return what, "check that internet is on, then run sync_outputs() again."
    return f"{type(error).__name__}: {error}", "check the file and the folder named above, then run again."


def _remedy(refusal: _Refusal) -> str:
    if refusal.is_rate_limit:
        return "wait some minutes for Drive's rate limit, then run sync_outputs() again."
    if refusal.reason in ("storageQuotaExceeded", "quotaExceeded", "teamDriveFileLimitExceeded"):
        return "free space in that Google account, also in its trash, which counts; then run sync_outputs() again."
    remedies: Mapping[int, str] = {
        HTTPStatus.NOT_FOUND: "check the folder's id in .dvc/config, and that the account can open it.",
        HTTPStatus.UNAUTHORIZED: "make new Drive credentials and put them into secrets.json (README, Prerequisites).",
        HTTPStatus.FORBIDDEN: "let the account write to the folder (share it as Editor), then run again.",
    }
    return remedies.get(refusal.status, "run sync_outputs() again in some minutes.")


class _Piece:
    """A range of a file as the body of a request.

    Each iteration starts anew: a layer that sends the body a second time (after 401, or over a fresh connection) sends
    all of it, where an open file would go on from where it stopped and the server wait for the rest.
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
    """Give a file as Google's client uploads it, piece by piece."""
    from googleapiclient.http import MediaUpload

    furthest = 0

    def reached(position: int) -> None:
        nonlocal furthest
        if position > furthest:  # what is sent again is not told again
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


class S3Objects:
    """An S3 bucket, through the client that DVC has set up; its cache of listings is never read.

    The identity of a copy is its version id where the bucket keeps versions. Elsewhere, and for the version `null`, it
    is the time of writing, the ETag and a random mark that every upload from here puts into the object's metadata.
    Limit: two copies of the same bytes that DVC itself (which sets no mark) writes within one second are one identity.
    That can keep an object, never lose one: the second of the two is written only where the first is missing, so a
    publication that takes it for what stood there before leaves a copy behind that nobody names; and one that would
    delete the first has marked its intent, for which whoever is about to write the second waits.

    With versions, a copy under a delete marker is not there, for DVC neither. All versions above it are, the older
    ones too, as twins; deleting the newest brings the next one back. Where listing versions is not allowed or not
    offered (R2), only the newest can be seen.

    A file of up to `WHOLE` bytes is one request: it is there or not, nothing remains of a cut one, S3 checks its MD5
    on arrival, and its ETag tells it. A larger one goes in parts; the upload's id stands beside the object as long as
    it lasts, so that any machine can remove the parts of a dead one. The MD5 is unknown of what went in parts or is
    encrypted by a key service.

    Cannot: without versions, delete in the same request that looks; in between somebody may replace the copy. Time
    limits are those of DVC's configuration (`read_timeout`, `connect_timeout`); s3fs sets 15 s and 5 s by itself.
    """

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        self.name = f"s3://{odb.path}"
        self._path_of: Callable[[str], str] = odb.oid_to_path
        with self._told(state="nothing was uploaded or changed."):
            self._s3 = odb.fs.fs  # connects
        # botocore repeats by itself and rewinds the file first; s3fs would go on from where it stopped
        self._s3.retries = 1

    def look(self, oids: Iterable[str]) -> dict[str, dict[str, Copy]]:
        """Ask for each object's newest copy, and for older versions where the bucket keeps them."""
        found = {}
        with self._told():
            for oid in oids:
                copies = {identity: copy for identity, copy, _ in self._copies(oid)}
                if copies:
                    found[oid] = copies
        return found

    def upload(self, oid: str, source: Path, label: str, progress: Progress) -> None:
        """Put the file in one request, or a large one in parts that become the object when the last is there."""
        mark = {"copy": secrets.token_hex(8)}
        with self._told():
            if source.stat().st_size <= WHOLE:
                digest = base64.b64encode(bytes.fromhex(oid.removesuffix(".dir"))).decode()
                with _Told(source, progress) as file:
                    self._call("put_object", oid, Body=file, ContentMD5=digest, Metadata=mark)
            else:
                self._upload_parts(oid, source, label, progress, mark)

    def delete(self, oid: str, identity: str) -> None:
        """Delete that version; without versions, the object if it is still that copy."""
        with self._told():
            if not identity.startswith(_WRITTEN):
                self._call("delete_object", oid, VersionId=identity)
                return
            for standing, _, version in self._copies(oid):
                if standing == identity:
                    self._call("delete_object", oid, **version)

    def discard(self, oid: str, label: str) -> None:
        """Remove the parts of a large file's upload, by the id that it has left beside the object."""
        note = f".{label}.upload"
        with self._told():
            try:
                answer = self._call("head_object", oid, note)
            except FileNotFoundError:
                return
            with contextlib.suppress(FileNotFoundError):
                self._call("abort_multipart_upload", oid, UploadId=answer["Metadata"]["upload"])
            self._call("delete_object", oid, note, **_version(answer))

    def close(self) -> None:
        """DVC's client closes itself."""

    def _call(self, method: str, oid: str, suffix: str = "", **words: object) -> Any:  # noqa: ANN401
        bucket, key, _ = self._s3.split_path(self._path_of(oid))
        answer = self._s3.call_s3(method, Bucket=bucket, Key=key + suffix, **words)
        if method in ("put_object", "complete_multipart_upload", "delete_object"):
            self._s3.invalidate_cache()  # DVC reads it
        return answer

    def _copies(self, oid: str) -> Iterator[tuple[str, Copy, dict[str, str]]]:
        """Give identity, copy and how to name it in a request, of each copy under the object's path."""
        newest = self._head(oid)
        if newest is None:
            return
        yield _identity(newest), _copy(newest), _version(newest)
        if newest.get("VersionId"):
            for older in self._versions(oid, newest["VersionId"]):
                about = self._head(oid, VersionId=older)
                if about is not None:
                    yield _identity(about), _copy(about), {"VersionId": older}

    def _head(self, oid: str, **version: str) -> dict[str, Any] | None:
        try:
            head: dict[str, Any] = self._call("head_object", oid, **version)
        except FileNotFoundError:
            return None
        return head

    def _versions(self, oid: str, newest: str) -> list[str]:
        """Give the ids of the other versions that no delete marker hides."""
        bucket, key, _ = self._s3.split_path(self._path_of(oid))
        versions, markers = [], []
        page: dict[str, Any] = {}
        while True:
            following = {k: v for k, v in (("KeyMarker", page.get("NextKeyMarker")),
                                           ("VersionIdMarker", page.get("NextVersionIdMarker"))) if v}  # fmt: skip
            try:
                page = self._s3.call_s3("list_object_versions", Bucket=bucket, Prefix=key, **following)
            except OSError as error:
                if isinstance(error, PermissionError) or error.errno in (errno.ENOSYS, errno.EPERM):
                    return []
                raise
            versions += [item for item in page.get("Versions", ()) if item["Key"] == key]
            markers += [item["LastModified"] for item in page.get("DeleteMarkers", ()) if item["Key"] == key]
            if not page.get("IsTruncated"):
                break
        # in doubt, within one second, a version counts as hidden: what is not seen is not deleted
        return [
            item["VersionId"]
            for item in versions
            if item["VersionId"] != newest and all(item["LastModified"] > marker for marker in markers)
        ]

    def _upload_parts(self, oid: str, source: Path, label: str, progress: Progress, mark: Mapping[str, str]) -> None:
        note = f".{label}.upload"
        upload = {"UploadId": self._call("create_multipart_upload", oid, Metadata=mark)["UploadId"]}
        noted = {}
        try:
            # before the first part: a machine that dies later leaves this behind
            noted = _version(self._call("put_object", oid, note, Body=b"", Metadata={"upload": upload["UploadId"]}))
            parts = []
            with source.open("rb") as file:
                for number, part in enumerate(iter(lambda: file.read(PART), b""), 1):
                    answer = self._call("upload_part", oid, PartNumber=number, Body=part, **upload)
                    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
                    progress(len(part))
            self._call("complete_multipart_upload", oid, MultipartUpload={"Parts": parts}, **upload)
        except BaseException as error:
            try:
                with contextlib.suppress(FileNotFoundError):  # it is whole, only the answer was lost
                    self._call("abort_multipart_upload", oid, **upload)
                self._call("delete_object", oid, note, **noted)
            except Exception as trouble:  # noqa: BLE001  the first error is the one shown; `discard` tries again
                error.add_note(f"its parts could not be removed: {type(trouble).__name__}")
            raise
        self._call("delete_object", oid, note, **noted)

    @contextlib.contextmanager
    def _told(self, state: str = "") -> Iterator[None]:
        """Turn what S3's clients raise into an error that says what to do."""
        try:
            yield
        except RunError:
            raise
        except Exception as error:
            what, remedy = _s3_trouble(error)
            raise DvcPushError(f"{self.name}: {what}", state=state, remedy=remedy) from error


_WRITTEN = "written "


def _version(answer: Mapping[str, Any]) -> dict[str, str]:
    """Give what names this version in a request; nothing where the bucket keeps none."""
    return {"VersionId": answer["VersionId"]} if answer.get("VersionId") else {}


def _identity(head: Mapping[str, Any]) -> str:
    version = head.get("VersionId")
    if version and version != "null":
        return str(version)
    mark = head.get("Metadata", {}).get("copy", "")
    return f"{_WRITTEN}{head['LastModified']:%Y%m%dT%H%M%SZ} {head['ETag'].strip(chr(34))} {mark}".strip()


def _copy(head: Mapping[str, Any]) -> Copy:
    etag = head["ETag"].strip('"')
    by_key_service = head.get("ServerSideEncryption") not in (None, "AES256") or head.get("SSECustomerAlgorithm")
    is_md5 = not by_key_service and len(etag) == 32 and set(etag) <= set("0123456789abcdef")  # noqa: PLR2004
    return Copy(head["ContentLength"], etag if is_md5 else None)


class _Told(io.FileIO):
    """A file that tells how much more of it was read than ever before: a client may read it twice."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path)
        self._progress = progress
        self._furthest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and tell."""
        block = super().read(-1 if size is None else size)
        if self.tell() > self._furthest:
            self._progress(self.tell() - self._furthest)
            self._furthest = self.tell()
        return block or b""


_S3_REMEDIES = (  # by the code of the refusal
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|TokenRefreshRequired",
        "put valid keys where DVC looks for them (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)",
    ),
    (
        r"AccessDenied|403|AllAccessDisabled|AccountProblem",
        "let these keys list the bucket, and get, put and delete its objects",
    ),
    (r"NoSuchBucket", "check the bucket's name in .dvc/config"),
    (r"Quota|StorageFull", "free space in the bucket or raise its quota"),
)


def _s3_trouble(error: BaseException) -> tuple[str, str]:
    """Say what S3's trouble is, and what to do about it."""
    from botocore.exceptions import (  # type: ignore[import-untyped]
        BotoCoreError,
        ClientError,
        HTTPClientError,
        NoCredentialsError,
    )
    from botocore.exceptions import (
        ConnectionError as NoConnection,
    )

    what, remedy = f"{type(error).__name__}: {error}", "check the file and the bucket named above"
    for cause in _causes(error):
        if isinstance(cause, ClientError):
            told = cause.response.get("Error", {})
            code = str(told.get("Code", ""))
            what = f"S3 refused {cause.operation_name}: {told.get('Message') or 'no reason given'} ({code})."
            fitting = (text for pattern, text in _S3_REMEDIES if re.search(pattern, code))
            remedy = next(fitting, "mend the cause named above")
            break
        if isinstance(cause, NoCredentialsError):
            what, remedy = "no S3 keys were found.", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            break
        if isinstance(cause, (HTTPClientError, NoConnection)):
            what, remedy = f"the connection to S3 broke ({cause}).", "check that internet is on"
            break
        if isinstance(cause, BotoCoreError):
            what, remedy = f"{type(cause).__name__}: {cause}", "check the remote's settings in .dvc/config"
            break
    return what, f"{remedy}, then run sync_outputs() again."


KINDS: Mapping[str, Callable[[Any], Objects]] = {"local": DirectoryObjects, "gdrive": DriveObjects, "s3": S3Objects}


def open_objects(repo: Any) -> Objects:  # noqa: ANN401  dvc.repo.Repo
    """Open the default remote of a DVC repository. Raises `SyncError` where there is none or of an unknown kind."""
    from dvc.exceptions import DvcException

    try:
        odb = repo.cloud.get_remote_odb()
    except DvcException as error:
        raise SyncError(
            f"the DVC remote cannot be opened: {error}.",
            state="nothing was uploaded.",
            remedy="name one with `dvc remote add -d storage URL`, commit .dvc/config, and run again.",
        ) from None
    kind = odb.fs.protocol
    if kind not in KINDS:
        raise SyncError(
            f"the DVC remote is of kind {kind}; publishing knows {', '.join(KINDS)}.",
            state="nothing was uploaded.",
            remedy="use a DVC remote of one of these kinds.",
        )
    return KINDS[kind](odb)


def damaged(wanted: StoredObject, copies: Mapping[str, Copy]) -> str | None:
    """Say what is wrong with the stored copies of an object; None where every one is right."""
    if not copies:
        return "it is not there"
    for identity, copy in copies.items():
        if copy.size != wanted.size:
            return f"its copy {identity} has {copy.size} bytes instead of {wanted.size}"
        if copy.md5 is not None and copy.md5 != wanted.oid.removesuffix(".dir"):
            return f"its copy {identity} has other content (MD5 {copy.md5})"
    return None


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
