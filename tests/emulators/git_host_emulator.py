"""A Git host on loopback for the real git client: smart HTTP, tokens, and a host's refusals.

Git itself implements the protocol (`git http-backend`); the emulator adds what a host adds: accounts and their rights,
rules for refs, and faults of requests. The answers to a wrong token, a hidden repository, a token without a right and a
protected branch have GitHub's wording. Cannot: follow changes of a host, serve HTTPS, or change an account during a
request.

    with GitHost(folder) as host:
        host.add_repository("owner/name", bare)
        host.add_token(TOKEN)
        host.protected = ["refs/heads/kaggle-*"]
        host.add_fault("POST .* refs/heads/", "lost answer")
        ...
        assert host.count("git-receive-pack") == 4 and not other_host.saw_token
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import os
import re
import subprocess
import tempfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import Answer, LoopbackHandler, LoopbackServer, html_answer

Right = Literal["read", "write", "workflow"]
RIGHTS: tuple[Right, ...] = ("read", "write", "workflow")

Kind = Literal[
    "403",
    "rate limit",  # 403, and a text that says why
    "429",
    "500",
    "502",
    "503",
    "cut",  # the connection ends before anything is done
    "cut answer",  # the request is done, and the connection ends in the middle of the answer
    "lost answer",  # the request is done, and no answer is sent
    "silent",  # the request is done after `silence` seconds, or never if the host is closed before
    "late",  # the request is done, and the answer is sent `silence` seconds later
]

# Run by Git for each ref of a push. It writes the reason of a refusal to a file, because Git itself reports only "hook
# declined" to the client. If no such file is given, the push was not made over HTTP.
UPDATE_HOOK = r"""#!/bin/sh
ref=$1 new=$3
[ -n "$GIT_HOST_REASONS" ] || exit 0
refuse() { printf '%s\t%s\n' "$ref" "$1" >> "$GIT_HOST_REASONS"; exit 1; }
set -f

case "$ref" in
refs/heads/* | refs/tags/*) ;;
*) [ -z "$GIT_HOST_OTHER_REFS" ] || refuse "$GIT_HOST_OTHER_REFS" ;;
esac

for pattern in $GIT_HOST_PROTECTED; do
  case "$ref" in $pattern)
    if [ "$GIT_HOST_RULE" = GH006 ]; then
      echo "error: GH006: Protected branch update failed for $ref." >&2
      echo "error: You're not authorized to push to this branch." >&2
      refuse "protected branch hook declined"
    fi
    echo "error: GH013: Repository rule violations found for $ref." >&2
    echo "" >&2
    echo "- Cannot create ref due to creations being restricted." >&2
    refuse "push declined due to repository rule violations" ;;
  esac
done

if [ "$GIT_HOST_WORKFLOW" = no ] && [ "$new" != 0000000000000000000000000000000000000000 ]; then
  first=$(git ls-tree -r --name-only "$new" .github/workflows/ | head -n 1)
  [ -z "$first" ] || refuse "refusing to allow a Personal Access Token to create or update workflow \
\`$first\` without \`workflow\` scope"
fi
"""


@dataclass(frozen=True)
class Account:
    """The user of a token, its rights, and the repositories for which they hold; none means all repositories."""

    name: str
    rights: frozenset[Right]
    repositories: frozenset[str] = frozenset()

    def may(self, right: Right, repository: str) -> bool:
        """Return whether the token has this right for the repository."""
        return right in self.rights and (not self.repositories or repository in self.repositories)


@dataclass
class Request:
    """One request and its outcome, without the token itself."""

    method: str
    path: str
    service: str
    """`git-upload-pack` (reading) or `git-receive-pack` (writing)."""
    asks: str = ""
    """The command of a reader's body, `ls-refs` or `fetch`; the refs that a writer's body updates."""
    encoding: str = ""
    """The encodings of the body: `chunked`, `gzip`, both, or empty."""
    has_token: bool = False
    authorised: bool = False
    status: int = 0
    """The status of the answer; 0 if there is none, or none yet."""

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.service} {self.asks}".rstrip()


def _text_answer(status: int, text: str, **headers: str) -> Answer:
    """Return a plain text answer, which git shows to its user as `remote: …`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, text.encode(), {"Content-Type": "text/plain; charset=UTF-8", **named})


class GitHost(LoopbackServer[Kind]):
    """Bare repositories below `folder`, served as `<url>/owner/name.git`. A context manager."""

    requests: list[Request]

    def __init__(self, folder: Path) -> None:
        super().__init__(_Handler)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.tokens: dict[str, Account] = {}
        self.public: set[str] = set()
        """Repositories (`owner/name`) that may be read without a token; all others are private."""
        self.renamed: dict[str, str] = {}
        """Repositories that were renamed: requests for the old name are redirected to the new one."""
        self.moved_to = ""
        """Another host's address, to which every request is redirected; empty for none."""
        self.denial = "Permission to {repository}.git denied to {user}."
        """The answer (403) to a read-only token; `Write access to repository not granted.` is the other wording."""
        self.protected: Sequence[str] = ()
        """Shell patterns of refs that may not be created, updated or deleted."""
        self.rule: Literal["GH006", "GH013"] = "GH013"
        """The error for a protected ref: that of a protected branch, or that of a repository rule."""
        self.other_refs: Literal["", "deny updating a hidden ref", "funny refname"] = ""
        """The reason for refusing refs other than branches and tags; empty to accept them."""
        self.atomic = True
        """Whether atomic pushes are supported."""
        self.latency = 0.0
        """Seconds before each answer."""
        self.silence = 3600.0
        """Seconds of silence of the faults `silent` and `late`."""
        self._backends: set[subprocess.Popen[bytes]] = set()

    def __exit__(self, *_: object) -> None:
        self._closing.set()  # waiting requests are cut; a "silent" one is never done
        with self._lock:
            for backend in self._backends:
                backend.kill()
        super().__exit__()

    # ── the test's interface ───────────────────────────────────────────────────────────────────────────────────────

    def add_repository(self, name: str, bare: Path | None = None, *, public: bool = False) -> str:
        """Serve a bare repository, a new one or the one at `bare`, as `owner/name`; return its address."""
        path = self.folder / f"{name}.git"
        path.parent.mkdir(parents=True, exist_ok=True)
        if bare is not None:
            path.symlink_to(bare, target_is_directory=True)
        else:
            words = ["git", "init", "--quiet", "--bare", "--template=", "--initial-branch=main", str(path)]
            subprocess.run(words, check=True)
        hook = path / "hooks" / "update"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(UPDATE_HOOK, encoding="utf-8")
        hook.chmod(0o755)
        if public:
            self.public.add(name)
        return self.address(name)

    def address(self, name: str) -> str:
        """Return the address of a repository."""
        return f"{self.url}/{name}.git"

    def add_token(
        self, token: str, user: str = "octocat", rights: Collection[Right] = RIGHTS, repositories: Collection[str] = ()
    ) -> None:
        """Accept a token with these rights; adding it again changes them."""
        self.tokens[token] = Account(user, frozenset(rights), frozenset(repositories))

    def expire(self, token: str) -> None:
        """Stop accepting a token."""
        self.tokens.pop(token, None)

    @property
    def saw_token(self) -> bool:
        """Return whether any request contained a token, valid or not."""
        return any(request.has_token for request in list(self.requests))

    def add_fault(self, match: str, kind: Kind, times: int = 1, *, after: int = 0) -> None:
        """Break the next `times` requests that match the pattern, after skipping `after` of them.

        git's client (curl) repeats a request once when a reused connection ends without a byte. A single "cut" may
        therefore be harmless, and after a single "lost answer" the request is done twice.
        """
        super().add_fault(match, kind, times, after=after)

    # ── rules ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _admit(self, request: Request, token: str | None, repository: str) -> Account | Answer:
        """Return the account of the token, or the answer that refuses it."""
        writes = request.service == "git-receive-pack"
        ask = {"WWW_Authenticate": 'Basic realm="GitHub"'}
        if token is None:
            if repository in self.public and not writes:
                return Account("", frozenset({"read"}))
            return _text_answer(401, "Repository not found.", **ask)
        account = self.tokens.get(token)
        if account is None:
            text = "Invalid username or token. Password authentication is not supported for Git operations."
            return _text_answer(401, text, **ask)
        is_seen = account.may("read", repository) or repository in self.public
        if not is_seen or not (self.folder / f"{repository}.git").is_dir():
            return _text_answer(404, "Repository not found.")
        if writes and not account.may("write", repository):
            return _text_answer(403, self.denial.format(repository=repository, user=account.name))
        return account

    def _settings(self) -> dict[str, str]:
        """Return variables that configure Git in addition to the repository's own configuration."""
        settings = {"receive.advertiseAtomic": str(self.atomic).lower(), "receive.autogc": "false"}
        environment = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        pairs = list(settings.items())
        if self.other_refs == "deny updating a hidden ref":
            pairs += [("receive.hideRefs", hidden) for hidden in ("refs", "!refs/heads", "!refs/tags")]
        for number, (key, value) in enumerate(pairs):
            environment |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
        return environment | {"GIT_CONFIG_COUNT": str(len(pairs))}

    def _serve(self, request: Request, query: str, account: Account, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Return Git's answer, with the rules' own messages in place of "hook declined"."""
        with tempfile.TemporaryDirectory(prefix="git-host-") as scratch:
            reasons = Path(scratch) / "reasons"
            has_workflow = account.may("workflow", _repository_of(request.path))
            given = {
                **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "GITHUB_"))},
                **self._settings(),
                **headers,
                "GIT_PROJECT_ROOT": str(self.folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "GATEWAY_INTERFACE": "CGI/1.1",
                "REQUEST_METHOD": request.method,
                "PATH_INFO": request.path,
                "QUERY_STRING": query,
                "CONTENT_LENGTH": str(len(body)),
                "REMOTE_ADDR": "127.0.0.1",
                "GIT_HOST_REASONS": str(reasons),
                "GIT_HOST_PROTECTED": " ".join(self.protected),
                "GIT_HOST_RULE": self.rule,
                "GIT_HOST_OTHER_REFS": self.other_refs,
                "GIT_HOST_WORKFLOW": "yes" if has_workflow else "no",
            }
            if account.name:
                given["REMOTE_USER"] = account.name
            answer = self._run_backend(given, body)
            if reasons.exists():
                lines = reasons.read_text(encoding="utf-8").splitlines()
                answer = Answer(answer.status, _reword(answer.body, dict(line.split("\t") for line in lines)),
                                answer.headers)  # fmt: skip
            return answer

    def _run_backend(self, environment: Mapping[str, str], body: bytes) -> Answer:
        backend = subprocess.Popen(
            ["git", "http-backend"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with self._lock:
            self._backends.add(backend)
        try:
            output, _ = backend.communicate(body)
        finally:
            with self._lock:
                self._backends.discard(backend)
        head, _, rest = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
        headers.pop("Content-Length", None)
        status = int(headers.pop("Status", "200").split()[0]) if head else 500
        return Answer(status, rest, headers)


def _repository_of(path: str) -> str:
    return path.strip("/").partition(".git")[0]


class _Handler(LoopbackHandler):
    """One connection of a client."""

    service: GitHost

    def _handle(self) -> None:
        host = self.service
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        body, encoding = self._unpack_body()
        service = path.rpartition("/")[2]
        if service == "refs":
            service = parse_qs(parts.query).get("service", [""])[0]
        token = self._token()
        request = Request(self.command, path, service, _wanted(service, body), encoding, token is not None)
        with host._lock:
            host.requests.append(request)
        host._closing.wait(host.latency)
        kind = host._take_fault(str(request))
        if kind == "silent":
            host._closing.wait(host.silence)
        if kind == "cut" or host._closing.is_set():
            self.hang_up()
            return
        if kind == "rate limit":
            answer = _text_answer(403, "You have exceeded a secondary rate limit. Please wait a few minutes.")
        elif kind in ("403", "429", "500", "502", "503"):
            answer = html_answer(int(kind))
        else:
            answer = self._answer(request, token, parts.query, body)
        if kind == "late":
            host._closing.wait(host.silence)
        if kind == "lost answer" or host._closing.is_set():
            self.hang_up()
            return
        request.status = answer.status
        self.send(answer, cut=kind == "cut answer")

    do_GET = do_POST = _handle  # noqa: N815  the names that http.server looks for

    def _answer(self, request: Request, token: str | None, query: str, body: bytes) -> Answer:
        host, repository = self.service, _repository_of(request.path)
        if host.moved_to:
            return Answer(301, headers={"Location": f"{host.moved_to}{self.path}"})
        if repository in host.renamed:
            there = self.path.replace(repository, host.renamed[repository], 1)
            return Answer(301, headers={"Location": f"{host.url}{there}"})
        if len(self.headers.get_all("Authorization") or ()) > 1:  # the result of two values of `http.extraHeader`
            return _text_answer(400, 'Duplicate header: "Authorization"')
        account = host._admit(request, token, repository)
        if isinstance(account, Answer):
            return account
        request.authorised = True
        headers = {"CONTENT_TYPE": self.headers.get("Content-Type") or ""}
        if protocol := self.headers.get("Git-Protocol"):
            headers |= {"GIT_PROTOCOL": protocol, "HTTP_GIT_PROTOCOL": protocol}
        return host._serve(request, query, account, body, headers)

    def _token(self) -> str | None:
        """Return the token of the request, which is the password of any user."""
        scheme, _, given = (self.headers.get("Authorization") or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        with contextlib.suppress(binascii.Error, UnicodeDecodeError):
            return base64.b64decode(given).decode().partition(":")[2]
        return ""

    def _unpack_body(self) -> tuple[bytes, str]:
        """Return the decoded body of the request, and its encodings."""
        encodings = []
        if (self.headers.get("Transfer-Encoding") or "").lower() == "chunked":
            encodings.append("chunked")
            body = b"".join(self._read_chunks())
        else:
            body = self.read_body()
        if self.headers.get("Content-Encoding") in ("gzip", "x-gzip"):
            encodings.append("gzip")
            with contextlib.suppress(OSError, EOFError, zlib.error):
                body = gzip.decompress(body)
        return body, " ".join(encodings)

    def _read_chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().partition(b";")[0].strip() or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():  # optional trailers after the last chunk
            pass


# ── Git's packet lines ────────────────────────────────────────────────────────────────────────────────────────────────


def _read_packets(data: bytes) -> Iterator[bytes | None]:
    """Yield the packets at the beginning of `data`, up to the first bytes that are not a packet; None is a flush."""
    while re.match(rb"[0-9a-fA-F]{4}", data[:4]):
        size = int(data[:4], 16)
        if size < 4:  # a flush, or a delimiter of protocol 2
            yield None
            data = data[4:]
        else:
            yield data[4:size]
            data = data[size:]


def _packet(content: bytes) -> bytes:
    return b"%04x%s" % (len(content) + 4, content)


def _wanted(service: str, body: bytes) -> str:
    """Return the command or the refs of a request's body, without reading the pack of a push."""
    found = []
    for packet in _read_packets(body):
        if service == "git-receive-pack":
            if packet is None:
                break
            words = packet.partition(b"\0")[0].split()
            found += [words[2].decode()] if len(words) == 3 else []
        elif packet is not None and packet.startswith(b"command="):
            return packet.strip().partition(b"=")[2].decode()
    return " ".join(found)


def _reword(body: bytes, reasons: Mapping[str, str]) -> bytes:
    """Insert the reasons into the report of a push: side band 1 has a line `ng <ref> <why>` for each refused ref."""
    report, other = b"", b""
    for packet in _read_packets(body):
        if packet is not None and packet[:1] == b"\x01":
            report += packet[1:]
        elif packet is not None:
            # the hook's output stays first; a host does not reveal that a hook has refused
            other += _packet(re.sub(rb"error: hook declined to update [^\n]*\n", b"", packet))
    lines = b""
    for line in _read_packets(report):
        words: list[Any] = (line or b"").decode().split(" ", 2)
        if line is None:
            lines += b"0000"
        elif words[0] == "ng" and words[1] in reasons:
            lines += _packet(f"ng {words[1]} {reasons[words[1]]}\n".encode())
        else:
            lines += _packet(line)
    return other + _packet(b"\x01" + lines) + b"0000"
