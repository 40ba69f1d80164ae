"""Replicas as Ray actors: on this machine's GPUs or cores, or on those of a cluster.

Ray places the processes, carries what they say, and notices when one dies; nothing else of it is
used. Without an address it is started for this process alone, on the loopback interface, and ended
with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from fttt.config import EngineSection, RunConfig
from fttt.errors import FTTTError, UsageError, first_line
from fttt.experiment import plan
from fttt.experiment.driver import LostError, ReplicatedExecutor, Seat
from fttt.experiment.executor import Executor, LocalExecutor
from fttt.experiment.replica import About, Replica

__all__ = ["Cluster", "RayReplica", "asks_here", "check_sendable", "executors"]

_START_SECONDS = 300.0
"""For a replica's process to start and answer, on a busy machine."""
_STORE_BYTES = 2**27
"""Ray's store of objects, through which only what is larger than 100 kB travels."""
_REACH_SECONDS = 5.0
"""For a machine to take a connection."""
_SETTINGS = b"\4"
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
"""Of HTTP/2, which Ray's server speaks: it answers with its own frame of settings at once."""
_PASSED = ("OJ_API",)
"""Variables of the environment that a replica needs as well."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it announces a change of this default
    "RAY_enable_metrics_collection": "0",
}
"""Variables that Ray reads once, as it is imported."""
_ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""Those of a Ray for this process alone, on the loopback interface and with a secret."""
_JOINING = {"RAY_NUM_REDIS_GET_RETRIES": "2"}
"""Those for a cluster: so often it is tried to join, 40 s each, in place of 20 times."""
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
_TOKEN_FILE = Path("~/.ray/auth_token")
"""Where Ray finds the token of a cluster."""

Load = Callable[[RunConfig], Executor]
"""Loads the model of a config where questions are asked."""


@contextmanager
def executors(engine: EngineSection, note: Callable[[str], None]) -> Iterator[Load]:
    """What loads models where the settings say: in this process, or in replicas.

    Replicas are started when the first model is loaded, serve all that are loaded one after the
    other, and end with the block.

    Args:
        engine: the settings. Loading raises UsageError where they cannot be carried out.
        note: prints a line.
    """
    with ExitStack() as stack:
        found: list[tuple[Cluster, list[Seat]]] = []

        def load(config: RunConfig) -> Executor:
            if asks_here(engine):
                return LocalExecutor(plan.load(config))
            if not found:
                cluster = stack.enter_context(Cluster.connected(engine))
                found.append((cluster, [Seat() for _ in range(cluster.replicas)]))
            cluster, seats = found[0]
            return ReplicatedExecutor(seats, lambda: cluster.start(config), config, note)

        yield load


def asks_here(engine: EngineSection) -> bool:
    """Whether one replica is asked for, which this process may be as well."""
    if engine.ray_address is not None:
        return False
    if engine.replicas == "auto":
        return engine.gpus_per_replica == 1 and len(_gpus(engine.device)) <= 1
    return engine.replicas in (None, 1)


def check_sendable(engine: EngineSection, objects: Mapping[str, Any]) -> None:
    """Refuse objects of Python that cannot travel to replicas.

    Raises:
        UsageError: one cannot, or Ray is not installed.
    """
    _imported(alone=engine.ray_address is None)
    pickle = import_module("ray.cloudpickle")
    for name, thing in objects.items():
        try:
            pickle.dumps(thing)
        except Exception as error:  # whatever its own parts raise
            what = "verifier or a question" if name == "task" else name
            raise UsageError(
                f"The {what} cannot be sent to replicas ({first_line(error)}); give a function, a "
                "name or an object without open files and processes, or leave replicas away."
            ) from error


def _gpus(device: str) -> range:
    """The GPUs of this machine that a run may use."""
    import torch

    return range(0 if device == "cpu" else torch.cuda.device_count())


class Cluster:
    """Ray, and how many replicas of which size are to run on it."""

    def __init__(self, ray: Any, engine: EngineSection) -> None:
        """Use Ray, which is connected.

        Raises:
            UsageError: more replicas are asked for than there are GPUs, or cores without GPUs.
        """
        self.ray = ray
        self._actors: list[RayReplica] = []
        self.replicas, options = self._divided(engine)
        self._options = {**options, "max_restarts": 0, "scheduling_strategy": "SPREAD"}

    def _divided(self, engine: EngineSection) -> tuple[int, dict[str, Any]]:
        """What is free is divided; a moment ago it may have been another command's."""
        deadline = time.monotonic() + _REACH_SECONDS
        while True:
            try:
                return divide(engine, self.ray.available_resources())
            except UsageError:
                divide(engine, self.ray.cluster_resources())  # where that is too little as well
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    @classmethod
    @contextmanager
    def connected(cls, engine: EngineSection) -> Iterator[Cluster]:
        """Ray at the settings' address, or one of this process alone; replicas end with the block.

        A Ray that this process has been connected to before is used, and stays connected.

        Raises:
            UsageError: Ray is not installed, or the cluster is out of reach or does not suffice.
        """
        if engine.ray_address is None:  # before Ray is started, which takes seconds
            divide(engine, {"GPU": len(_gpus(engine.device)), "CPU": cores()})
        with _connection(engine) as ray:
            cluster = cls(ray, engine)
            try:
                yield cluster
            finally:
                for actor in cluster._actors:
                    actor.kill()

    async def start(self, config: RunConfig) -> RayReplica:
        """Start a replica and wait until it answers.

        Args:
            config: whose files it must find.

        Raises:
            LostError: it has died.
            UsageError: there is no place for it, or it lacks files or has other versions.
        """
        environ = {name: os.environ[name] for name in _PASSED if name in os.environ}
        remote = self.ray.remote(Replica).options(**self._options)
        threads = max(1, int(self._options["num_cpus"]))
        actor = RayReplica(self.ray, remote.remote(str(Path.cwd()), environ, threads=threads))
        self._actors.append(actor)
        try:
            async with asyncio.timeout(_START_SECONDS):
                actor.about = await actor.call("about", _needed(config))
            _check_same(actor.about)
        except TimeoutError:
            actor.kill()
            raise UsageError(
                f"No replica could be started within {_START_SECONDS:g} s: the cluster's machines "
                "are in use by others, or out of reach; wait for them, or give fewer --replicas."
            ) from None
        except BaseException:  # the run may have ended meanwhile
            actor.kill()
            raise
        return actor


class RayReplica:
    """A replica in a Ray actor. Implements :class:`fttt.experiment.driver.ReplicaHandle`."""

    about = About("an unknown machine", 0, {}, ())

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor

    async def call(self, name: str, *arguments: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return await getattr(self._actor, name).remote(*arguments)
        except errors.RayTaskError as error:
            raise self._told(error.cause) from error
        except errors.RayError as error:
            raise LostError(_reason(error)) from error

    def kill(self) -> None:
        with suppress(Exception):  # whatever of it is out of reach
            self._ray.kill(self._actor)

    def _told(self, error: BaseException) -> BaseException:
        """The error of a replica, with the name of its machine where that is another one."""
        if isinstance(error, FTTTError) and self.about.host != platform.node():
            return type(error)(f"On the replica's machine {self.about.host}: {error}")
        return error


def _reason(error: Exception) -> str:
    """Why an actor is lost, in a few words of Ray's many."""
    lines = str(error).split("\n")
    if getattr(error, "actor_init_failed", False):  # a traceback, whose last line says it
        return next(line for line in reversed(lines) if line.strip()).strip()
    if "memory" in type(error).__name__.lower():
        return "its machine ran out of memory"
    if any("never ran" in line for line in lines):
        return "it could not be started"
    if any("its node has died" in line for line in lines):
        return "its machine is out of reach"
    return "its process ended, killed or out of memory"


@contextmanager
def _connection(engine: EngineSection) -> Iterator[Any]:
    """Ray, connected."""
    if engine.ray_address is not None:
        _check_reachable(engine.ray_address)
    ray = _imported(alone=engine.ray_address is None)
    if ray.is_initialized():
        yield ray
        return
    common = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    if engine.ray_address is not None:
        with _connected(ray, {"address": engine.ray_address, **common}):
            yield ray
        return
    folder = Path(tempfile.mkdtemp(prefix="fttt-ray-"))
    own = {
        "address": "local",
        "num_gpus": len(_gpus(engine.device)),
        "num_cpus": cores(),
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_temp_dir": str(folder),
    }
    try:
        with _connected(ray, {**own, **common}):
            _let_helpers_end(folder)
            yield ray
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _let_helpers_end(folder: Path) -> None:
    """Let Ray's helper processes end at once where this process is killed.

    They would try for a minute to report a crash to a server that is gone as well, unless the log
    of the process that they belong to says that it was asked to end.
    """
    with suppress(OSError):
        log = folder / "session_latest" / "logs" / "raylet.out"
        with log.open("a", encoding="utf-8") as file:
            file.write("Raylet received SIGTERM (or fttt was killed)\n")


def _imported(*, alone: bool) -> Any:
    """Ray, imported with the variables that it reads then, those excepted that the user has set.

    Raises:
        UsageError: it is not installed.
    """
    if "ray" not in sys.modules:
        wanted = dict(_QUIET)
        if alone:
            wanted |= {**_ALONE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        else:
            wanted |= _JOINING
            if any(name in os.environ for name in _TOKENS) or _TOKEN_FILE.expanduser().is_file():
                wanted["RAY_AUTH_MODE"] = "token"  # a cluster without one does not mind it
        os.environ.update({k: v for k, v in wanted.items() if k not in os.environ})
    try:
        return import_module("ray")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "ray"
        what = "is not installed" if missing else f"cannot be imported ({error})"
        raise UsageError(
            f"--replicas and --ray-address need Ray, which {what}; run `pip install 'fttt[scale]'`."
        ) from None


@contextmanager
def _connected(ray: Any, options: Mapping[str, Any]) -> Iterator[None]:
    """Connect, with this process's own answer to SIGTERM, and disconnect."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except Exception as error:  # of many kinds
        raise UsageError(
            f"Ray cannot be started or joined: {first_line(error)} (the token of a cluster that "
            "has one belongs into RAY_AUTH_TOKEN or ~/.ray/auth_token)."
        ) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
    try:
        # which prints a paragraph for each process that dies, beside the error that is raised
        with patch.object(ray._private.worker, "print_worker_logs", _nothing, create=True):
            yield
    finally:
        ray.shutdown()


def _nothing(*_: object) -> None:
    pass


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_reachable(address: str) -> None:
    """Refuse an address at which nothing listens, for which Ray would look for a minute.

    Raises:
        UsageError: it is such.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise UsageError(
            f"--ray-address cannot be {address!r}; give HOST:PORT as `ray start --head` prints it, "
            "or auto for the cluster that this machine is part of."
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _REACH_SECONDS) as there:
            there.sendall(_GREETING)
            ray = os.environ.get("RAY_USE_TLS") == "1" or there.recv(4)[3:] == _SETTINGS
        fault = "" if ray else "something else listens there"
    except OSError as error:
        fault = str(error.strerror or error)
    if fault:
        raise UsageError(
            f"No Ray cluster answers at {address!r} ({fault}); start one with `ray start --head` "
            "there, or leave --ray-address away."
        )


def divide(engine: EngineSection, there: Mapping[str, float]) -> tuple[int, dict[str, Any]]:
    """How many replicas there are to be, and what of the machines each of them takes.

    Args:
        engine: the settings.
        there: GPUs and processors that there are, by Ray's names.

    Raises:
        UsageError: more are asked for than there is room for.
    """
    gpus, processors = there.get("GPU", 0.0), int(there.get("CPU", 0))
    if engine.device == "cpu":
        gpus = 0.0
    elif gpus == 0 and engine.device != "auto":
        raise UsageError(
            f"--device {engine.device} needs GPUs and Ray finds none; use --device cpu or auto."
        )
    part = engine.gpus_per_replica
    if gpus == 0 and part < 1:
        raise UsageError(
            f"--gpus-per-replica {part:g} divides GPUs, and there are none to run on; leave it "
            "away: replicas share the processor cores."
        )
    if gpus:
        places, kind = _places(gpus, part), "GPUs" if part == 1 else f"parts of {part:g} of a GPU"
    else:
        places, kind = processors, "processor cores"
    all_of_it = max(1, places) if gpus else 1
    asked = all_of_it if engine.replicas == "auto" else engine.replicas or 1
    if asked > places:
        instead = f"use --replicas {places} or auto" if places else "wait until one is free"
        raise UsageError(
            f"--replicas {asked} needs as many free {kind}, and there "
            f"{'is' if places == 1 else 'are'} {places}; {instead}."
        )
    if gpus:
        own = 1 if engine.ray_address else max(1, processors // asked)
        return asked, {"num_gpus": part, "num_cpus": own}
    return asked, {"num_gpus": 0, "num_cpus": processors // asked}


def _places(gpus: float, part: float) -> int:
    """Replicas for which there is room, each within one GPU."""
    whole, rest = divmod(gpus, 1)
    return int(whole) * int(1 / part + 1e-9) + int(rest / part + 1e-9)


def _needed(config: RunConfig) -> list[str]:
    """Files and folders that a run reads, which replicas must find as well."""
    named = (config.model, config.adapter, config.settings.get("checkpoint"))
    return [str(Path(path).resolve()) for path in named if path and Path(path).exists()]


def _check_same(about: About) -> None:
    """Refuse a replica of other versions, or one that does not see the run's files.

    Raises:
        UsageError: it is such.
    """
    own = Replica.versions()
    for name, version in own.items():
        theirs = about.versions.get(name)
        if theirs != version:
            raise UsageError(
                f"The replica on {about.host} has {name} {theirs} and this process {version}; "
                "install the same versions on all machines."
            )
    if about.unseen:
        raise UsageError(
            f"The replica on {about.host} cannot see {about.unseen[0]!r}; put it where all "
            "machines see it under that name, on a shared file system, say."
        )
