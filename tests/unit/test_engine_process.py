"""What a process says of the exception that ends it, told by names and text, so that nobody imports torch for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from enginehouse_engine.config import ConfigError
from enginehouse_engine.engine_process import failure_of
from enginehouse_engine.executor.contract import ExecutorFailure


def torch_error(name: str, text: str, base: type[Exception] = RuntimeError) -> Exception:
    """One of torch's, without torch."""
    made: Exception = type(name, (base,), {})(text)
    return made


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch_error("AcceleratorError", "CUDA error: an illegal memory access was encountered"), "DeviceError"),
        (RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`"), "DeviceError"),
        (RuntimeError("HIP error: unspecified launch failure"), "DeviceError"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), "DeviceError"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), "DeviceError"),
        (
            torch_error("DistBackendError", "NCCL error in: NCCLUtils.cpp:77, unhandled cuda error, NCCL 2.27"),
            "DeviceError",
        ),
        (
            torch_error("DistBackendError", "NCCL error in: x.cpp:1, remote process exited or network error"),
            "Exception",
        ),
        (torch_error("DistBackendError", "ncclRemoteError: A call failed possibly due to a network error"), "Exception"),
        (torch_error("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB"), "OutOfMemory"),
        (torch_error("AcceleratorError", "CUDA error: out of memory"), "OutOfMemory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "OutOfMemory"),
        (MemoryError(), "OutOfMemory"),
        (RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:4"), "Exception"),
        (ValueError("no CUDA errors here, and nothing about memory"), "Exception"),
        (ExecutorFailure("worker 1 failed: CUDA error: unknown error", failure_class="DeviceError"), "DeviceError"),
        (ExecutorFailure("worker 1 is gone; CUDA error: it said once", failure_class="Exception"), "Exception"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_class_of_an_exception(error: Exception, kind: str) -> None:
    failure = failure_of(error)
    assert (failure.kind, failure.exit_code) == (kind, 1)


def test_the_text_is_the_traceback_but_where_only_people_can_help() -> None:
    def inner() -> None:
        raise RuntimeError("CUDA error: unknown error")

    with pytest.raises(RuntimeError) as caught:
        inner()
    text = failure_of(caught.value).message
    assert text.startswith("Traceback (most recent call last):")
    assert ", in inner\n" in text
    assert failure_of(ConfigError("no such flag")).message == "no such flag"


def test_torch_names_its_errors_as_this_expects() -> None:
    names = ("torch.AcceleratorError", "torch.OutOfMemoryError", "torch.distributed.DistBackendError")
    code = f"import torch; print({', '.join(f'{name}.__name__' for name in names)})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found == [name.rpartition(".")[2] for name in names]
