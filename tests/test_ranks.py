"""Several processes of torch.distributed: the same answers as one, and clear errors where they cannot be given."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("ranks_worker.py")


def launch(folder: Path, *cases: str, ranks: int = 2, restarts: int = 0) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command += [f"--max-restarts={restarts}", str(WORKER), str(folder), *cases]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # or gloo finds the addresses of those that were restarted
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-6000:]


def test_two_ranks_give_what_one_process_gives(tmp_path):
    launch(tmp_path, "same", "solve", "changed")


@pytest.mark.slow
def test_four_ranks_give_what_one_process_gives(tmp_path):
    launch(tmp_path, "same", "solve", ranks=4)


def test_what_cannot_work_is_an_error_on_every_rank(tmp_path):
    launch(tmp_path, "disagree", "broken_source", "broken_file", "unreachable")


def test_a_killed_rank_is_restarted_and_the_solve_continues(tmp_path):
    launch(tmp_path, "killed", restarts=1)
    fitted = [int((tmp_path / f"done-{rank}").read_text()) for rank in range(2)]
    assert fitted[0] == fitted[1] > 0
