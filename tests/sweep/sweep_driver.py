"""Drives a sweep in a process of its own, as `python -m lib sweep` does; run by test_sweep.py with a plan as JSON.

`nodes` makes a Ray cluster of so many nodes on this machine, one CPU each; 0 takes this machine as it is. `kill` is the
run whose node is killed, all of it with SIGKILL, once that run is in its training; with `stop`, a person has stopped it
just before. `clone` is where it reads the published runs. What every run has come to is written to `seen` after each
look.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.experiment.load import load_experiment
from lib.remotes.credentials import Credentials
from lib.sweep.engine import Cluster
from lib.sweep.sweep import run_sweep
from lib.sweep.worker import Job, Progress
from lib.sync import STOPS, Refs, short_name


def main(plan: dict[str, Any]) -> None:
    """Run the plan's jobs."""
    machines: Any = make_nodes(plan["nodes"]) if plan["nodes"] else None
    address = machines.address if machines else ""
    seen = Path(plan["seen"])

    def show(progress: Mapping[str, Progress]) -> None:
        part = seen.with_suffix(".part")
        part.write_text(json.dumps({name: asdict(each) for name, each in progress.items()}))
        part.replace(seen)
        doomed = progress.get(plan["kill"])
        if doomed and doomed.step.startswith("9/10"):
            if plan["stop"]:
                stop = f"HEAD:{STOPS}{short_name(jobs[plan['kill']].experiment.key)}"
                subprocess.run(["git", "push", "--quiet", "origin", stop], cwd=plan["clone"], check=True)
            plan["kill"] = None
            (node,) = [node for node in machines.worker_nodes if doomed.node.endswith(node.node_id[:4])]
            print(f"Killing {doomed.node}", flush=True)
            machines.remove_node(node, allow_graceful=False)

    jobs = {name: make_job(**job) for name, job in plan["jobs"].items()}
    with Cluster(address, gpus=0, cpus=plan["cpus"], resume=plan["resume"]) as engine:
        run_sweep(jobs, Refs(Path(plan["clone"]), Credentials()), engine, show)


def make_job(experiment: Mapping[str, Any], **others: Any) -> Job:
    """Return the job of an entry of the plan."""
    return Job(load_experiment(experiment), **others)


def make_nodes(count: int) -> Any:
    """Create a cluster of a head that runs nothing and `count` nodes."""
    from ray.cluster_utils import Cluster as Machines

    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(count):
        machines.add_node(num_cpus=1)
    return machines


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
