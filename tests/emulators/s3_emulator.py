"""An S3 store on loopback (moto's) with faults of its requests, and a view of its content for tests.

Requests with `If-None-Match` are answered one after the other, and `Content-MD5` is compared with the body: S3 does so,
moto does not.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import logging
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self
from unittest.mock import patch
from urllib.request import Request, urlopen

from loopback import Emulator

KEYS = {"AWS_ACCESS_KEY_ID": "AKIACANARYKEY", "AWS_SECRET_ACCESS_KEY": "canary/secret+access/key"}
SECRETS = (KEYS["AWS_SECRET_ACCESS_KEY"],)
ENVIRONMENT = {
    **KEYS,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "2",  # otherwise botocore retries a persistent fault for many seconds
    "AWS_CONFIG_FILE": "/nowhere/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere/credentials",
    "AWS_EC2_METADATA_DISABLED": "true",
}

Kind = Literal[
    "denied",  # 403 AccessDenied
    "full",  # 507, as stores with a quota answer
    "unavailable",  # 503
    "slow",  # 503 SlowDown
    "cut",  # the connection ends before anything is done
    "cut body",  # the connection ends in the middle of the request's body
    "cut answer",  # the request is done, and the connection ends in the middle of the answer
    "lost answer",  # the request is done, and no answer is sent
]
Conditions = Literal["kept", "ignored", "refused"]
REFUSALS = {
    "wrong digest": ("400 Bad Request", "BadDigest"),
    "refused": ("501 Not Implemented", "NotImplemented"),
    "denied": ("403 Forbidden", "AccessDenied"),
    "full": ("507 Insufficient Storage", "XMinioStorageFull"),
    "slow": ("503 Slow Down", "SlowDown"),
    "unavailable": ("503 Service Unavailable", "ServiceUnavailable"),
}


class S3Emulator(Emulator[Kind]):
    """A server with buckets. A context manager: while entered, it serves, and its keys are in the environment."""

    requests: list[str]
    """Method, path and query of every request."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        super().__init__()
        self._client: Any = None
        self.conditions: Conditions = "kept"
        """What the store does with `If-None-Match`."""
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # `requests` is the log

    def __enter__(self) -> Self:
        self._environment = patch.dict(os.environ, ENVIRONMENT)
        self._environment.start()
        self._pauses = patch("lib.sync.stores.s3.PAUSES", ())  # a fault that stays is reported at once
        self._pauses.start()
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        # moto has one state for the whole process, which another server would share
        urlopen(Request(f"{self.url}/moto-api/reset", method="POST")).close()
        server: Any = self._server._server
        self._app, server.app = server.app, self._serve
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self._pauses.stop()
        self._environment.stop()

    def client(self) -> Any:
        """Return a client of the store that is independent of DVC."""
        if self._client is None:
            import boto3

            self._client = boto3.client(
                "s3",
                endpoint_url=self.url,
                region_name="us-east-1",
                aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            )
        return self._client

    def make_bucket(self, name: str, *, versions: bool = False) -> None:
        """Create an empty bucket."""
        self.client().create_bucket(Bucket=name)
        if versions:
            self.client().put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})

    def files(self, bucket: str) -> dict[str, bytes]:
        """Return the newest version of every object, as a reader sees it."""
        client = self.client()
        listed = client.list_objects_v2(Bucket=bucket).get("Contents", ())
        return {item["Key"]: client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read() for item in listed}

    def remains(self, bucket: str) -> list[str]:
        """Return the keys of unfinished uploads in parts, which no reader sees."""
        return [item["Key"] for item in self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ())]

    def configure_clone(self, clone: Path, bucket: str) -> None:
        """Configure the bucket as the clone's default DVC remote."""
        (clone / ".dvc").mkdir(exist_ok=True)
        (clone / ".dvc" / "config").write_text(
            f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = s3://{bucket}/dvc\n"
            f"    endpointurl = {self.url}\n",
            encoding="utf-8",
        )

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        line = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        self.requests.append(line)
        kind = self._take_fault(line) or self._check(environ)
        if kind in REFUSALS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = REFUSALS[kind]
            start_response(status, [("Content-Type", "application/xml")])
            if environ["REQUEST_METHOD"] == "HEAD":  # its answer has no body
                return []
            return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]
        if kind is None:
            with self._lock if "HTTP_IF_NONE_MATCH" in environ else contextlib.nullcontext():
                return self._app(environ, start_response)  # type: ignore[no-any-return]
        if kind == "cut answer":
            return self._half(environ, start_response)
        if kind == "cut body":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
        elif kind == "lost answer":
            list(self._app(environ, lambda *_words: None))
        raise self._hung_up(environ)

    def _check(self, environ: dict[str, Any]) -> str | None:
        """Return why a request is refused."""
        if self.conditions == "refused" and "HTTP_IF_NONE_MATCH" in environ:
            return "refused"
        if self.conditions == "ignored":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if "HTTP_CONTENT_MD5" in environ:
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            environ["wsgi.input"] = io.BytesIO(body)
            if base64.b64encode(hashlib.md5(body).digest()).decode() != environ["HTTP_CONTENT_MD5"]:
                return "wrong digest"
        return None

    def _half(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        answer = b"".join(self._app(environ, start_response))
        yield answer[: len(answer) // 2]
        raise self._hung_up(environ)

    @staticmethod
    def _hung_up(environ: dict[str, Any]) -> ConnectionAbortedError:
        with contextlib.suppress(OSError):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return ConnectionAbortedError()
