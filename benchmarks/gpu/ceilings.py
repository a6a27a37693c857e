"""What this machine reaches at most, measured beside the kernels: products, a copy, float additions.

2 n³ / s for n×n products,      bytes read and written / s for a copy,      additions / s for a loop of them
"""

from importlib.util import find_spec

import torch

from .session import Session

PRODUCTS = {  # name: dtype, torch's precision of float32 products
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "tf32": (torch.float32, "high"),
    "fp32": (torch.float32, "highest"),
}
UNITS = {"copy": "bytes/s", "fadd": "additions/s"} | dict.fromkeys(PRODUCTS, "FLOP/s")
SIZE, COPY_BYTES, SECONDS = 8192, 2**32, 1.0
SMALL_SIZE, SMALL_COPY = 128, 2**20
ITERATIONS, PROGRAMS = 4096, 16  # of the loop of additions, and a multiprocessor


def product(session: Session, dtype: torch.dtype, precision: str) -> float:
    n = SMALL_SIZE if session.small else SIZE
    x, y = torch.randn(2, n, n, device=session.device, dtype=dtype)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        seconds = session.medians({"product": lambda: x @ y}, SECONDS)["product"]
    finally:
        torch.set_float32_matmul_precision(before)
    return 2 * n**3 / seconds


def copy(session: Session) -> float:
    x = torch.zeros(SMALL_COPY if session.small else COPY_BYTES, dtype=torch.uint8, device=session.device)
    y = torch.empty_like(x)
    return 2 * x.numel() / session.medians({"copy": lambda: y.copy_(x)}, SECONDS)["copy"]


def additions(session: Session) -> float:
    """Additions a second, once the loop has added up what it should."""
    from . import fadd

    iterations = 1 if session.small else ITERATIONS
    programs = 1
    if session.cuda:
        programs = PROGRAMS * torch.cuda.get_device_properties(session.device).multi_processor_count
    one = torch.ones(fadd.BLOCK, device=session.device)
    total = fadd.launch(one, programs, iterations)
    if not (total == iterations * fadd.UNROLL).all():
        session.failures.append("ceilings: the loop of additions added up wrongly")
    seconds = session.medians({"fadd": lambda: fadd.launch(one, programs, iterations)}, SECONDS)["fadd"]
    return total.numel() * iterations * fadd.UNROLL / seconds


def run(session: Session) -> dict:
    """{name: rate}, and the reason where a rate is missing."""
    found: dict[str, float | str] = {}
    for name, (dtype, precision) in PRODUCTS.items():
        if precision == "high" and not session.cuda:
            found[name] = "not measured: a CPU has no tf32 products"
        else:
            found[name] = product(session, dtype, precision)
    found["copy"] = copy(session)
    if find_spec("triton") is None:
        found["fadd"] = "not measured: triton is not installed"
    elif not session.cuda:
        additions(session)
        found["fadd"] = "not measured: interpreted without a GPU, checked only"
    else:
        found["fadd"] = additions(session)
    return found
