"""Steps 0 and 1: the right GPU or a message, the exact commit, a token that stays in git's environment, and run.log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from bootstrap import Bootstrap
from conftest import ROOT, Stores, run_git
from git_host_emulator import GitHost, Kind
from test_git_host import NAME, TOKEN, WRONG, places_of

from lib.kaggle.notebook import bake, read_notebook, read_sources
from lib.process import KEPT
from lib.remotes.clone import configure_git
from lib.remotes.credentials import Credentials, load_credentials


@pytest.fixture(autouse=True)
def _folder_and_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in its own folder; `clone` and `open_log` change folder, import path and environment: restore."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        monkeypatch.setenv(name, os.environ[name])
    monkeypatch.setattr(sys, "path", [*sys.path])


def boot(folder: Path, *, on_kaggle: bool = False) -> Bootstrap:
    """Return the start of a run that works in `folder`, with what Kaggle mounts if it is on Kaggle."""
    if on_kaggle:
        (folder / "kaggle/working").mkdir(parents=True)
    return Bootstrap("detection", folder / "working", "build/sandbox", kaggle=folder / "kaggle")


# ── 0: verify the GPU ─────────────────────────────────────────────────────────────────────────────────────────────────


def write_driver(folder: Path, monkeypatch: pytest.MonkeyPatch, *gpus: str) -> None:
    """Put a program on the PATH that answers as nvidia-smi does."""
    program = folder / "nvidia-smi"
    rows = "".join(f"{name}\\n" for name in gpus)
    program.write_text(f'#!/bin/sh\ntest "$*" = "--query-gpu=name --format=csv,noheader" && printf "{rows}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder), os.environ["PATH"]]))


@pytest.mark.parametrize(
    ("accelerator", "gpus", "warns"),
    [
        ("t4x2", ["Tesla T4", "Tesla T4"], False),
        ("t4x2", ["Tesla P100-PCIE-16GB"], True),
        ("t4x2", ["Tesla T4"], True),
        ("p100", ["Tesla P100-PCIE-16GB"], False),
        ("none", ["Tesla T4"], False),
        ("none", [], False),
    ],
)
def test_another_gpu_than_the_rendered_one_is_a_warning(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    accelerator: str,
    gpus: list[str],
    warns: bool,
) -> None:
    """On Kaggle each GPU's name is printed, and a warning if they are fewer or others; elsewhere there is none."""
    write_driver(tmp_path, monkeypatch, *gpus)
    boot(tmp_path, on_kaggle=True).verify_gpu(accelerator)
    shown = capsys.readouterr().out
    assert f"GPUs: {', '.join(gpus) or 'none'}\n" in shown
    assert (f"Warning: rendered for {accelerator}; training takes what is here.\n" in shown) == warns
    assert (tmp_path / "working/run.log").read_text() == shown
    Bootstrap("detection", tmp_path, "", kaggle=tmp_path / "none").verify_gpu(accelerator)
    assert "Warning" not in capsys.readouterr().out


def test_a_missing_gpu_stops_the_run_on_kaggle_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forgotten setting costs a second and not a night; run.log has the remedy too."""
    write_driver(tmp_path, monkeypatch)
    with pytest.raises(SystemExit, match="Rendered for p100, and there is no GPU") as stopped:
        boot(tmp_path, on_kaggle=True).verify_gpu("p100")
    assert "What to do: choose GPU T4 x2" in str(stopped.value)
    assert str(stopped.value) in (tmp_path / "working/run.log").read_text()
    Bootstrap("detection", tmp_path, "", kaggle=tmp_path / "none").verify_gpu("p100")


def test_an_unknown_accelerator_stops_the_run(tmp_path: Path) -> None:
    """The message lists the known ones."""
    with pytest.raises(SystemExit, match="accelerator is 'tpu'; it may be t4x2, p100, none"):
        boot(tmp_path).verify_gpu("tpu")


@pytest.mark.parametrize("name", ["Bob's runs", "100%25", "what?"])
def test_a_folder_in_which_ultralytics_finds_no_weights_is_refused(tmp_path: Path, name: str) -> None:
    """It would fail after the last epoch, when the best weights are evaluated."""
    with pytest.raises(SystemExit, match="ultralytics finds no weights there"):
        boot(tmp_path / name)
    boot(tmp_path / 'é 100% "$x" [1], #2')


def test_a_log_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    """The line is shown, with the file and the cause."""
    (tmp_path / "working/run.log").mkdir(parents=True)
    with pytest.raises(
        SystemExit, match=r"^hello\n.*/run\.log cannot be written: Is a directory\.\nWhat to do: free some"
    ):
        boot(tmp_path).say("hello")


# ── 1: the sandbox, where no repository is given ──────────────────────────────────────────────────────────────────────


def test_without_a_repository_and_a_checkout_the_run_stops(tmp_path: Path) -> None:
    """The same on Kaggle, whose folders lie in no checkout of the user."""
    for on_kaggle in (False, True):
        if on_kaggle:
            (tmp_path / "render.py").touch()
        with pytest.raises(SystemExit, match="No repository is given") as stopped:
            boot(tmp_path, on_kaggle=on_kaggle).make_sandbox()
        assert "What to do: make this notebook with render.py" in str(stopped.value)


def test_the_error_of_a_sandbox_that_cannot_be_made_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout is found from a folder inside it, and what its command says is in the message and in run.log."""
    (tmp_path / "render.py").touch()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/__main__.py").write_text('import sys\nsys.exit(f"Error: {sys.argv[1:]}")\n')
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(SystemExit) as stopped:
        boot(tmp_path).make_sandbox()
    sandbox = str(tmp_path / "build/sandbox")
    assert f"Error: {['sandbox', 'detection', '--folder', sandbox, '--json']}" in str(stopped.value)
    assert "Error: " in (tmp_path / "working/run.log").read_text()


# ── 1: the clone ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Session:
    """A machine that clones a private repository from a host that asks for a token."""

    host: GitHost
    stores: Stores
    monkeypatch: pytest.MonkeyPatch

    @property
    def folder(self) -> Path:
        """The only folder that the machine writes to."""
        return self.stores.folder / "session"

    @property
    def clone(self) -> Path:
        """The folder of the clone."""
        return self.folder / "working/name"

    def run(self, commit: str, token: str | None = TOKEN, git: str = "") -> Bootstrap:
        """Clone the commit; `git` is the machine's own configuration of git."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "secrets.json").write_text(json.dumps({"GITHUB_TOKEN": token} if token else {}))
        (self.folder / "gitconfig").write_text(git)
        self.monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(self.folder / "gitconfig"))
        self.monkeypatch.chdir(self.folder)
        start = boot(self.folder)
        start.progress_seconds, start.pauses = 0, (0.01, 0.01)
        root, cloned = start.clone(self.host.address(NAME), commit, str(self.folder / "secrets.json"))
        assert root == self.clone == Path.cwd() == Path(sys.path[0])
        assert cloned == run_git("rev-parse", "HEAD", cwd=root)
        return start


@pytest.fixture
def session(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """Serve a repository of three commits."""
    for number in (2, 3):
        run_git("commit", "--quiet", "--allow-empty", f"--message={number}", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    with GitHost(stores.folder / "hosted") as host:
        host.add_repository(NAME, stores.origin)
        host.add_token(TOKEN)
        yield Session(host, stores, monkeypatch)


def test_the_exact_commit_is_cloned_shallow_and_the_token_is_left_nowhere(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of three commits is cloned alone; only `secrets.json` and git's environment contain the token."""
    commit = run_git("rev-parse", "HEAD~1", cwd=session.stores.clone)
    session.run(commit)
    assert run_git("rev-parse", "HEAD", cwd=session.clone) == commit
    assert run_git("rev-list", "--count", "HEAD", cwd=session.clone) == "1"
    assert places_of(TOKEN, session.clone.parent) == []
    assert TOKEN not in "".join(capsys.readouterr())
    assert TOKEN not in os.environ.values()


def test_run_log_has_every_line_from_the_first_one_on(
    session: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, git's progress and the clone's commit, each once; after `open_log` lines are redacted."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    start = session.run("")
    start.step("1/10: Clone")
    _, log = start.open_log(str(session.folder / "secrets.json"))
    try:
        start.step("2/10: Install")
        print(f"with {TOKEN}")
    finally:
        log.close()
    shown = capsys.readouterr().out
    assert log.path.read_text() == shown
    assert ", done." in shown  # of git's progress
    assert f"{session.host.address(NAME)} at {run_git('rev-parse', 'HEAD', cwd=session.clone)} is in " in shown
    assert [shown.count(title) for title in ("[00:00:0", "1/10: Clone\n", "2/10: Install\n", "with ***\n")] == [
        2,
        1,
        1,
        1,
    ]
    assert [title for title, _ in start.steps] == ["1/10: Clone", "2/10: Install"]


def test_a_clone_of_the_same_session_is_used_again(session: Session) -> None:
    """Its files are kept, unpublished artifacts above all; only what is new is fetched."""
    first = run_git("rev-parse", "HEAD~1", cwd=session.stores.clone)
    session.run(first)
    model = session.clone / "artifacts/detection/exp/train/weights/best.pt"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"unpublished")
    born = (session.clone / "code.py").stat().st_ino
    for commit in (first, run_git("rev-parse", "HEAD", cwd=session.stores.clone)):
        session.run(commit)
        assert run_git("rev-parse", "HEAD", cwd=session.clone) == commit
    assert model.read_bytes() == b"unpublished"
    assert (session.clone / "code.py").stat().st_ino == born
    assert run_git("remote", cwd=session.clone) == "origin"


def test_a_host_that_gives_no_single_commits_is_cloned_whole(session: Session) -> None:
    """An older git protocol, and a host that refuses to serve a commit that no branch ends in."""
    run_git("config", "uploadpack.allowAnySHA1InWant", "false", cwd=session.stores.origin)
    commit = run_git("rev-parse", "HEAD~1", cwd=session.stores.clone)
    session.run(commit, git="[protocol]\n\tversion = 0\n")
    assert run_git("rev-parse", "HEAD", cwd=session.clone) == commit
    assert run_git("rev-list", "--count", "origin/main", cwd=session.clone) == "3"


@pytest.mark.parametrize("kind", ["rate limit", "429", "503"])
def test_a_host_that_limits_requests_is_asked_again(session: Session, kind: Kind) -> None:
    """Sessions of a sweep clone at the same moment."""
    session.host.add_fault("git-upload-pack", kind, 2)
    session.run("")
    assert "asking again" in (session.folder / "working/run.log").read_text()


def test_a_public_repository_needs_no_token(session: Session) -> None:
    """Cloning works without one; publishing is checked by a later step."""
    session.host.public.add(NAME)
    session.run("", token=None)
    assert run_git("rev-parse", "HEAD", cwd=session.clone) == run_git("rev-parse", "HEAD", cwd=session.stores.clone)


@pytest.mark.parametrize("mount", ["input/secrets", "input/datasets/somebody/secrets"])
def test_the_token_is_found_in_both_mounts_of_a_kaggle_dataset(session: Session, tmp_path: Path, mount: str) -> None:
    """No parameter names the file."""
    start = boot(tmp_path, on_kaggle=True)
    (tmp_path / "kaggle" / mount).mkdir(parents=True)
    (tmp_path / "kaggle" / mount / "secrets.json").write_text(json.dumps({"GITHUB_TOKEN": TOKEN}))
    root, _ = start.clone(session.host.address(NAME), "", "")
    assert (root / "code.py").is_file()


def test_the_machines_own_credential_helpers_neither_answer_nor_hear_the_token(session: Session) -> None:
    """A helper that stores every password it hears of stays empty."""
    kept = session.stores.folder / "kept"
    session.run("", git=f"[credential]\n\thelper = store --file={kept}\n")
    assert not kept.exists()


@pytest.mark.parametrize("token", [None, WRONG])
def test_a_repository_that_cannot_be_cloned_stops_the_run_with_the_remedy(
    session: Session, capsys: pytest.CaptureFixture[str], token: str | None
) -> None:
    """A private one without a right token, in the session's first second."""
    with pytest.raises(SystemExit) as stopped:
        session.run("", token=token)
    message = str(stopped.value)
    assert stopped.value.code == message  # Python prints it and exits with 1
    assert f"{session.host.address(NAME)} at its newest commit cannot be cloned" in message
    assert "GITHUB_TOKEN in secrets.json" in message
    assert message in (session.folder / "working/run.log").read_text()
    assert WRONG not in message + "".join(capsys.readouterr())


def test_a_commit_that_is_not_on_the_host_stops_the_run(session: Session) -> None:
    """It was rendered from a commit that was never pushed, or that is gone."""
    with pytest.raises(SystemExit, match="cannot be cloned") as stopped:
        session.run("0123456789" * 4)
    assert "that the commit is pushed" in str(stopped.value)


def test_secrets_may_be_named_from_the_folder_of_the_notebook(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The clone becomes the current folder before they are loaded; a token that is no text is refused by name then."""
    (tmp_path / "secrets.json").write_text(json.dumps({"GITHUB_TOKEN": {"token": TOKEN}}))
    monkeypatch.chdir(tmp_path)
    start = boot(tmp_path)
    start.clone(str(session.stores.origin), "", "secrets.json")
    with pytest.raises(SystemExit, match="GITHUB_TOKEN") as stopped:
        start.open_log("secrets.json")
    assert TOKEN not in str(stopped.value)


@pytest.mark.parametrize("text", [f'{{"GITHUB_TOKEN": "{TOKEN}"', f'["{TOKEN}"]'])
def test_secrets_that_are_no_json_object_stop_the_run_and_are_not_shown(tmp_path: Path, text: str) -> None:
    """The message names the file and the kind of problem; so does the check of every account in `open_log`."""
    (tmp_path / "secrets.json").write_text(text)
    start = boot(tmp_path)
    for stopping in (
        lambda: start.clone("https://127.0.0.1/somebody/name.git", "", str(tmp_path / "secrets.json")),
        lambda: start.open_log(str(tmp_path / "secrets.json")),
    ):
        with pytest.raises(SystemExit, match=r"secrets\.json") as stopped:
            stopping()
        assert TOKEN not in str(stopped.value)
        assert str(stopped.value) in (tmp_path / "working/run.log").read_text()


@pytest.mark.parametrize("text", ["main", "trunk"])
def test_a_head_that_names_a_branch_which_is_not_there_is_no_hindrance(
    session: Session, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    """A commit is cloned as ever; without one, `main` or the only branch is taken, and printed."""
    run_git("branch", "--move", "main", text, cwd=session.stores.origin)
    run_git("symbolic-ref", "HEAD", "refs/heads/nowhere", cwd=session.stores.origin)
    newest = run_git("rev-parse", "HEAD", cwd=session.stores.clone)
    if text == "main":
        run_git("branch", "another", f"{newest}~1", cwd=session.stores.origin)
    session.run(newest)
    session.run("")
    assert run_git("rev-parse", "HEAD", cwd=session.clone) == newest
    assert f"The repository's HEAD names no branch; taking {text}." in capsys.readouterr().out
    credentials = Credentials(github_token=TOKEN)
    assert "with GITHUB_TOKEN" in configure_git(session.clone, credentials)


def test_a_repository_with_sha256_names_is_one_clear_error(tmp_path: Path) -> None:
    """The remedy is another repository, and not a token or the network."""
    run_git("init", "--quiet", "--object-format=sha256", "origin", cwd=tmp_path)
    run_git("commit", "--quiet", "--allow-empty", "--message=1", cwd=tmp_path / "origin")
    with pytest.raises(SystemExit) as stopped:
        boot(tmp_path).clone(str(tmp_path / "origin"), "", "")
    assert str(stopped.value).endswith("What to do: use a repository with SHA-1 object names: DVC cannot open another.")


@pytest.mark.parametrize("login", ["ghp_1", "me:ghp_1", "me:g/ghp_1"])
def test_an_address_with_a_token_stops_the_run_without_showing_it(tmp_path: Path, login: str) -> None:
    """It would be left in .git/config below the working folder, which Kaggle publishes with the run's output."""
    with pytest.raises(SystemExit, match=r"belongs in secrets\.json") as stopped:
        boot(tmp_path).clone(f"https://{login}@example.com/me/name.git", "", "")
    assert "ghp_1" not in str(stopped.value) + (tmp_path / "working/run.log").read_text()


def test_the_settings_of_the_machine_reach_git_beside_the_token(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings given by GIT_CONFIG_COUNT hold; a repository that a hook or shell names is not touched."""
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    address = session.host.address(NAME)
    alias = address.replace(NAME, f"elsewhere/{NAME}")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{address}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", alias)
    monkeypatch.setenv("GIT_DIR", str(session.stores.clone / ".git"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(session.folder / "nowhere"))
    session.folder.mkdir()
    (session.folder / "secrets.json").write_text(json.dumps({"GITHUB_TOKEN": TOKEN}), encoding="utf-8-sig")
    root, commit = boot(session.folder).clone(alias, "", str(session.folder / "secrets.json"))
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.delenv("GIT_OBJECT_DIRECTORY")
    assert run_git("rev-parse", "HEAD", cwd=root) == commit == run_git("rev-parse", "HEAD", cwd=session.stores.clone)
    assert run_git("remote", "get-url", "origin", cwd=session.stores.clone) == str(session.stores.origin)


def test_what_passes_to_programs_is_decided_as_in_the_project() -> None:
    """Both lists have the same patterns of Git and Python."""
    assert list(Bootstrap.kept) == [pattern for pattern in KEPT if pattern.startswith(("GIT", "PYTHON"))]


def test_of_two_attached_secrets_one_is_used_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Step 1 and the rest of the run take the same file, with the token of no other."""
    start, log = boot(tmp_path, on_kaggle=True), None
    for mount in ("b", "a", "datasets/me/a"):
        file = tmp_path / "kaggle/input" / mount / "secrets.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"GITHUB_TOKEN": f"token-of-{mount}"}))
    run_git("init", "--quiet", "origin", cwd=tmp_path)
    run_git("commit", "--quiet", "--allow-empty", "--message=1", cwd=tmp_path / "origin")
    start.clone(str(tmp_path / "origin"), "", "")
    try:
        credentials, log = start.open_log("")
    finally:
        if log is not None:
            log.close()
    assert credentials.github_token == load_credentials(inputs=tmp_path / "kaggle/input").github_token == "token-of-a"
    inputs = tmp_path / "kaggle/input"
    said = f"Using {inputs}/a/secrets.json, not {inputs}/b/secrets.json, {inputs}/datasets/me/a/secrets.json; "
    assert said in capsys.readouterr().out


# ── in the notebook ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_cells_of_the_notebook_can_be_run_again_in_the_same_session(stores: Stores) -> None:
    """Steps 0 and 1, twice in one process: the clone is used again, and no line is in run.log or the output twice."""
    project = {f"lib/{path.name}": path for path in (ROOT / "lib").glob("*.py")}
    project |= {f"lib/remotes/{path.name}": path for path in (ROOT / "lib/remotes").glob("*.py")}
    for name, path in project.items():
        (stores.clone / name).parent.mkdir(parents=True, exist_ok=True)
        (stores.clone / name).write_bytes(path.read_bytes())
    run_git("add", "lib", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=lib", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    values = {"repository": str(stores.origin), "accelerator": "none", "working": str(stores.folder / "working")}
    notebook = bake(read_notebook(read_sources(ROOT)), values)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    (last,) = [number for number, source in enumerate(code) if 'step("1/10: ' in source]
    script = "\n".join([*code[: last + 1], *code[: last + 1], "print('The end.')"])
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], cwd=stores.folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    log = (stores.folder / "working/run.log").read_text()
    assert log == done.stdout
    counted = {text: log.count(text) for text in ("0/10: ", "GPUs: ", "1/10: ", " is in ", "The end.")}
    assert counted == {"0/10: ": 2, "GPUs: ": 2, "1/10: ": 2, " is in ": 2, "The end.": 1}
