"""Store objects on S3, or on a service with the same protocol, through DVC's own client.

`S3Objects` documents what is guaranteed and what is not.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import io
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lib.errors import causes
from lib.sync.stores.base import MARK, MARK_TEXT, Progress, StoredCopy, home_of, push_errors

WHOLE = 2**30  # bytes up to which a file is sent in one request, so that no part of it is ever visible
MOST_VERSIONS = 100  # deletions of one small file: the loop must also end with a store that deletes nothing
PART = 64 * 2**20  # bytes of each part of a larger file; a part is held in memory


class S3Objects:
    """An S3 bucket, through the client that DVC has set up; the client's cache of listings is never read.

    Identity: where the bucket keeps versions, the version id. Elsewhere, and for the version `null`, the time of
    writing, the ETag and a random mark that every upload from here puts into the object's metadata. Limit: two copies
    of the same bytes that DVC itself (which sets no mark) writes within one second have one identity. This can leave an
    object behind but never lose one. The second copy is written only where the first is missing: a publication that
    mistakes the second for one stored before leaves a copy that nothing names. A publication that would delete the
    first has marked its intent, and a publication that is about to write the second waits for that intent.

    Versions: a copy under a delete marker does not count as stored, as for DVC. All versions above the marker count,
    the older ones as twins; deleting the newest makes the next one visible again. If listing versions is not allowed or
    not offered (R2), only the newest is found.

    Uploads: a file of up to `WHOLE` bytes is one request. It is there or not, an interrupted request leaves nothing, S3
    checks the MD5 on arrival, and the ETag is the MD5. A larger file is sent in parts; until it is complete, a note
    next to the object contains the upload's id, so that any machine can delete the parts of a dead upload. The MD5 is
    unknown for a copy that was sent in parts or is encrypted by a key service.

    Cannot: without versions, look and delete in one request; another client may replace the copy in between. Time
    limits are those of DVC's configuration (`read_timeout`, `connect_timeout`); the defaults of s3fs are 15 s and 5 s.
    """

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        self.name = f"s3://{odb.path}"
        self._home = home_of(self.name)
        self._path_of: Callable[[str], str] = odb.oid_to_path
        with self._push_errors(state="nothing was uploaded or changed."):
            self._s3 = odb.fs.fs  # connects
        # botocore retries by itself and rewinds the file first; s3fs would continue where the file stopped
        self._s3.retries = 1

    def look(self, oids: Iterable[str]) -> dict[str, dict[str, StoredCopy]]:
        """Return each object's newest copy, and its older versions if the bucket keeps them."""
        found = {}
        with self._push_errors():
            for oid in oids:
                copies = {identity: copy for identity, copy, _ in self._copies(oid)}
                if copies:
                    found[oid] = copies
        return found

    def upload(self, oid: str, source: Path, label: str, progress: Progress) -> None:
        """Upload the file in one request, or a large one in parts that become the object after the last one."""
        mark = {"copy": secrets.token_hex(8)}
        with self._push_errors():
            if source.stat().st_size <= WHOLE:
                digest = base64.b64encode(bytes.fromhex(oid.removesuffix(".dir"))).decode()
                with _ReportedFile(source, progress) as file:
                    self._call("put_object", oid, Body=file, ContentMD5=digest, Metadata=mark)
            else:
                self._upload_parts(oid, source, label, progress, mark)

    def delete(self, oid: str, identity: str) -> None:
        """Delete that version; without versions, delete the object if it is still that copy."""
        with self._push_errors():
            if not identity.startswith(_WRITTEN):
                self._call("delete_object", oid, VersionId=identity)
                return
            for stored, _, version in self._copies(oid):
                if stored == identity:
                    self._call("delete_object", oid, **version)

    def discard(self, oid: str, label: str) -> None:
        """Delete the parts of a large file's upload, by the id in the note next to the object."""
        note = f".{label}.upload"
        with self._push_errors():
            try:
                answer = self._call("head_object", oid, note)
            except FileNotFoundError:
                return
            with contextlib.suppress(FileNotFoundError):
                self._call("abort_multipart_upload", oid, UploadId=answer["Metadata"]["upload"])
            self._remove(self._path_of(oid) + note)

    def survey(self) -> dict[str, list[StoredCopy]]:
        """Return every object, by listing the bucket below the remote's path.

        An ETag equal to the object's name proves its content. One that contains `-` belongs to a copy sent in parts,
        whose MD5 is unknown. Any other may belong to an encrypted copy, which a listing does not show: only such an
        object costs an extra request.
        """
        found: dict[str, list[StoredCopy]] = {}
        with self._push_errors():
            for name, size, etag in self._list(f"{self.name}/"):
                oid = name.replace("/", "", 1)
                if oid.endswith(".upload"):  # the note of a large upload in progress
                    continue
                if etag == oid.removesuffix(".dir") or "-" in etag:
                    found[oid] = [StoredCopy(size, None if "-" in etag else etag)]
                elif head := self._head(oid):
                    found[oid] = [_copy(head)]
        return found

    def marks(self) -> set[str]:
        """Return the names of the marks, by listing their prefix."""
        with self._push_errors():
            return {name for name, *_ in self._list(f"{self._home}/{MARK}")}

    def mark(self, name: str) -> None:
        """Write the mark's file."""
        with self._push_errors():
            self._ask("put_object", f"{self._home}/{MARK}{name}", Body=MARK_TEXT)

    def unmark(self, name: str) -> None:
        """Delete the mark's file."""
        with self._push_errors():
            self._remove(f"{self._home}/{MARK}{name}")

    def room(self) -> int | None:
        """Return None: S3 reports no limit."""
        return None

    def close(self) -> None:
        """Do nothing: DVC's client closes itself."""

    def _remove(self, path: str) -> None:
        """Delete a small file of ours, with all its versions: a repeated write whose answer was lost leaves two."""
        with contextlib.suppress(FileNotFoundError):
            for _ in range(MOST_VERSIONS):
                self._ask("delete_object", path, **_version(self._ask("head_object", path)))

    def _call(self, method: str, oid: str, suffix: str = "", **words: object) -> Any:  # noqa: ANN401
        return self._ask(method, self._path_of(oid) + suffix, **words)

    def _ask(self, method: str, path: str, **words: object) -> Any:  # noqa: ANN401
        bucket, key, _ = self._s3.split_path(path)
        answer = self._s3.call_s3(method, Bucket=bucket, Key=key, **words)
        if method in ("put_object", "complete_multipart_upload", "delete_object"):
            self._s3.invalidate_cache()  # DVC reads this cache
        return answer

    def _list(self, beginning: str) -> Iterator[tuple[str, int, str]]:
        """Yield (rest of the name, size, ETag) of all objects whose path begins so, with one request for each page."""
        bucket, prefix, _ = self._s3.split_path(beginning)
        page: dict[str, Any] = {}
        while True:
            following = {"ContinuationToken": page["NextContinuationToken"]} if page else {}
            page = self._s3.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **following)
            for item in page.get("Contents", ()):
                yield item["Key"].removeprefix(prefix), int(item["Size"]), item["ETag"].strip('"')
            if not page.get("IsTruncated"):
                return

    def _copies(self, oid: str) -> Iterator[tuple[str, StoredCopy, dict[str, str]]]:
        """Yield identity, copy and request parameters of each copy under the object's path."""
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
        """Return the ids of the other versions that no delete marker hides."""
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
        # in doubt (the same second) a version counts as hidden: an unseen version is never deleted
        return [
            item["VersionId"]
            for item in versions
            if item["VersionId"] != newest and all(item["LastModified"] > marker for marker in markers)
        ]

    def _upload_parts(self, oid: str, source: Path, label: str, progress: Progress, mark: Mapping[str, str]) -> None:
        note = f".{label}.upload"
        upload = {"UploadId": self._call("create_multipart_upload", oid, Metadata=mark)["UploadId"]}
        try:
            # before the first part: if this machine dies later, the note remains for `discard`
            self._call("put_object", oid, note, Body=b"", Metadata={"upload": upload["UploadId"]})
            parts = []
            with source.open("rb") as file:
                for number, part in enumerate(iter(lambda: file.read(PART), b""), 1):
                    answer = self._call("upload_part", oid, PartNumber=number, Body=part, **upload)
                    parts.append({"PartNumber": number, "ETag": answer["ETag"]})
                    progress(len(part))
            self._call("complete_multipart_upload", oid, MultipartUpload={"Parts": parts}, **upload)
        except BaseException as error:
            try:
                with contextlib.suppress(FileNotFoundError):  # the object is complete, only the answer was lost
                    self._call("abort_multipart_upload", oid, **upload)
                self._remove(self._path_of(oid) + note)
            except Exception as second:  # noqa: BLE001  the first error is the one raised; `discard` tries again
                error.add_note(f"its parts could not be deleted: {type(second).__name__}")
            raise
        self._remove(self._path_of(oid) + note)

    def _push_errors(self, state: str = "") -> AbstractContextManager[None]:
        return push_errors(self.name, _explain, state)


_WRITTEN = "written "


def _version(answer: Mapping[str, Any]) -> dict[str, str]:
    """Return the request parameters that select this version; empty if the bucket keeps no versions."""
    return {"VersionId": answer["VersionId"]} if answer.get("VersionId") else {}


def _identity(head: Mapping[str, Any]) -> str:
    version = head.get("VersionId")
    if version and version != "null":
        return str(version)
    mark = head.get("Metadata", {}).get("copy", "")
    return f"{_WRITTEN}{head['LastModified']:%Y%m%dT%H%M%SZ} {head['ETag'].strip(chr(34))} {mark}".strip()


def _copy(head: Mapping[str, Any]) -> StoredCopy:
    etag = head["ETag"].strip('"')
    by_key_service = head.get("ServerSideEncryption") not in (None, "AES256") or head.get("SSECustomerAlgorithm")
    is_md5 = not by_key_service and len(etag) == 32 and set(etag) <= set("0123456789abcdef")  # noqa: PLR2004
    return StoredCopy(head["ContentLength"], etag if is_md5 else None)


class _ReportedFile(io.FileIO):
    """A file that reports each byte to `progress` once, when it is first read: a client may read it twice."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path)
        self._progress = progress
        self._furthest = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read a block and report the progress."""
        block = super().read(-1 if size is None else size)
        if self.tell() > self._furthest:
            self._progress(self.tell() - self._furthest)
            self._furthest = self.tell()
        return block or b""


_S3_REMEDIES = (  # (pattern of the refusal's error code, remedy)
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


def _explain(error: BaseException) -> tuple[str, str]:
    """Return what went wrong with S3, and the remedy."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        HTTPClientError,
        NoCredentialsError,
    )
    from botocore.exceptions import (
        ConnectionError as NoConnection,
    )

    what, remedy = f"{type(error).__name__}: {error}", "check the file and the bucket named above"
    for cause in causes(error):
        if isinstance(cause, ClientError):
            refusal = cause.response.get("Error", {})
            code = str(refusal.get("Code", ""))
            what = f"S3 refused {cause.operation_name}: {refusal.get('Message') or 'no reason given'} ({code})."
            fitting = (text for pattern, text in _S3_REMEDIES if re.search(pattern, code))
            remedy = next(fitting, "fix the cause named above")
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


def open_remote(odb: Any) -> S3Objects:  # noqa: ANN401  DVC's object database
    """Open the remote that DVC has configured."""
    return S3Objects(odb)
