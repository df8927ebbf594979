"""What errors say where memory ran out. Pure, and light: the launching side reads the same texts."""

from __future__ import annotations

import re

# Source: texts of PyTorch's c10 and ATen (CUDABlas.cpp, cudnn Exceptions.h, CPUAllocator.cpp), of the CUDA runtime, and
# of Triton's driver.
_COMPUTATION = (
    r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED|Triton Error \[CUDA\]: out of memory"
    r"|DefaultCPUAllocator: (can't|not enough)"
)
_OTHER = r"OutOfMemoryError|\bMemoryError\b|Cuda failure (\d+ )?'out of memory'|Cannot allocate memory|std::bad_alloc"

# cuDNN's plans that found no room for their workspace are passed over, and what is said in the end (Conv_v8.cpp) is
# that none is left; cuBLAS says no more of a handle (CUDABlas.cpp).
_MAYBE = (
    r"(FIND|GET) was unable to find an engine to execute this computation"
    r"|CUBLAS_STATUS_NOT_INITIALIZED when calling .?cublasCreate"
)


def says_computation(text: str) -> bool:
    """Tell whether an error says that there was no memory for a computation: with less to compute it may work."""
    return re.search(_COMPUTATION, text) is not None


def may_say_computation(text: str) -> bool:
    """Tell whether an error says what is also said of a computation for which there was no memory."""
    return re.search(_MAYBE, text) is not None


def says_any(text: str) -> bool:
    """Tell whether an error says that memory ran out, a device's or the host's, whatever it was wanted for."""
    return says_computation(text) or re.search(_OTHER, text) is not None
