"""`python -m lib check` on remotes with 1,000 branches and 5,000 objects, against 100 branches and 500 objects.

The emulated Google Drive lists files in pages of 1,000: the number of requests must grow with the pages, not with the
objects. Our side is the large remote, the other side is the small one.

    uv run python benchmarks/check.py [--turns 3] [--small 100] [--large 1000] [--objects 5]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("", "tests", "tests/emulators", "tests/sync")]

import drive_emulator
from drive_emulator import DriveEmulator
from many import clone, make_origin, publish_many
from measure import Case, report, seconds_of


def measure(folder: Path, branches: int, objects: int, turns: int) -> tuple[list[float], list[float]]:
    """Return seconds and requests of each check; each is a whole process in a new clone."""
    seconds, requests = [], []
    with DriveEmulator() as drive:
        origin = make_origin(folder, f"gdrive://{drive.root_id}")
        publish_many(origin, range(branches), drive.put, objects)
        path = [str(drive_emulator.write_sitecustomize(folder / "site", drive)), str(HERE.parent)]
        for turn in range(turns):
            here = clone(origin, folder / f"clone-{turn}")
            drive_emulator.configure_clone(here, drive, folder / "credentials")
            before = len(drive.requests)
            command = [sys.executable, "-m", "lib", "check"]
            seconds.append(seconds_of(command, cwd=here, env={"PYTHONPATH": ":".join(path)}))
            requests.append(float(len(drive.requests) - before))
            print(
                f"  {branches} branches, {branches * objects} objects: {seconds[-1]:.1f} s, {requests[-1]:.0f} requests"
            )
    return seconds, requests


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--small", type=int, default=100)
    parser.add_argument("--large", type=int, default=1000)
    parser.add_argument("--objects", type=int, default=5, help="per branch")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        small = measure(Path(name) / "small", args.small, args.objects, args.turns)
        large = measure(Path(name) / "large", args.large, args.objects, args.turns)
    # at most one more page for each of the 256 folders of objects
    pages = 1 + 256 / small[1][0]
    cases = [
        Case("requests", large[1], small[1], pages, "requests"),
        Case("seconds", large[0], small[0], args.large / args.small),
    ]
    report("check", cases, f"What does a check of {args.large} branches cost, against {args.small}?")


if __name__ == "__main__":
    main()
