"""Store files on S3, or on a service with the same protocol, through DVC's own client.

Guarantees: one path has one copy, since every request that stores a copy carries `If-None-Match: *`; where the store
does not know this header, a look comes first, and `limits` reports it.
Cannot: compare the mark and delete in one request; another client may replace the copy in between. A version of ours
that another client's version or delete marker hides is not deleted: no reader sees it. Time limits are those of DVC's
configuration (`read_timeout`, `connect_timeout`); the defaults of s3fs are 15 s and 5 s.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from botocore.exceptions import ClientError
from fsspec.asyn import sync

from lib.errors import causes
from lib.remotes.answers import patiently
from lib.remotes.store_errors import explain
from lib.sync.stores.base import Progress, Store, StoredCopy, md5_of

BLOCK = 2**20  # bytes
PAUSES = (2.0, 8.0, 30.0)  # seconds before a request is repeated, after botocore's own repetitions
_TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict")  # another copy is there, or being written
_UNKNOWN = ("NotImplemented", "501", "InvalidArgument", "InvalidRequest")  # of services without `If-None-Match`


class S3Objects(Store):
    """An S3 bucket, through the client that DVC has set up; the client's cache of listings is never read.

    Identity: a random mark in the object's metadata. A copy without one (DVC sets none) is named by its version or by
    its time and ETag.

    Versions: only the newest version is a copy, and none under a delete marker, as for DVC. A deletion removes that
    version for good, if it has the mark.

    Uploads: a file is one request, which S3 takes up to 5 GiB: nothing is visible or left before it is complete.
    A look does not know the MD5 of a copy that was sent in parts (by DVC) or is encrypted by a key service.
    """

    loses = "overwrites files (it ignores `If-None-Match`)"

    def __init__(self, odb: Any) -> None:  # noqa: ANN401  DVC's object database
        super().__init__(odb, f"s3://{odb.path}")
        with self._push_errors():
            self._s3 = odb.fs.fs  # connects
        # botocore retries by itself and rewinds the file first; s3fs would continue where the file stopped
        self._s3.retries = 1

    def address(self) -> str:
        """Return the bucket and the path in it, after the service unless that is Amazon's."""
        place = urlsplit(self._s3.s3.meta.endpoint_url)
        service = place.netloc.rpartition("@")[2]
        amazon = re.search(r"\.amazonaws\.com(\.cn)?$", place.hostname or "")
        return f"s3://{self._home}" if amazon else f"s3://{self._home} at {service}{place.path.rstrip('/')}"

    def new_identities(self, count: int) -> list[str]:
        """Return random marks."""
        return [secrets.token_hex(8) for _ in range(count)]

    def create(self, path: str, source: Path, identity: str, progress: Progress = int) -> StoredCopy | None:
        """Upload the file in one request, of which nothing is visible before S3 has checked its MD5."""
        with self._push_errors():
            md5 = md5_of(source)
            copy = StoredCopy(identity, source.stat().st_size, md5)
            digest = base64.b64encode(bytes.fromhex(md5)).decode()
            progress(0)
            try:
                with source.open("rb") as file:
                    self._put(path, Body=file, ContentMD5=digest, Metadata={"copy": identity})
            except Exception as error:
                # botocore repeats a request whose answer was lost, and then our own copy refuses it
                copies: list[StoredCopy] = []
                with contextlib.suppress(Exception):  # the first error is the one raised
                    copies = self.find(path)
                if copies and copies[0].identity == identity:
                    copy = replace(copies[0], md5=md5)
                elif copies and (isinstance(error, FileExistsError) or _code(error) in _TAKEN):
                    return None
                else:
                    raise
            progress(copy.size)
        return copy

    def _put(self, path: str, **words: Any) -> None:  # noqa: ANN401  parameters of a request
        """Send the request that stores a copy, so that it overwrites no other one."""
        if not self._lack:
            try:
                self._ask("put_object", path, IfNoneMatch="*", **words)
            except OSError as error:
                if _code(error) not in _UNKNOWN:
                    raise
            else:
                return
        if self._head(path) is not None:
            raise FileExistsError(errno.EEXIST, "another copy is there", path)
        self._ask("put_object", path, **words)
        self._lack = "does not know `If-None-Match`"  # not earlier: the same refusal may have had another cause

    def find(self, path: str) -> list[StoredCopy]:
        """Return the newest version, which is the one that readers see."""
        with self._push_errors():
            head = self._head(path)
        return [_copy(head)] if head else []

    def delete(self, path: str, identity: str) -> None:
        """Delete the newest version as long as it has that mark: a repeated upload may have made several."""
        deleted: str | None = ""
        with self._push_errors():
            while (head := self._head(path)) and _copy(head).identity == identity and head.get("VersionId") != deleted:
                deleted = head.get("VersionId")  # None if the bucket keeps no versions
                self._ask("delete_object", path, **({"VersionId": deleted} if deleted else {}))

    def read(self, path: str, identity: str, target: Path) -> None:
        """Download the object in one request, if it is that copy; a download that breaks begins again."""

        async def fetch() -> bool:
            answer = await self._s3._call_s3("get_object", **self._place(path))  # noqa: SLF001  as fsspec names coroutines
            async with answer["Body"] as body:  # closes the connection
                if _copy(answer).identity != identity:
                    return False
                with target.open("wb") as file:
                    async for block in body.iter_chunks(BLOCK):
                        file.write(block)
            return True

        is_there = False
        with self._push_errors(), contextlib.suppress(FileNotFoundError):
            is_there = patiently(lambda: sync(self._s3.loop, fetch), explain, PAUSES)
        if not is_there:
            raise FileNotFoundError(f"{self.name}: {path} is not there (copy {identity})")

    def flat(self, prefix: str) -> dict[str, list[StoredCopy]]:
        """Return the files whose names begin so; each costs one more request."""
        with self._push_errors():
            names = [prefix + rest for rest, _, _ in self._list(f"{self._home}/{prefix}")]
            return {name: self.find(name) for name in names if "/" not in name}

    def survey(self) -> dict[str, list[StoredCopy]]:
        """Return every object, by listing the bucket below the remote's path, which does not show the marks.

        An ETag that contains `-` belongs to a copy sent in parts, whose MD5 is unknown. Any other that is not the
        object's name may belong to an encrypted copy: only such an object costs an extra request.
        """
        found: dict[str, list[StoredCopy]] = {}
        with self._push_errors():
            for name, size, etag in self._list(f"{self.name}/"):
                oid = name.replace("/", "", 1)
                if etag == oid.removesuffix(".dir") or "-" in etag:
                    found[oid] = [StoredCopy("", size, None if "-" in etag else etag)]
                elif copies := self.find(self.path_of(oid)):
                    found[oid] = copies
        return found

    # ── asking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _ask(self, method: str, path: str, **words: object) -> Any:  # noqa: ANN401  what the client returns
        answer = self._call(method, **self._place(path), **words)
        if method in ("put_object", "delete_object"):
            self._s3.invalidate_cache()  # DVC reads this cache
        return answer

    def _place(self, path: str) -> dict[str, str]:
        bucket, key, _ = self._s3.split_path(f"{self._home}/{path}")
        return {"Bucket": bucket, "Key": key}

    def _call(self, method: str, **words: Any) -> Any:  # noqa: ANN401
        """Return the answer to a request, repeated after each of `PAUSES` while its error is transient."""

        def send() -> Any:  # noqa: ANN401
            if "Body" in words:
                words["Body"].seek(0)
            return self._s3.call_s3(method, **words)

        return patiently(send, explain, PAUSES)

    def _head(self, path: str) -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError):
            return dict(self._ask("head_object", path))
        return None

    def _list(self, beginning: str) -> Iterator[tuple[str, int, str]]:
        """Yield (rest of the name, size, ETag) of all objects whose path begins so."""
        bucket, prefix, _ = self._s3.split_path(beginning)
        page: dict[str, Any] = {"IsTruncated": True}
        while page.get("IsTruncated"):
            after = {"ContinuationToken": token} if (token := page.get("NextContinuationToken")) else {}
            page = self._call("list_objects_v2", Bucket=bucket, Prefix=prefix, **after)
            for item in page.get("Contents", ()):
                yield item["Key"].removeprefix(prefix), int(item["Size"]), item["ETag"].strip('"')


def _copy(head: Mapping[str, Any]) -> StoredCopy:
    etag, version = head["ETag"].strip('"'), head.get("VersionId")
    by_key_service = head.get("ServerSideEncryption") not in (None, "AES256") or head.get("SSECustomerAlgorithm")
    md5 = etag if re.fullmatch("[0-9a-f]{32}", etag) and not by_key_service else None
    unmarked = version if version not in (None, "null") else f"{head['LastModified']:%Y%m%dT%H%M%SZ} {etag}"
    return StoredCopy(head.get("Metadata", {}).get("copy") or unmarked, head["ContentLength"], md5)


def _code(error: BaseException) -> str:
    """Return the code of a refusal; empty if the error is another one."""
    refusals = (cause for cause in causes(error) if isinstance(cause, ClientError))
    return next((str(refusal.response.get("Error", {}).get("Code", "")) for refusal in refusals), "")
