"""Explain the refusals of Git hosts: the one table of what GitHub, GitLab, Gitea, Forgejo and Bitbucket say.

Guarantees: rows match whole phrases of the host's or Git's own text, never a number or a name in it. What passes by
itself is not blamed on the token. Cannot: explain a refusal without a text (a bare 403), or the words of a hook that
the owner of a host has written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from lib.errors import CommandError
from lib.remotes.answers import Answer

LASTS, BRIEFLY, LONG = 0.0, 15.0, 60.0
"""The longest pause for what stays, for a cut connection or a held lock, and for a host that limits requests."""

_RULES = (
    "allow new branches named kaggle-* in the host's branch rules, and the refs refs/runs/*, refs/asks/*, "
    "refs/stops/*, refs/pushes/* and refs/kaggle/*."
)
_WRITE = (
    "give GITHUB_TOKEN write permission for this repository (scope `repo`; fine-grained: Contents, write), and its "
    "user the right to push."
)
_NEW_TOKEN = (
    "check that GITHUB_TOKEN in secrets.json is right and not expired, and has the `repo` scope: make a new one "  # noqa: S105  no password
    "if not."
)
_LIMITED = (
    "start fewer sessions at a time, and run the same again in some minutes; it was repeated for up to three minutes."
)


class _Row(NamedTuple):
    phrases: str
    what: str
    remedy: str
    patience: float | None = LASTS
    """None: it is not known whether it passes by itself."""
    is_account: bool = False


_ROWS: Iterable[_Row] = (
    # ── what passes by itself ──
    _Row(
        r"rate limit (exceeded|for this resource)|exceeded an? (API |secondary )?rate limit|Too many requests|"
        r"HTTP 429\b|error: 429\b|\bRetry later",
        "the Git host limits requests",
        _LIMITED,
        patience=LONG,
    ),
    _Row(
        r"Unable to determine if workflow can be created or updated",
        "the Git host did not finish its own check of workflow files in time",
        "run the same again in some minutes; the token is not the cause. It was repeated for up to three minutes.",
        patience=LONG,
    ),
    _Row(
        r"HTTP 5\d\d\b|error: 5\d\d\b|\(?Internal Server Error|Service Unavailable|Bad Gateway|maintenance mode|"
        r"undergoing maintenance|temporarily (read-only|unavailable)|is not responding|Internal API unreachable|"
        r"API is not accessible|Push operation timed out",
        "the Git host is failing or in maintenance",
        "run the same again when the host's status page shows no trouble; it was repeated for up to three minutes.",
        patience=LONG,
    ),
    # ── the token, and what an organization demands of it ──
    _Row(
        r"SAML (SSO|enforcement)",
        "the organization requires single sign-on for GITHUB_TOKEN",
        "authorize the token: GitHub → Settings → Developer settings → Personal access tokens → Configure SSO.",
        is_account=True,
    ),
    _Row(
        r"forbids access via .{0,120}lifetime",
        "the organization limits the lifetime of tokens, and GITHUB_TOKEN lives longer",
        "regenerate the token with an earlier end: GitHub → Settings → Developer settings → Personal access tokens.",
        is_account=True,
    ),
    _Row(
        r"forbids access via ",
        "the organization does not accept this kind of token",
        "make a token of the other kind (fine-grained, or classic with the scope `repo`) and put it into secrets.json.",
        is_account=True,
    ),
    _Row(
        r"IP allow ?list|your IP address .{0,60}not (permitted|allowed)|IP (address )?is not (whitelisted|allowed)",
        "the organization accepts only listed IP addresses, and this machine's is not among them",
        "publish to a repository of another owner, or ask the organization to exempt this one: the addresses of Kaggle "
        "change with each session, and another token does not help.",
    ),
    _Row(
        r"account (is|has been) suspended|account .{0,80}has exceeded its user limit",
        "the account of GITHUB_TOKEN, or the repository's owner, is suspended or over its limit",
        "sign in on the host's site and follow its notice, or use a token of another account.",
    ),
    # ── the repository ──
    _Row(
        r"archived so it is read-only|(repo|repository|project) (is|has been|was) archived",
        "the repository is archived",
        "unarchive it in the host's settings of the repository, or publish to another one.",
    ),
    _Row(
        r"repository has been disabled|Repository .{0,120} is disabled",
        "the repository is disabled",
        "ask its owner to follow the host's notice, or publish to another repository.",
    ),
    _Row(
        r"read-only GitLab instance",
        "this GitLab is a read-only copy",
        "`git remote set-url origin` with the address of the primary GitLab, then render again.",
    ),
    _Row(
        r"unable to update url base from redirection",
        "the repository has moved to another host",
        "`git remote set-url origin` with the new address, then render again.",
    ),
    # ── what the push holds ──
    _Row(
        r"refusing to allow .{0,80} to (create or )?update workflow|without `?workflows?`? (scope|permission)",
        "the branch holds workflow files, and the token may not write these",
        "give GITHUB_TOKEN the `workflow` scope (fine-grained: Workflows, write).",
    ),
    _Row(
        r"GITHUB PUSH PROTECTION|Push cannot contain secrets|GH009|PUSH BLOCKED: Secrets detected",
        "the host has found a secret in the push",
        "open the file that the host names; remove the secret there and revoke it at its service, or, if it is none, "
        "allow it at the address that the host names.",
    ),
    _Row(
        r"GH008|unknown Git LFS object|LFS objects are missing",
        "a commit below the run's names Git LFS objects that the host does not have",
        "run `git lfs push --all origin` in a clone that has them.",
    ),
    _Row(
        r"GH001|exceeds GitHub's file size limit|larger than the allowed size|"
        r"exceed(s|ing) the (maximum )?(file )?size limit",
        "a file of the push is larger than the host allows",
        "raise the host's limit for this repository, or make the file that it names smaller; only weights, and files "
        "over 50 MiB, go to the DVC remote.",
    ),
    _Row(
        r"pack exceeds maximum allowed size|HTTP 413\b|error: 413\b|Request Entity Too Large",
        "the push is larger than the host, or a proxy before it, allows",
        "raise the limit there (nginx: client_max_body_size).",
    ),
    _Row(
        r"Disk quota exceeded|No space left on device|over its (size limit|data quota)|quota exceeded|"
        r"exceeded (its|the) (size limit|allocated storage)|exceed .{0,60}(storage|size) (limit|quota)",
        "a disk or a quota is full",
        "make room where the message says: on the Git host, delete old branches or raise the repository's quota; on "
        "this machine, free some space.",
    ),
    _Row(
        r"commits? must (be signed|have (verified|valid) signatures)|unverified commit",
        "the host accepts only signed commits, and a session has no key to sign with",
        "exempt the branches kaggle-*, or the token's user, from that rule.",
    ),
    _Row(
        r"Branch name .{0,200}(does not|must) (follow|match)|Permission denied to create branch",
        "the host does not allow the branch's name",
        "allow branches named kaggle-train-* and kaggle-checkpoint-* there.",
    ),
    _Row(
        r"Commit message (does not|must|contains)|(Author|committer)('s email)? .{0,120}(does not follow|not a member)|"
        r"(You can only|cannot) push commits (that|if|for)",
        "the host has rules for messages or authors of commits",
        "exempt the branches kaggle-*, or the token's user, from these rules: a session's commits have an author and a "
        "message of their own.",
    ),
    _Row(
        r"was (prohibited|blacklisted) by the pattern|is protected from changing file|"
        r"file (path|extension)s? .{0,80}(restricted|not allowed|too long)",
        "the host does not allow the name of a file",
        "allow the file that the host names, for the branches kaggle-*.",
    ),
    # ── refs ──
    _Row(
        r"hidden ref|funny refname",
        "the host accepts only branches and tags",
        "use a Git host that accepts refs/runs/*, refs/asks/*, refs/stops/* and refs/kaggle/*, not only branches and "
        "tags.",
    ),
    _Row(
        r"\(non-fast-forward\)|denying non-fast-forward|denyNonFastForwards|cannot force-push|force[- ]push(ed)?\b|"
        r"deletion prohibited|denyDeletes|cannot delete|denying ref deletion|not allowed to delete",
        "the host does not allow what a run does with its refs",
        "allow deletions of kaggle-* branches, and forced updates of refs/runs/*, in the host's branch rules.",
    ),
    _Row(
        r"GH006|GH013|rule violations|protected branch|branch is protected|creations being restricted|TF402455|"
        r"only be modified through pull requests|Permission denied to update branch",
        "a rule of the host protects the branch or the ref",
        _RULES,
    ),
    _Row(
        r"does not support .{0,10}atomic",
        "the host does not support atomic pushes",
        "use a Git host that supports atomic pushes (GitHub, GitLab, Gitea and plain Git do).",
    ),
    # ── what the token may do ──
    _Row(
        r"Permission to .{0,200}?denied|Write access to repository not granted|not allowed to (push|upload) code|"
        r"not accessible by (personal access token|integration)|marked as read.only|denied for writing|"
        r"must have (write|admin) or (write|admin) access|insufficient_scope|GenericContribute",
        "the token or its user may not write to the repository",
        _WRITE,
    ),
    _Row(
        r"Permission denied \([a-z,-]*publickey|Host key verification failed",
        "the host refuses this machine's SSH key, or this machine does not know the host's",
        "use the repository's https address with GITHUB_TOKEN: `git remote set-url origin https://…`.",
    ),
    _Row(
        r"Authentication failed|could not read (Username|Password)|Invalid username or (token|password)|"
        r"HTTP Basic: Access denied|Bad credentials|Invalid credentials|Failed to authenticate user|"
        r"password authentication (was removed|is not supported)|HTTP 401\b|error: 401\b",
        "the host rejects the token",
        _NEW_TOKEN,
        is_account=True,
    ),
    _Row(
        r"Repository not found|repository .{0,200} (not found|does not exist)|TF401019|HTTP 404\b|error: 404\b|"
        r"could not be found or you don't have permission|does not appear to be a git repository|"
        r"not permitted to access",
        "the host shows no such repository",
        "check the repository's address, and that GITHUB_TOKEN may read it: a host reports a hidden one as missing.",
    ),
    # ── a refusal without a reason: Git does not show the text of a 403 to a push ──
    _Row(
        r"RPC failed; HTTP 403\b",
        "the Git host limits requests, or refuses the push, without a reason",
        f"{_LIMITED} If that does not help, {_WRITE}",
        patience=LONG,
    ),
    _Row(
        r"(error:|HTTP) 403\b",
        "the host refuses without a reason, for instance a limit of requests",
        f"run the same again in some minutes. If that does not help, {_WRITE}",
        patience=BRIEFLY,
    ),
    # ── the network ──
    _Row(
        r"resolve proxy|(code 407|Required) from proxy|from proxy after CONNECT|CONNECT tunnel failed|"
        r"Proxy CONNECT aborted",
        "the proxy refuses or does not answer",
        "check HTTPS_PROXY (with its user and password if it asks for them) and what the proxy allows, or unset it.",
    ),
    _Row(
        r"certificate (problem|verification failed|has expired)|unable to get local issuer|"
        r"self.signed certificate|certificate subject name",
        "this machine does not trust the host's certificate",
        "check this machine's clock and the address; name the authority of a private host with GIT_SSL_CAINFO.",
    ),
    _Row(
        r"Could not resolve host|Temporary failure in name resolution|Name or service not known",
        "the host's name cannot be looked up",
        "check the network (on Kaggle: internet is on in the notebook's settings) and the repository's address.",
        patience=BRIEFLY,
    ),
    _Row(
        r"Failed to connect|connection (was )?(refused|reset|timed out|closed|aborted)|Could(n't| not) connect|"
        r"(Recv|Send) failure|Empty reply|hung up unexpectedly|early EOF|unexpected disconnect|SSL_ERROR_SYSCALL|"
        r"gnutls_handshake|GnuTLS recv error|TLS connect error|SSL_read|HTTP/2 stream|transfer closed|"
        r"Operation (timed out|too slow)|No route to host|Network is unreachable",
        "the connection to the host broke or cannot be made",
        "check the network and the repository's address, then run the same again.",
        patience=BRIEFLY,
    ),
    # ── Git's own words, which other rows make precise ──
    _Row(
        r"cannot lock ref '[^']*': unable to (resolve reference|create)",
        "the ref is being written by another process",
        "run the same again; if that does not help, a lock file was left on the host.",
        patience=BRIEFLY,
    ),
    _Row(
        r"stale info|cannot lock ref|reference already exists",
        "another process may have moved the ref",
        "run the same again; if that does not help, the name is too long, another ref is named like a folder of this "
        "one, or a lock file was left on the host.",
        patience=None,
    ),
    _Row(
        r"hook declined",
        "a hook of the host refuses the push",
        f"read its words above; {_RULES}",
        patience=None,
    ),
)


def explain(text: str, unknown: float = LASTS) -> Answer:
    """Return what a refusal of a Git host means; addresses and ref names in its text are ignored.

    `unknown` is the patience with a refusal of which nobody knows whether it passes by itself.
    """
    bare = re.sub(r"\w+://\S+|[^\s']*kaggle-[^\s']+|refs/[^\s']+", "", text)
    line = re.sub(r"\s*\n\s*(remote: *)?", " ", bare)  # a host wraps its sentences
    for row in _ROWS:
        if re.search(row.phrases, line, re.IGNORECASE):
            patience = unknown if row.patience is None else row.patience
            return Answer(row.what, row.remedy, patience, is_account=row.is_account)
    return Answer("", "read the host's answer above, fix its cause and run the same again.", unknown)


def explain_error(error: Exception) -> Answer:
    """Return what the error of a command that reads from a Git host means."""
    return explain(error.what) if isinstance(error, CommandError) else Answer("", "")


def because(answer: Answer) -> str:
    """Return the cause in parentheses, to follow what failed; empty if it is unknown."""
    return f" ({answer.what})" if answer.what else ""
