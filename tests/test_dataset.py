"""A dataset that training could not use is refused before anything costs time."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT, Stores, run_git
from ruamel.yaml import YAML

from lib.credentials import Credentials
from lib.dataset import check_dataset, pull_dataset
from lib.drawing import draw_dataset
from lib.errors import DatasetError
from lib.experiment import Experiment, load_experiment
from lib.remotes import configure_dvc

LOCALIZATION = load_experiment(ROOT / "experiments/000_loc_sandbox.yaml")
DETECTION = load_experiment(ROOT / "experiments/000_det_sandbox.yaml")


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Draw a small dataset of localization."""
    draw_dataset(tmp_path / "drawn", "localization", counts={"train": 2, "val": 1, "test": 1}, size=64)
    return tmp_path / "drawn"


def change(folder: Path, **values: object) -> None:
    """Change keys of data.yaml; None removes one."""
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load((folder / "data.yaml").read_text()) | values
    with (folder / "data.yaml").open("w") as file:
        yaml.dump({key: value for key, value in content.items() if value is not None}, file)


def check(folder: Path, experiment: Experiment = LOCALIZATION) -> str:
    """Give the one error that checking raises."""
    with pytest.raises(DatasetError) as caught:
        check_dataset(folder, experiment, folder.parent / "scratch", md5="0" * 32)
    return str(caught.value)


def test_training_reads_a_copy_with_absolute_paths(drawn: Path, tmp_path: Path) -> None:
    """The tracked data.yaml stays as it is; ultralytics would look for `path: .` in the working folder."""
    before = (drawn / "data.yaml").read_bytes()
    dataset = check_dataset(drawn, LOCALIZATION, tmp_path / "scratch", md5="0" * 32)
    assert (drawn / "data.yaml").read_bytes() == before
    read = YAML(typ="safe", pure=True).load(dataset.data_file.read_text())
    assert read["path"] == str(drawn)
    assert read["kpt_shape"] == [4, 3]
    assert dataset.counts == {"train": 2, "val": 1, "test": 1}
    assert dataset.names == {0: "container_id"}


def test_a_missing_data_yaml_is_told_in_the_words_of_the_requirements(tmp_path: Path) -> None:
    """`data.yaml not found`."""
    assert "data.yaml not found" in check(tmp_path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"names": None}, "names is missing"),
        ({"test": None}, "test is None"),
        ({"val": "images/nowhere"}, "val is 'images/nowhere': there is no picture in it"),
        ({"kpt_shape": [5, 3]}, "kpt_shape is [5, 3]: localization needs [4, 3]"),
        ({"kpt_shape": None}, "kpt_shape is None"),
        ({"flip_idx": [0, 1, 2]}, "flip_idx is [0, 1, 2]"),
    ],
)
def test_what_training_would_stumble_over_is_named(drawn: Path, values: dict[str, object], said: str) -> None:
    """Key, value and what is needed."""
    change(drawn, **values)
    assert said in check(drawn)


def test_all_that_is_wrong_is_told_at_once(drawn: Path) -> None:
    """Not one error a session."""
    change(drawn, names=None, kpt_shape=None, test="images/nowhere")
    told = check(drawn)
    assert all(word in told for word in ("names", "kpt_shape", "images/nowhere"))


def test_a_data_yaml_that_is_none_is_refused(drawn: Path) -> None:
    """With the file's name."""
    (drawn / "data.yaml").write_text("names: [unclosed")
    assert "data.yaml: this is no YAML" in check(drawn)


def test_a_dataset_without_pointer_is_refused_with_the_remedy(stores: Stores, tmp_path: Path) -> None:
    """The commit must hold `<dataset>.dvc`."""
    with pytest.raises(DatasetError, match=r"no data/detection\.dvc") as caught:
        pull_dataset(stores.clone, DETECTION, tmp_path, Credentials())
    assert "dvc add data/detection" in caught.value.remedy


def test_pulling_brings_exactly_what_was_tracked(stores: Stores, tmp_path: Path) -> None:
    """Through the real DVC remote into another clone, with the cache outside of it."""
    from dvc.repo import Repo

    draw_dataset(stores.clone / "data/detection", "detection", counts={"train": 2, "val": 1, "test": 1}, size=64)
    with Repo(str(stores.clone)) as repo:
        repo.add([str(stores.clone / "data/detection")])
        repo.push()
    run_git("add", "--all", "data", cwd=stores.clone)
    run_git("commit", "--quiet", "--message=dataset", cwd=stores.clone)
    run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
    other, scratch = stores.clone_again(), tmp_path / "scratch"
    configure_dvc(other, scratch, Credentials())
    dataset = pull_dataset(other, DETECTION, scratch, Credentials())
    assert dataset.counts["train"] == 2
    for path in (stores.clone / "data/detection").rglob("*.*"):
        place = dataset.folder / path.relative_to(stores.clone / "data/detection")
        assert place.read_bytes() == path.read_bytes()
    assert dataset.folder.is_relative_to(scratch)
    assert not (other / "data/detection").exists()  # on Kaggle it would become part of the run's output
    assert dataset.md5 in (other / "data/detection.dvc").read_text()
    assert not (other / ".dvc/cache").exists()
    assert (scratch / "dvc-cache").is_dir()


def test_a_lost_object_is_told_with_its_remedy(stores: Stores, tmp_path: Path) -> None:
    """The pointer is there, what it points to is not."""
    pointer = (
        "outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  size: 3\n  nfiles: 1\n  hash: md5\n  path: detection\n"
    )
    (stores.clone / "data").mkdir()
    (stores.clone / "data/detection.dvc").write_text(pointer)
    with pytest.raises(DatasetError, match="dvc pull") as caught:
        pull_dataset(stores.clone, DETECTION, tmp_path, Credentials())
    assert "ensure the DVC remote is accessible" in caught.value.remedy
