"""An S3 store on loopback (moto's) whose wire can be cut, and what the tests need to see of it."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self
from urllib.request import Request, urlopen

from loopback import Emulator

KEYS = {"AWS_ACCESS_KEY_ID": "AKIACANARYKEY", "AWS_SECRET_ACCESS_KEY": "canary/secret+access/key"}
SECRETS = (KEYS["AWS_SECRET_ACCESS_KEY"],)
ENVIRONMENT = {
    **KEYS,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "2",  # else a cut that stays takes botocore many seconds
    "AWS_CONFIG_FILE": "/nowhere/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere/credentials",
    "AWS_EC2_METADATA_DISABLED": "true",
}

Kind = Literal[
    "denied",  # 403 AccessDenied
    "full",  # 507, as stores that have a quota say it
    "unavailable",  # 503
    "cut",  # the connection ends before anything is done
    "cut body",  # the connection ends in the middle of what the client sends
    "lost answer",  # it is done, and no answer comes
]
REFUSALS = {
    "denied": ("403 Forbidden", "AccessDenied"),
    "full": ("507 Insufficient Storage", "XMinioStorageFull"),
    "unavailable": ("503 Service Unavailable", "ServiceUnavailable"),
}


class S3Emulator(Emulator[Kind]):
    """A server with buckets. A context manager: it serves while entered."""

    requests: list[str]
    """Method, path and query of every request."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        super().__init__()
        self._client: Any = None
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # `requests` is the log

    def __enter__(self) -> Self:
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.url = f"http://{host}:{port}"
        # moto keeps one world for the whole process, also when another server is started
        urlopen(Request(f"{self.url}/moto-api/reset", method="POST")).close()
        server: Any = self._server._server
        self._app, server.app = server.app, self._serve
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()

    def client(self) -> Any:
        """Give a client of the store that has nothing to do with DVC."""
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
        """Make an empty bucket."""
        self.client().create_bucket(Bucket=name)
        if versions:
            self.client().put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})

    def files(self, bucket: str) -> dict[str, bytes]:
        """Give what a reader sees: the newest version of every object."""
        client = self.client()
        listed = client.list_objects_v2(Bucket=bucket).get("Contents", ())
        return {item["Key"]: client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read() for item in listed}

    def remains(self, bucket: str) -> list[str]:
        """Give what is stored and not seen: keys of uploads in parts that have not ended."""
        return [item["Key"] for item in self.client().list_multipart_uploads(Bucket=bucket).get("Uploads", ())]

    def configure_clone(self, clone: Path, bucket: str) -> None:
        """Name the bucket as the clone's default DVC remote."""
        (clone / ".dvc").mkdir(exist_ok=True)
        (clone / ".dvc" / "config").write_text(
            f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = s3://{bucket}/dvc\n"
            f"    endpointurl = {self.url}\n",
            encoding="utf-8",
        )

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        line = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        self.requests.append(line)
        kind = self._take_fault(line)
        if kind in REFUSALS:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = REFUSALS[kind]
            start_response(status, [("Content-Type", "application/xml")])
            if environ["REQUEST_METHOD"] == "HEAD":  # whose answer has no body
                return []
            return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]
        if kind is None:
            return self._app(environ, start_response)  # type: ignore[no-any-return]
        if kind == "cut body":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
        elif kind == "lost answer":
            list(self._app(environ, lambda *_words: None))
        with contextlib.suppress(OSError):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError
