"""examples/: scripts for clusters, run with stand-ins for the cluster's own commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from saga_fast.checkpoint import read_checkpoint
from saga_fast.config_file import load_config
from saga_fast.configs import shipped_config
from saga_fast.runtime.metrics import read_metrics

REPOSITORY = Path(__file__).parent.parent
SLURM = REPOSITORY / "examples" / "slurm.sh"
SKYPILOT = REPOSITORY / "examples" / "skypilot.yaml"

SRUN = """#!/bin/bash
# The command once per machine, all of them this one; hands SIGTERM on, and ends when all have ended.
for _ in $(seq "$SLURM_JOB_NUM_NODES"); do "$@" & commands+=($!); done
trap 'kill -TERM "${commands[@]}"' TERM
code=0
for command in "${commands[@]}"; do
    wait "$command" || code=$?
    while kill -0 "$command" 2>/dev/null; do wait "$command" || code=$?; done  # the trap interrupts wait
done
exit "$code"
"""
SCONTROL = """#!/bin/sh
if [ "$1" = show ]; then echo localhost; else echo "$*" >> "$SCONTROL_LOG"; fi
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Job:
    """examples/slurm.sh as the batch script of a job, with one process per machine."""

    def __init__(self, folder: Path, config: Path, *overrides: str) -> None:
        self.folder, self.out = folder, folder / "out"
        self.arguments = [str(config), str(self.out), *overrides]
        program(folder / "bin" / "srun", SRUN)
        program(folder / "bin" / "scontrol", SCONTROL)
        self.environment = os.environ | {
            "SLURM_JOB_NODELIST": "machine[1-2]",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_CPUS_PER_TASK": "1",
            "SLURM_GPUS_ON_NODE": "1",
            "SCONTROL_LOG": str(folder / "scontrol.log"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def start(self, *, machines: int) -> subprocess.Popen[bytes]:
        command = ["bash", str(SLURM), *self.arguments]
        environment = self.environment | {"SLURM_JOB_NUM_NODES": str(machines)}
        with (self.folder / "slurm.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    @property
    def log(self) -> str:
        return (self.folder / "slurm.log").read_text()

    @property
    def requeued(self) -> list[str]:
        """What scontrol was told, other than to show host names."""
        log = self.folder / "scontrol.log"
        return log.read_text().splitlines() if log.exists() else []


def test_slurm_job_is_requeued_at_its_time_limit_and_resumes(tiny_yaml: Path, tmp_path: Path) -> None:
    """On two machines to the time limit, on one to the end."""
    job = Job(tmp_path, tiny_yaml, "evaluate=null", "saga.epochs=12", "attention.period=6")
    script = job.start(machines=2)
    try:
        while script.poll() is None and not any(row["epoch"] >= 2 for row in read_metrics(job.out)):
            time.sleep(0.05)
        script.send_signal(signal.SIGUSR1)  # to the shell alone, because of --signal=B:
        assert script.wait(60.0) != 0, job.log
        assert "go on with --resume" in job.log
        assert 2 <= read_checkpoint(job.out / "last.pt")["epoch"] < 13
        assert job.requeued == [f"requeue {job.environment['SLURM_JOB_ID']}"]

        script = job.start(machines=1)
        assert script.wait(120.0) == 0, job.log
    finally:
        if script.poll() is None:
            os.killpg(script.pid, signal.SIGKILL)
    assert read_checkpoint(job.out / "last.pt")["epoch"] == 13
    epochs = [row["epoch"] for row in read_metrics(job.out) if row["kind"] == "epoch"]
    assert epochs == list(range(1, 14)), "each epoch once, so the second job resumed"
    assert len(job.requeued) == 1
    assert load_config(job.out / "config.yaml").data.threads == 1


def test_slurm_job_that_fails_is_not_requeued(tiny_yaml: Path, tmp_path: Path) -> None:
    job = Job(tmp_path, tiny_yaml)
    program(tmp_path / "bin" / "torchrun", "#!/bin/sh\nexit 7\n")
    assert job.start(machines=1).wait(60.0) == 7
    assert job.requeued == []


def test_skypilot_command(tmp_path: Path) -> None:
    """The run section, with a torchrun that prints its arguments, on the second of two machines of eight GPUs."""
    task = yaml.safe_load(SKYPILOT.read_text(encoding="utf-8"))
    program(tmp_path / "saga-fast" / "bin" / "torchrun", '#!/bin/sh\nprintf "%s\\n" "$@"\n')
    environment = {
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "CONFIG": task["envs"]["CONFIG"],
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
    }
    command = ["bash", "-euo", "pipefail", "-c", task["run"]]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    torchrun, arguments = (part.split() for part in ran.stdout.split("-m\nsaga_fast\n"))
    places = ["--nnodes=2", "--nproc-per-node=8", "--node-rank=1", "--master-addr=10.0.0.1", "--master-port=29500"]
    assert torchrun == places
    assert arguments[0] == "train" and "--resume" in arguments
    config = load_config(shipped_config(task["envs"]["CONFIG"]), arguments[arguments.index("--set") + 1 :])
    for path in (config.data.train, str(config.data.val), arguments[arguments.index("--out") + 1]):
        assert any(path.startswith(f"{mount}/") for mount in task["file_mounts"])


def test_skypilot_setup_installs_this_checkout() -> None:
    task = yaml.safe_load(SKYPILOT.read_text(encoding="utf-8"))
    assert task["workdir"] == "." and (REPOSITORY / "pyproject.toml").is_file()
    assert task["resources"]["use_spot"] is True
    assert subprocess.run(["bash", "-n", "-c", task["setup"]]).returncode == 0
    assert task["setup"].split()[-3:] == ["~/saga-fast/bin/pip", "install", "."]
