"""Run Python programs in processes that start with the libraries loaded.

Importing torch, transformers and accelerate takes most of the time of a short program. A server imports them once, and
forks a process for each program, with the arguments, environment, working folder and standard streams of the program.
Tests of imports start an interpreter instead.
"""

import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import types
from pathlib import Path


ROOT = Path(__file__).parent.parent
PRELOADED = [  # not LanceDB, which starts threads
    "modeling_pig.training.loop",
    "modeling_pig.modeling_pig",
    "modeling_pig.processing_pig",
    "modeling_pig.cli",
    "modeling_pig.evaluation.evaluator",
    "modeling_pig.retrieval.indexing",
    "accelerate.commands.launch",
    "av",
    "datasets",
    "lance_namespace",
    "matplotlib.figure",
    "pyarrow.dataset",
    "torch.distributed.run",
]


class Program:
    """A running program.

    Args:
        address: socket of the server
        arguments: arguments of the interpreter: a script, `-m` and a module, or `-c` and code, then `sys.argv[1:]`
        streams: file descriptors of standard input, output and error
        executable: `sys.executable` of the program, with which it starts programs
    """

    def __init__(
        self, address: str, arguments: list[str], streams: list[int], cwd: str, environment: dict, executable: str
    ):
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(address)
        request = {"arguments": arguments, "cwd": cwd, "environment": environment, "executable": executable}
        socket.send_fds(self.connection, [b"-"], streams)
        self.connection.sendall(json.dumps(request).encode() + b"\n")
        self.replies = self.connection.makefile()
        self.pid = int(self.replies.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self.connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Wait for the end of the program, and return its exit status, or minus the number of a signal."""
        if self.returncode is None:
            self.returncode = int(self.replies.readline())
            self.connection.close()
        return self.returncode

    def kill(self) -> None:
        """Kill the program and its child processes, and wait for the end."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()


class WarmPython:
    """A server, which ends with this process. Programs see the libraries as imported with its environment."""

    def __init__(self, **environment: str):
        import subprocess
        import tempfile

        self.folder = tempfile.TemporaryDirectory(prefix="pig")
        self.address = os.path.join(self.folder.name, "socket")
        self.server = subprocess.Popen(
            [sys.executable, __file__, self.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            cwd=ROOT,
        )
        assert self.server.stdout.readline() == b"ready\n"
        self.python = self.write_program(Path(self.folder.name) / "python")

    def write_program(self, path: Path, *arguments: str) -> str:
        """Write a file that runs Python with `arguments` and its own arguments, and return its path."""
        python = str(Path(self.folder.name) / "python")
        path.write_text(
            f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
            f"from warm_python import stand_in\nstand_in({self.address!r}, {list(arguments)!r}, {python!r})\n"
        )
        path.chmod(0o755)
        return str(path)

    def start(self, arguments: list, log: Path, cwd: Path = ROOT, **environment: str) -> Program:
        """Start a program that appends its output to `log`."""
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        with log.open("ab") as file, open(os.devnull) as nothing:
            streams = [nothing.fileno(), file.fileno(), file.fileno()]
            return Program(self.address, list(map(str, arguments)), streams, str(cwd), variables, self.python)

    def start_processes(self, arguments: list, log: Path, num_processes: int) -> list[Program]:
        """Start a program in several processes that know one another, as torchrun does."""
        if num_processes == 1:
            return [self.start(arguments, log)]
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(num_processes)}
        shared["LOCAL_WORLD_SIZE"] = str(num_processes)
        ranks = map(str, range(num_processes))
        return [self.start(arguments, log, **shared, RANK=rank, LOCAL_RANK=rank) for rank in ranks]

    def run(self, arguments: list, cwd: Path = ROOT, **environment: str):
        """Run a program, and return its exit status and output, like `subprocess.run`."""
        import subprocess

        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        command = [self.python, *map(str, arguments)]
        return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=300)

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait()
        self.folder.cleanup()


@functools.cache
def warm_python() -> WarmPython:
    """Return the server of this process."""
    return WarmPython()


def stand_in(address: str, arguments: list[str], python: str) -> None:
    """Run a program in place of this process."""
    program = Program(address, [*arguments, *sys.argv[1:]], [0, 1, 2], os.getcwd(), dict(os.environ), python)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(program.pid, number))
    status = program.wait()
    sys.exit(status if status >= 0 else 128 - status)


def serve(address: str) -> dict | None:
    """Fork a process for each request, and return the request in it; return `None` when standard input ends."""
    for name in PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # a collection would copy all pages
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    os.write(1, b"ready\n")
    supervisors: list[int] = []
    while True:
        if listener not in select.select([listener, sys.stdin], [], [])[0]:
            return None
        connection, _ = listener.accept()
        supervisor = os.fork()
        if supervisor == 0:
            listener.close()
            return supervise(connection)
        connection.close()
        supervisors = [pid for pid in [*supervisors, supervisor] if os.waitpid(pid, os.WNOHANG)[0] == 0]


def supervise(connection: socket.socket) -> dict:
    """Fork the program, and return the request in it; report its exit status, and kill it if the client ends."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile().readline())
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        return request
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{pid}\n".encode())
    ended = os.pidfd_open(pid)
    if ended not in select.select([connection, ended], [], [])[0]:
        os.killpg(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        connection.sendall(f"{status}\n".encode())
    except BrokenPipeError:
        pass
    os._exit(0)


def run_program(request: dict) -> None:
    """Run a program as the interpreter does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.executable = request["executable"]
    first, *arguments = [argument for argument in request["arguments"] if argument != "-u"]
    if first == "-m":
        sys.argv, sys.path[0] = arguments, request["cwd"]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv, sys.path[0] = ["-c", *arguments[1:]], ""
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(arguments[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv, sys.path[0] = [first, *arguments], str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    received = serve(sys.argv[1])
    if received is not None:
        run_program(received)
