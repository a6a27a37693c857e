"""The main part of a script that torchrun starts on every rank: `cases` by name, each given the folder."""

import os
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def main(cases: Mapping, seconds: float) -> None:
    """Run the cases that the command line names after the folder; a collective waits for so many seconds."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=seconds))
    torch.manual_seed(dist.get_rank())
    for case in sys.argv[2:]:
        cases[case](Path(sys.argv[1]))
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # gloo's threads now and then abort an interpreter that ends by itself
