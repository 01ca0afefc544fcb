"""What a run needs of the machine: accelerate, deterministic algorithms, peak memory."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging

if TYPE_CHECKING:
    from accelerate import Accelerator

    from .arguments import TrainingArguments

logger = logging.get_logger(__name__)


def make_accelerator(args: TrainingArguments) -> Accelerator:
    """The `Accelerator` of a run; what args leave open comes from `accelerate launch` or `accelerate config`.

    Raises:
        ValueError: if the tracker is unknown or not installed.
    """
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    if args.report_to is not None:
        available = [str(getattr(name, "value", name)) for name in get_available_trackers()]
        if args.report_to not in available:
            raise ValueError(
                f"report_to={args.report_to!r} is not installed; installed trackers: {', '.join(available) or 'none'}"
            )
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        cpu=args.cpu,
        log_with=args.report_to,
        project_dir=args.output_dir,
    )
    # `accelerate launch --cpu --num_processes 2` sets an address but starts one process, unless mpirun is used.
    launched = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    if launched and "MASTER_ADDR" in os.environ and accelerator.num_processes == 1:
        logger.warning(
            "accelerate was asked for several processes on the CPU but started one, as it does without mpirun; use "
            "`accelerate launch --multi_gpu --num_processes N scripts/train.py --cpu ...`, which needs no GPU"
        )
    return accelerator


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Allow deterministic algorithms only, within the block."""
    if not enabled:
        yield
        return
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def delay_interruption() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for the end of the block, so that it is done as a whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own = {number: handler for number, handler in former.items() if callable(handler)}
    for number in own:
        signal.signal(number, lambda number, frame: pending.append(number))
    try:
        yield
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
        if pending:
            signal.raise_signal(pending[0])


def peak_memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process in GB, and of the GPU if there is one."""
    found = {}
    try:
        import resource

        # Kilobytes on Linux, bytes on macOS.
        unit = 1 if sys.platform == "darwin" else 1024
        found["peak_memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)
    except ImportError:  # Windows
        pass
    if device.type == "cuda":
        found["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 3)
    return found
