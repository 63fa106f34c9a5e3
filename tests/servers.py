"""A real MLflow server that can be frozen, killed and started again, and a proxy that delays its answers."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

from runs import ENVIRONMENT


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class MlflowServer:
    """An MLflow server with an SQLite database in a folder. It has the same address each time it is started."""

    def __init__(self, folder):
        self.folder, self.port, self.process = folder, free_port(), None
        self.uri, self.database = f"http://127.0.0.1:{self.port}", folder / "server.db"

    def start(self):
        # Job execution would start seven more processes.
        environment = {**ENVIRONMENT, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers",
             "1", "--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination",
             str(self.folder / "artifacts")],
            cwd=self.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, "the MLflow server did not start"
            try:
                # The first question takes the server seconds, unlike /health.
                urllib.request.urlopen(f"{self.uri}/api/2.0/mlflow/experiments/search?max_results=1", timeout=60)
                return
            except OSError:
                time.sleep(0.1)

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)

    def kill(self):
        if self.process:
            self.signal(signal.SIGKILL)
            self.process.wait(30)
            self.process = None


class SlowProxy:
    """A proxy on loopback that passes each answer of a server on after `seconds`."""

    def __init__(self, server_port, seconds):
        self.server_port, self.seconds = server_port, seconds
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client = self.socket.accept()[0]
            except OSError:
                return  # closed
            server = socket.create_connection(("127.0.0.1", self.server_port))
            threading.Thread(target=self.copy, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self.copy, args=(server, client, True), daemon=True).start()

    def copy(self, source, target, delayed):
        try:
            while data := source.recv(1 << 16):
                if delayed:
                    time.sleep(self.seconds)
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            end.close()

    def close(self):
        self.socket.close()


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


class Lock:
    """Another process that holds an exclusive lock on an SQLite database until `release`."""

    def __init__(self, database):
        command = [sys.executable, "-c", LOCK, database]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "locked\n"

    def release(self):
        self.process.communicate()
