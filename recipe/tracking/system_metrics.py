"""Samples the use of the processor, the memory, the disk, the network and the GPU with MLflow's monitors.

MLflow's own thread sends each sample directly, and waits for the server. This one passes the samples to a function.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

SECONDS = 5  # between two samples


def gpu_monitors() -> list[BaseMetricsMonitor]:
    """Return a monitor of the GPUs, or an empty list if there is no GPU or no library to ask it."""
    for monitor in (GPUMonitor, ROCMMonitor):
        try:
            return [monitor()]
        except (ImportError, RuntimeError):
            continue
    return []


@contextmanager
def system_metrics(log: Callable[[dict[str, float]], None]) -> Iterator[None]:
    """Call `log` with {name: value} every SECONDS during the `with` block."""
    monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *gpu_monitors()]
    stopped = threading.Event()

    def sample() -> None:
        while True:
            for monitor in monitors:
                monitor.collect_metrics()
            if stopped.wait(SECONDS):
                return
            values = [monitor.aggregate_metrics() for monitor in monitors]
            log({f"system/{name}": value for numbers in values for name, value in numbers.items()})
            for monitor in monitors:
                monitor.clear_metrics()

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(1)
