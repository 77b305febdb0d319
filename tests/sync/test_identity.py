"""A repository has one identity, whatever the form of its address."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import run_git

from lib.remotes.credentials import Credentials
from lib.sync import Refs


def identity_ref(folder: Path, address: str) -> str:
    """Return the ref of the identity of the repository at `address`."""
    run_git("init", "--quiet", "--template=", cwd=folder)
    run_git("config", "remote.origin.url", address, cwd=folder)
    return Refs(folder, Credentials()).identity_ref


@pytest.mark.parametrize(
    "address",
    [
        "https://github.com/owner/name",
        "https://github.com/owner/name/",
        "https://user:token@github.com/owner/name.git",
        "git@github.com:owner/name.git",
        "ssh://git@github.com/owner/name.git",
        "ssh://git@ssh.github.com:443/owner/name.git",
        "org-12@github.com:owner/name.git",
        "https://user:p@ss@github.com/owner/name.git",
    ],
)
def test_the_forms_of_an_address_are_one_repository(tmp_path: Path, address: str) -> None:
    """`recover` on a user's machine, which has an SSH address, recovers a run of Kaggle, which has an HTTPS address."""
    assert identity_ref(tmp_path, address) == identity_ref(tmp_path, "https://github.com/owner/name.git")


@pytest.mark.parametrize(
    "address", ["https://gitlab.com/owner/name.git", "git@github.com:owner/other.git", "/owner/name"]
)
def test_other_addresses_are_other_repositories(tmp_path: Path, address: str) -> None:
    """`git push --mirror` copies every ref to them."""
    assert identity_ref(tmp_path, address) != identity_ref(tmp_path, "https://github.com/owner/name.git")
