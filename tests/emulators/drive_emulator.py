"""A Google Drive on loopback for the real client: the parts of Drive v2 and of its tokens that the tests need.

It has the properties of Drive that have caused defects: a folder may contain several files or folders of one title;
searching titles ignores case; a trashed folder hides its content; listings have pages; an upload is visible after its
last byte, and its session can still be queried then; an id is accepted once, and only if it was generated before;
listings may lag behind (`lag`), answers to an id do not. It signs users in through their browser, renews their tokens,
and issues tokens to service accounts, whose signature it verifies. Cannot: follow changes of Google, or emulate shared
drives.

    with DriveEmulator() as drive, client_pointed_at(drive):
        configure_clone(clone, drive, scratch)
        drive.add_fault("PUT /upload", "lost answer")
        ...
        assert drive.files() == {"files/md5/ab/cdef": [("id-000004", b"...")]}
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit

from loopback import Answer, LoopbackHandler, LoopbackServer, html_answer, json_answer

from lib.remotes.credentials import Credentials

FOLDER = "application/vnd.google-apps.folder"
LAG = 25  # requests after which a listing shows a change, while `lag` is set
STEP = 256 * 1024  # every piece of a resumable upload but the last must be a multiple of this

CANARIES = {
    "access_token": "ya29.canary-access-token",
    "refresh_token": "1//canary-refresh-token",
    "client_id": "canary-client-id.apps.googleusercontent.com",
    "client_secret": "GOCSPX-canary-client-secret",
    "token_expiry": "2099-01-01T00:00:00Z",
}
"""The five fields of the users' file; the emulator accepts these."""
SECRETS = tuple(CANARIES[name] for name in ("access_token", "refresh_token", "client_secret"))
USER = "user@example.com"
SCOPE = "https://www.googleapis.com/auth/drive"

Consent = Literal[
    "given",
    "refused",
    "without Drive",  # the user has not ticked the box of Drive
    "without a refresh token",  # as at the second time without prompt=consent
    "of an app in Testing",  # expires after seven days
]

Kind = Literal[
    "quota",  # 403 storageQuotaExceeded
    "rate limit",  # 403 userRateLimitExceeded
    "too many",  # 429 from a front end: its body is not JSON
    "unavailable",  # 503 from a front end
    "forbidden",  # 403 insufficientFilePermissions
    "damaged",  # other bytes arrive
    "late",  # the request is done, and the answer is sent a second later
    "cut",  # the connection ends before anything is done
    "cut body",  # the connection ends in the middle of the request's body
    "cut answer",  # the request is done, and the connection ends in the middle of the answer
    "lost answer",  # the request is done, and no answer is sent
]
PAGES = {"too many": 429, "unavailable": 503}
REFUSALS: Mapping[str, tuple[int, str, str]] = {
    "quota": (403, "storageQuotaExceeded", "The user's Drive storage quota has been exceeded."),
    "rate limit": (403, "userRateLimitExceeded", "User Rate Limit Exceeded"),
    "forbidden": (403, "insufficientFilePermissions", "The user does not have sufficient permissions for this file."),
}


@dataclass
class _Item:
    """A file or folder."""

    id: str
    title: str
    mime_type: str
    parents: list[str]
    data: bytes = b""
    trashed: bool = False
    born: int = 0
    """The number of requests before it was created."""
    died: int | None = None
    """The number of requests before it was deleted."""

    @functools.cached_property
    def md5(self) -> str:
        return hashlib.md5(self.data).hexdigest()


@dataclass
class _Session:
    """A resumable upload; `item` is set when it is complete."""

    body: dict[str, Any]
    size: int
    data: bytearray = field(default_factory=bytearray)
    item: _Item | None = None


@dataclass(frozen=True)
class _Code:
    """A user's consent, until the client fetches the tokens for it."""

    redirect_uri: str
    challenge: str
    consent: Consent


class DriveEmulator(LoopbackServer[Kind]):
    """The Drive of one account, with one folder in it. A context manager: it serves while entered."""

    root_id = "root-folder"
    requests: list[str]
    """Method, path, query and `Content-Range` of every request."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.reset()

    def reset(self) -> None:
        """Restore the initial state: an empty folder, no request, no fault, valid tokens."""
        with self._lock:
            self.requests = []
            self._faults = []
            self.largest_page = 1000
            self.capacity: int | None = None
            """The quota of the account in bytes; None is unlimited."""
            self.latency = 0.0
            """Seconds before each answer."""
            self.rounds = 0
            """The length of the longest chain of requests of which each came after the answer to the one before."""
            self.rate: float | None = None
            """Requests a second of one user; those beyond are refused by 403, every second time by 429."""
            self._allowed, self._filled, self.refused = 0.0, time.monotonic(), 0
            self.lag = False
            """Whether listings show the state before the last `LAG` requests; the trash is shown at once."""
            self.narrow = False
            """Whether a search in several parents silently looks in the first one alone (rclone#9810)."""
            self._items = {self.root_id: _Item(self.root_id, "remote", FOLDER, [])}
            self._deleted: list[_Item] = []
            self._generated: set[str] = set()
            self._sessions: dict[str, _Session] = {}
            self.consent: Consent = "given"
            """What the user answers in the browser."""
            self.enabled = True
            """Whether the project of the OAuth client has the Drive API."""
            self.service_quota = True
            """Whether service accounts may own files; Google's own have no storage since 2025."""
            self._access = {CANARIES["access_token"]}
            self._refresh = {CANARIES["refresh_token"]}
            self._codes: dict[str, _Code] = {}
            self._services: dict[str, Any] = {}  # e-mail → public key
            self._numbers = iter(range(1, 10**6))

    # ── the test's interface ───────────────────────────────────────────────────────────────────────────────────────

    def files(self) -> dict[str, list[tuple[str, bytes]]]:
        """Return {path below the root: [(id, bytes)]} of the files that are not in the trash, oldest first."""
        found: dict[str, list[tuple[str, bytes]]] = {}
        with self._lock:
            for item in self._items.values():
                if item.mime_type != FOLDER and not self._is_trashed(item):
                    found.setdefault(self._path(item), []).append((item.id, item.data))
        return found

    def folders(self) -> dict[str, list[str]]:
        """Return {path below the root: [id]} of the folders that are not in the trash, oldest first."""
        found: dict[str, list[str]] = {}
        with self._lock:
            for item in self._items.values():
                if item.mime_type == FOLDER and item.parents and not self._is_trashed(item):
                    found.setdefault(self._path(item), []).append(item.id)
        return found

    def revoke(self) -> None:
        """Revoke the user's permission: no token is valid, and none is issued."""
        with self._lock:
            self._access.clear()
            self._refresh.clear()

    def restore(self) -> None:
        """Make the original tokens valid again."""
        with self._lock:
            self._access.add(CANARIES["access_token"])
            self._refresh.add(CANARIES["refresh_token"])

    def expire(self) -> None:
        """Expire every access token; the refresh token stays valid."""
        with self._lock:
            self._access.clear()

    def make_service_account(self, email: str = "robot@project.iam.gserviceaccount.com") -> dict[str, str]:
        """Create a service account, and return its key as Google's console downloads it."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        with self._lock:
            self._services[email] = key.public_key()
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return {
            "type": "service_account",
            "project_id": "project",
            "private_key_id": secrets.token_hex(20),
            "private_key": key.private_bytes(*form).decode(),
            "client_email": email,
            "client_id": "100000000000000000001",
            "auth_uri": f"{self.url}/auth",
            "token_uri": f"{self.url}/token",
            "universe_domain": "googleapis.com",
        }

    def oauth_client(self) -> dict[str, dict[str, object]]:
        """Return the user's OAuth client of type Desktop app, as Google's console downloads it."""
        return {
            "installed": {
                "client_id": CANARIES["client_id"],
                "project_id": "project",
                "auth_uri": f"{self.url}/auth",
                "token_uri": f"{self.url}/token",
                "client_secret": CANARIES["client_secret"],
                "redirect_uris": ["http://localhost"],
            }
        }

    def put(self, path: str, data: bytes, *, folder: str | None = None) -> str:
        """Store one more file as another client would, in the folder with this id or in the first one of the path.

        Return the file's id.
        """
        parents, _, title = path.rpartition("/")
        with self._lock:
            return self._add({"title": title, "parents": [{"id": folder or self.make_folder(parents)}]}, data).id

    def make_folder(self, path: str, *, twin: bool = False) -> str:
        """Return the id of the folder at the path, created if missing; with `twin`, create one more of that name."""
        with self._lock:
            here = self.root_id
            for depth, title in enumerate(names := path.split("/"), 1):
                existing = [item.id for item in self._children(here) if item.title == title]
                if existing and not (twin and depth == len(names)):
                    here = existing[0]
                else:
                    here = self._add({"title": title, "parents": [{"id": here}], "mimeType": FOLDER}, b"").id
            return here

    def trash(self, item_id: str) -> None:
        """Move a file or folder to the trash."""
        with self._lock:
            self._items[item_id].trashed = True

    def _take_turn(self) -> Kind | None:
        """Return how a request beyond the user's rate is refused."""
        with self._lock:
            if self.rate is None:
                return None
            now = time.monotonic()
            self._allowed, self._filled = min(self.rate, self._allowed + self.rate * (now - self._filled)), now
            if self._allowed >= 1:
                self._allowed -= 1
                return None
            self.refused += 1
            return "rate limit" if self.refused % 2 else "too many"

    # ── content ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _add(self, body: Mapping[str, Any], data: bytes) -> _Item:
        self._check_id(body)
        item = _Item(
            body.get("id") or self._new_id(),
            body.get("title") or "Untitled",
            body.get("mimeType") or "application/octet-stream",
            [parent["id"] for parent in body.get("parents") or [{"id": self.root_id}]],
            data,
            born=len(self.requests),
        )
        self._items[item.id] = item
        return item

    def _new_id(self) -> str:
        return f"id-{next(self._numbers):06d}"

    def _check_id(self, body: Mapping[str, Any]) -> None:
        wanted = body.get("id")
        if wanted is None:
            return
        if wanted in self._items or wanted in [item.id for item in self._deleted]:
            raise _Refusal(409, "fileIdInUse", "A file already exists with the provided ID.")
        if wanted not in self._generated:
            raise _Refusal(400, "invalid", "The provided file ID is not usable.")

    def _listed(self) -> list[_Item]:
        """Return the items that a listing knows of."""
        if not self.lag:
            return list(self._items.values())
        then = len(self.requests) - LAG
        known = (*self._items.values(), *self._deleted)
        return [item for item in known if item.born <= then and (item.died is None or item.died > then)]

    def _children(self, folder: str) -> list[_Item]:
        return [item for item in self._items.values() if folder in item.parents]

    def _is_trashed(self, item: _Item) -> bool:
        above = [self._items[parent] for parent in item.parents if parent in self._items]
        return item.trashed or any(self._is_trashed(parent) for parent in above)

    def _path(self, item: _Item) -> str:
        names = []
        while item.parents:
            names.append(item.title)
            item = self._items[item.parents[0]]
        return "/".join(reversed(names))

    def _used(self) -> int:
        return sum(len(item.data) for item in self._items.values())

    def _describe(self, item: _Item) -> dict[str, Any]:
        about: dict[str, Any] = {
            "kind": "drive#file",
            "id": item.id,
            "title": item.title,
            "mimeType": item.mime_type,
            "parents": [{"id": parent} for parent in item.parents],
            "labels": {"trashed": self._is_trashed(item)},
        }
        if item.mime_type != FOLDER:
            about |= {"fileSize": str(len(item.data)), "md5Checksum": item.md5}
        return about

    def _remove(self, item_id: str) -> None:
        for child in self._children(item_id):
            self._remove(child.id)
        item = self._items.pop(item_id, None)
        if item:
            item.died = len(self.requests)
            self._deleted.append(item)


class _Refusal(Exception):
    """An answer that is an error of Drive."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status = status
        self.body = {
            "error": {
                "code": status,
                "message": message,
                "errors": [{"domain": "global", "reason": reason, "message": message}],
            }
        }
        super().__init__(message)


_json = functools.partial(json_answer, kind="application/json; charset=UTF-8")


class _Handler(LoopbackHandler):
    """One connection of a client."""

    service: DriveEmulator

    def _handle(self) -> None:
        drive = self.service
        parts = urlsplit(self.path)
        sent_range = self.headers.get("Content-Range")
        line = f"{self.command} {parts.path}?{unquote_plus(parts.query)}{f' [{sent_range}]' if sent_range else ''}"
        drive.requests.append(line)
        rounds = drive.rounds + 1
        time.sleep(drive.latency)
        kind = drive._take_fault(line) or drive._take_turn()
        if kind in ("cut", "cut body"):
            if kind == "cut body":
                self.read_body(half=True)
            self.hang_up()
            return
        body = self.read_body()
        if kind in PAGES:
            self.send(html_answer(PAGES[kind]))
            return
        refused = REFUSALS.get(kind or "")
        try:
            with drive._lock:
                answer = self._refuse(*refused) if refused else self._route(parts.path, parts.query, body)
        except _Refusal as refusal:
            answer = _json(refusal.body, refusal.status)
        if kind == "damaged":
            answer = replace(answer, body=b"x" * len(answer.body))
        if kind == "late":
            time.sleep(1)
        drive.rounds = max(drive.rounds, rounds)
        if kind == "lost answer":
            self.hang_up()
        else:
            self.send(answer, cut=kind == "cut answer")

    do_GET = do_POST = do_PUT = do_DELETE = _handle  # noqa: N815  the names that http.server looks for

    # ── requests ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _refuse(self, status: int, reason: str, message: str) -> Answer:
        return _json(_Refusal(status, reason, message).body, status)

    def _route(self, path: str, query_string: str, body: bytes) -> Answer:
        method, query = self.command, dict(parse_qsl(query_string))
        if self.headers.get("X-HTTP-Method-Override"):  # how the client sends a query that is too long for an address
            method, query = self.headers["X-HTTP-Method-Override"], dict(parse_qsl(body.decode()))
        if path == "/auth" and method == "GET":
            return self._ask_user(query)
        if path == "/token" and method == "POST":
            return self._give_token(dict(parse_qsl(body.decode())))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in self.service._access:
            raise _Refusal(401, "authError", "Invalid Credentials")
        if not self.service.enabled:
            raise _Refusal(403, "accessNotConfigured", "Google Drive API has not been used in project 1 before.")
        if path == "/upload/drive/v2/files":
            return self._upload(method, query, body)
        if path == "/drive/v2/about":
            return self._tell_quota(self._service(token) or USER)
        if path == "/drive/v2/files":
            return self._list(query) if method == "GET" else self._insert(json.loads(body), query)
        return self._treat(path, method, query)

    def _service(self, token: str) -> str | None:
        """Return the e-mail of the service account that a token belongs to."""
        return token.partition("c.")[2].rpartition(".")[0] if token.startswith("ya29.c.") else None

    def _tell_quota(self, email: str) -> Answer:
        total = self.service.capacity
        about = {
            "user": {"emailAddress": email, "displayName": "A User"},
            "quotaBytesUsed": str(self.service._used()),
            "quotaBytesUsedAggregate": str(self.service._used()),  # with what other services of the account hold
            "quotaType": "UNLIMITED" if total is None else "LIMITED",
        }
        return _json(about | ({} if total is None else {"quotaBytesTotal": str(total)}))

    def _treat(self, path: str, method: str, query: Mapping[str, str]) -> Answer:
        """Answer a request for one file, or for new ids."""
        if path == "/drive/v2/files/generateIds":
            return self._generate(int(query.get("maxResults", "10")))
        found = re.fullmatch(r"/drive/v2/files/([\w-]+)(/trash)?", path)
        if not found or found[1] not in self.service._items:
            raise _Refusal(404, "notFound", f"File not found: {found[1] if found else path}")
        item = self.service._items[found[1]]
        if found[2]:
            item.trashed = True
        elif method == "DELETE":
            self.service._remove(item.id)
            return Answer(204)
        elif query.get("alt") == "media":
            return self._download(item.data)
        return _json(_project(self.service._describe(item), query.get("fields")))

    def _ask_user(self, query: Mapping[str, str]) -> Answer:
        """Answer like the consent pages: redirect the browser to the client."""
        wanted = {"response_type": "code", "client_id": CANARIES["client_id"], "code_challenge_method": "S256",
                  "access_type": "offline", "prompt": "consent", "scope": SCOPE}  # fmt: skip
        loopback = urlsplit(query.get("redirect_uri", "")).hostname in ("127.0.0.1", "localhost")
        if not loopback or any(query.get(name) != value for name, value in wanted.items()):
            return Answer(400, b"Error 400: invalid_request", {"Content-Type": "text/html"})
        answer = {"error": "access_denied"}
        if self.service.consent != "refused":
            answer = {"code": f"4/canary-code-{secrets.token_hex(8)}", "scope": SCOPE}
            code = _Code(query["redirect_uri"], query["code_challenge"], self.service.consent)
            self.service._codes[answer["code"]] = code
        back = urlencode({"state": query.get("state", ""), **answer})
        return Answer(302, headers={"Location": f"{query['redirect_uri']}?{back}"})

    def _give_token(self, form: Mapping[str, str]) -> Answer:
        if form.get("grant_type") == "urn:ietf:params:oauth:grant-type:jwt-bearer":
            return self._give_service_token(form.get("assertion", ""))
        known = (CANARIES["client_id"], CANARIES["client_secret"])
        if (form.get("client_id"), form.get("client_secret")) != known:
            return _json({"error": "invalid_client", "error_description": "The OAuth client was not found."}, 401)
        if form.get("grant_type") == "authorization_code":
            return self._give_first_tokens(form)
        if form.get("refresh_token") not in self.service._refresh:
            return _json({"error": "invalid_grant", "error_description": "Token has been expired or revoked."}, 400)
        return _json(self._new_token(f"ya29.{secrets.token_hex(8)}"))

    def _new_token(self, token: str) -> dict[str, object]:
        self.service._access.add(token)
        return {"access_token": token, "expires_in": 3599, "token_type": "Bearer"}

    def _give_first_tokens(self, form: Mapping[str, str]) -> Answer:
        """Return the tokens for a code, once, to the client that requested the code."""
        code = self.service._codes.pop(form.get("code", ""), None)
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
        if code is None or code.redirect_uri != form.get("redirect_uri") or code.challenge != challenge:
            return _json({"error": "invalid_grant", "error_description": "Malformed auth code."}, 400)
        given = self._new_token(f"ya29.canary-first-{secrets.token_hex(8)}") | {"scope": SCOPE}
        if code.consent == "without Drive":
            given["scope"] = "openid"
        if code.consent != "without a refresh token":
            given["refresh_token"] = f"1//canary-first-{secrets.token_hex(8)}"
            self.service._refresh.add(str(given["refresh_token"]))
        if code.consent == "of an app in Testing":
            given["refresh_token_expires_in"] = 604799
        return _json(given)

    def _give_service_token(self, assertion: str) -> Answer:
        """Return a token for a service account's signed assertion."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import padding

        signed, _, signature = assertion.rpartition(".")
        claims = json.loads(_base64(signed.partition(".")[2]))
        refusal = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
        key = self.service._services.get(claims["iss"])
        if key is None:
            return _json(refusal | {"error_description": "Invalid grant: account not found"}, 400)
        try:
            key.verify(_base64(signature), signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        except InvalidSignature:
            return _json(refusal, 400)
        now = time.time()
        issued = claims["iat"]
        if claims["aud"] != f"{self.service.url}/token" or not issued - 60 < now < claims["exp"] <= issued + 3600:
            return _json(refusal | {"error_description": "Invalid JWT: Token must be a short-lived token"}, 400)
        if SCOPE not in claims["scope"].split():
            return _json({"error": "invalid_scope", "error_description": "Invalid OAuth scope"}, 400)
        return _json(self._new_token(f"ya29.c.{claims['iss']}.{secrets.token_hex(8)}"))

    def _generate(self, number: int) -> Answer:
        if not 1 <= number <= 1000:
            raise _Refusal(400, "invalidParameter", f"Invalid value '{number}' for maxResults")
        ids = [self.service._new_id() for _ in range(number)]
        self.service._generated.update(ids)
        return _json({"kind": "drive#generatedIds", "space": "drive", "ids": ids})

    def _list(self, query: Mapping[str, str]) -> Answer:
        search = query.get("q", "")
        if self.service.narrow:
            search = re.sub(r" or '[^']+' in parents", "", search)
        fits = _Search(search, self.service).read()
        found = [item for item in self.service._listed() if fits(item)]
        first = int(query.get("pageToken", "0"))
        end = first + min(int(query.get("maxResults", "100")), self.service.largest_page)
        page: dict[str, Any] = {
            "kind": "drive#fileList",
            "items": [self.service._describe(i) for i in found[first:end]],
        }
        if end < len(found):
            page["nextPageToken"] = str(end)
        return _json(_project(page, query.get("fields")))

    def _insert(self, body: dict[str, Any], query: Mapping[str, str]) -> Answer:
        self._check_parents(body)
        return _json(_project(self.service._describe(self.service._add(body, b"")), query.get("fields")))

    def _check_parents(self, body: Mapping[str, Any]) -> None:
        for parent in body.get("parents") or ():
            if parent["id"] not in self.service._items:
                raise _Refusal(404, "notFound", f"File not found: {parent['id']}")

    def _upload(self, method: str, query: Mapping[str, str], body: bytes) -> Answer:
        if query.get("uploadType") != "resumable":
            raise _Refusal(400, "badRequest", "this emulator accepts only resumable uploads")
        if method == "POST":
            size = int(self.headers.get("X-Upload-Content-Length") or 0)
            if self.service.capacity is not None and self.service._used() + size > self.service.capacity:
                raise _Refusal(*REFUSALS["quota"])
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if self._service(token) and not self.service.service_quota:
                text = "Service Accounts do not have storage quota. Leverage shared drives, or use OAuth delegation."
                raise _Refusal(403, "storageQuotaExceeded", text)
            wanted = json.loads(body)
            self._check_parents(wanted)
            self.service._check_id(wanted)
            name = f"{secrets.token_hex(8)}-{wanted['title']}"  # with the title, so that a fault can match it
            self.service._sessions[name] = _Session(wanted, size)
            return Answer(200, headers={"Location": f"{self.service.url}{self.path}&upload_id={name}"})
        session = self.service._sessions.get(query.get("upload_id", ""))
        if session is None:
            raise _Refusal(404, "notFound", "no such upload")
        if session.item is None:
            self._receive(session, body)
        if session.item is None:
            return Answer(308, headers={"Range": f"bytes=0-{len(session.data) - 1}"} if session.data else {})
        return _json(_project(self.service._describe(session.item), query.get("fields")))

    def _receive(self, session: _Session, body: bytes) -> None:
        sent = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", self.headers.get("Content-Range") or "")
        if sent:
            first, last, size = map(int, sent.groups())
            short = last + 1 < size and (last + 1 - first) % STEP
            if first > len(session.data) or len(body) != last + 1 - first or size != session.size or short:
                raise _Refusal(400, "badRequest", f"these bytes were not expected: {sent[0]}")
            session.data[first:] = body
        if len(session.data) == session.size:
            session.item = self.service._add(session.body, bytes(session.data))
            session.data.clear()  # the file has the bytes now

    def _download(self, data: bytes) -> Answer:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            return Answer(200, data)
        first = int(wanted[1])
        last = min(int(wanted[2] or len(data)), len(data) - 1)
        if first >= len(data):
            return Answer(416, headers={"Content-Range": f"bytes */{len(data)}"})
        return Answer(206, data[first : last + 1], {"Content-Range": f"bytes {first}-{last}/{len(data)}"})


# ── Drive's languages of searches and of fields ───────────────────────────────────────────────────────────────────────

_TOKENS = re.compile(r"\s*(?:('(?:[^'\\]|\\.)*')|([()=])|(\w+))")


Fits = Callable[[_Item], bool]


class _Search:
    """The language of a search: titles, parents, kinds and the trash, with `and`, `or`, `not` and parentheses."""

    def __init__(self, query: str, drive: DriveEmulator) -> None:
        self._query, self._drive = query, drive
        self._tokens: list[str] = []
        end = 0
        while end < len(query.rstrip()):
            found = _TOKENS.match(query, end)
            if not found:
                raise self._invalid()
            self._tokens.append(found[0].strip())
            end = found.end()

    def read(self) -> Fits:
        """Return the predicate of the search."""
        fits = self._either() if self._tokens else (lambda _item: True)
        if self._tokens:
            raise self._invalid()
        return fits

    def _invalid(self) -> _Refusal:
        return _Refusal(400, "invalid", f"Invalid query: {self._query}")

    def _take(self, *expected: str) -> str:
        """Consume one token, or the expected ones; return the last."""
        for wanted in expected or ("",):
            if not self._tokens or (wanted and self._tokens[0] != wanted):
                raise self._invalid()
            token = self._tokens.pop(0)
        return token

    def _either(self) -> Fits:
        terms = [self._both()]
        while self._tokens[:1] == ["or"]:
            self._take()
            terms.append(self._both())
        return lambda item: any(term(item) for term in terms)

    def _both(self) -> Fits:
        terms = [self._term()]
        while self._tokens[:1] == ["and"]:
            self._take()
            terms.append(self._term())
        return lambda item: all(term(item) for term in terms)

    def _term(self) -> Fits:
        token = self._take()
        if token == "not":
            inner = self._term()
            return lambda item: not inner(item)
        if token == "(":
            inner = self._either()
            self._take(")")
            return inner
        if token.startswith("'"):
            self._take("in", "parents")
            return lambda item: _text(token) in item.parents
        self._take("=")
        return self._comparison(token, self._take())

    def _comparison(self, name: str, value: str) -> Fits:
        kinds: dict[str, Fits] = {
            "trashed": lambda item: self._drive._is_trashed(item) == (value == "true"),
            "title": lambda item: item.title.lower() == _text(value).lower(),
            "mimeType": lambda item: item.mime_type == _text(value),
        }
        if name not in kinds:
            raise self._invalid()
        return kinds[name]


def _base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _text(token: str) -> str:
    return re.sub(r"\\(.)", r"\1", token[1:-1])


def _project(content: Any, fields: str | None) -> Any:
    """Return only the fields that `fields` names: `id,title` or `nextPageToken,items(id,title)`."""
    if not fields or fields == "*":
        return content
    if isinstance(content, list):
        return [_project(item, fields) for item in content]
    kept = {}
    for name, inner in re.findall(r"(\w+)(?:\(([^()]*)\))?", fields):
        if name in content:
            kept[name] = _project(content[name], inner)
    return kept


# ── pointing the real client at it ────────────────────────────────────────────────────────────────────────────────────

SITECUSTOMIZE = """
import json
import googleapiclient.discovery_cache as cache

_real = cache.get_static_doc

def get_static_doc(*words):
    text = _real(*words)
    if text is None:
        return None
    document = json.loads(text)
    document.update(rootUrl="{url}/", baseUrl="{url}/")
    document.pop("mtlsRootUrl", None)
    return json.dumps(document)

cache.get_static_doc = get_static_doc
"""


@contextlib.contextmanager
def client_pointed_at(drive: DriveEmulator) -> Iterator[None]:
    """Make Google's client in this process use the emulator."""
    import googleapiclient.discovery_cache as cache

    real = cache.get_static_doc
    exec(SITECUSTOMIZE.format(url=drive.url), {})
    try:
        yield
    finally:
        cache.get_static_doc = real


@contextlib.contextmanager
def drive_client(drive: DriveEmulator, *, retries: int = 6) -> Iterator[None]:
    """Point Google's client in this process at the emulator; it opens no browser and retries without a pause."""
    from lib.sync.stores import gdrive

    with (
        client_pointed_at(drive),
        patch.dict(os.environ, {"GDRIVE_NON_INTERACTIVE": "1"}),
        patch.object(gdrive, "PAUSES", (0.0,) * retries),
    ):
        yield


def write_sitecustomize(folder: Path, drive: DriveEmulator) -> Path:
    """Write and return a folder that, first on PYTHONPATH, makes child processes use the emulator."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE.format(url=drive.url), encoding="utf-8")
    return folder


def write_credentials(file: Path, drive: DriveEmulator, **changed: str) -> Path:
    """Write the credentials as the project does, with the address at which the emulator issues tokens."""
    Credentials(drive={**CANARIES, **changed}, source="the test").write_drive_file(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    content["token_uri"] = f"{drive.url}/token"
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def name_remote(clone: Path, drive: DriveEmulator) -> None:
    """Configure the emulator as the clone's default DVC remote, without credentials."""
    (clone / ".dvc").mkdir(exist_ok=True)
    (clone / ".dvc" / "config").write_text(
        f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = gdrive://{drive.root_id}\n", encoding="utf-8"
    )


def configure_clone(clone: Path, drive: DriveEmulator, scratch: Path, **changed: str) -> None:
    """Configure the emulator as the clone's default DVC remote, with a credentials file in `scratch`."""
    file = write_credentials(scratch / "gdrive.json", drive, **changed)
    name_remote(clone, drive)
    (clone / ".dvc" / "config.local").write_text(
        f"['remote \"storage\"']\n    gdrive_user_credentials_file = {file}\n", encoding="utf-8"
    )
