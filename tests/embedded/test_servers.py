"""Postgres and Valkey from their wheels, for real."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from embedded import postgres, stack, valkey
from embedded.errors import StateUnusable
from embedded.liveness import CannotTell
from embedded.services import inherited_environment
from embedded.state import StateFolder
from embedded.supervisor import Supervisor
from tests.embedded.waiting import wait_for


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    # Too long for a socket's path, with a blank, below folders that only their owner may enter.
    return StateFolder.at(tmp_path / ("a long name " * 9).strip())


@pytest.fixture
def sockets(state: StateFolder) -> Iterator[Path]:
    """The sockets of running servers."""
    supervisor = Supervisor(state.record)
    with supervisor.listening():
        try:
            sockets = state.fresh_sockets()
            stack._start_servers(supervisor, state, sockets)
            yield sockets
        finally:
            supervisor.stop()
            state.remove_sockets()


def connect(sockets: Path) -> psycopg.Connection:
    return psycopg.connect(postgres.url(sockets).replace("+psycopg", ""), autocommit=True)


def test_postgres_speaks_utf8_and_listens_on_no_port(sockets: Path) -> None:
    with connect(sockets) as connection:
        settings = dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())
        upper = connection.execute("SELECT upper('straße é')").fetchone()

    assert settings["listen_addresses"] == ""
    assert settings["server_encoding"] == "UTF8"
    assert settings["synchronous_commit"] == settings["fsync"] == "on"
    assert upper is not None
    assert "É" in upper[0]


def test_valkey_is_bounded_and_keeps_nothing_on_disk(sockets: Path) -> None:
    client = redis.Redis.from_url(valkey.url(sockets))

    assert int(client.config_get("maxmemory")["maxmemory"]) == 256 << 20
    assert client.config_get("save") == {"save": ""}
    assert client.config_get("port") == {"port": "0"}
    client.close()


def test_data_survive_a_crash_and_the_next_start_cleans_up(state: StateFolder) -> None:
    """The supervisor vanishes without a word, both servers run on; then the machine's next `mpo up`."""
    crashed = Supervisor(state.record)
    with crashed.listening():
        sockets = state.fresh_sockets()
        stack._start_servers(crashed, state, sockets)
    with connect(sockets) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    left = state.recorded()
    assert [each.name for each in left] == ["valkey", "postgres"]

    assert stack.stop_leftovers(state)
    for each in crashed._supervised.values():
        assert each.process is not None
        each.process.wait()
    assert not any(each.process.is_running() for each in left)
    assert not sockets.exists()

    again = Supervisor(state.record)
    with again.listening():
        sockets = state.fresh_sockets()
        stack._start_servers(again, state, sockets)
        with connect(sockets) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        again.stop()


def test_a_killed_postgres_comes_back_with_its_data(state: StateFolder) -> None:
    supervisor = Supervisor(state.record)
    with supervisor.listening():
        sockets = state.fresh_sockets()
        stack._start_servers(supervisor, state, sockets)
        with connect(sockets) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        killed = next(each for each in state.recorded() if each.name == postgres.NAME)

        os.kill(killed.pid, signal.SIGKILL)
        killed.process.wait(5)

        supervisor.wait_until(lambda: postgres.is_ready(sockets), postgres.NAME, 30)
        with connect(sockets) as connection:
            assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)
        supervisor.stop()


def test_a_pid_file_that_names_a_stranger_is_no_obstacle(state: StateFolder) -> None:
    """After a reboot the number in the file often belongs to some other process."""
    supervisor = Supervisor(state.record)
    with supervisor.listening():
        stack._start_servers(supervisor, state, state.fresh_sockets())
        supervisor.stop()
        with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as stranger:
            (state.postgres / "postmaster.pid").write_text(f"{stranger.pid}\n{state.postgres}\n")
            stack._start_servers(supervisor, state, state.fresh_sockets())
            assert postgres.leftover(state.postgres) is not None
            supervisor.stop()
            stranger.communicate()


def test_libpq_variables_of_the_user_lead_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "elsewhere")
    monkeypatch.setenv("MPO_ADMIN_KEY", "mpo_sk_secret")

    assert {"PGHOST", "MPO_ADMIN_KEY"}.isdisjoint(inherited_environment())


def test_data_of_another_postgres_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "PG_VERSION").write_text("16\n")

    with pytest.raises(StateUnusable, match="made by Postgres 16"):
        postgres.is_made(tmp_path)


def test_a_killed_server_comes_back_with_all_that_was_committed_though_a_session_of_it_hangs(
    state: StateFolder,
) -> None:
    supervisor = Supervisor(state.record)
    with supervisor.listening():
        try:
            sockets = state.fresh_sockets()
            stack._start_servers(supervisor, state, sockets)
            connection = connect(sockets)
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
            # It notices no end of its server, and holds the memory that the next one needs.
            os.kill(connection.info.backend_pid, signal.SIGSTOP)
            killed = next(each for each in state.recorded() if each.name == "postgres")
            os.kill(killed.pid, signal.SIGKILL)
            killed.process.wait(5)
            supervisor.wait_until(lambda: postgres.is_ready(sockets), "postgres", 30)
            with connect(sockets) as again:
                assert again.execute("SELECT answer FROM kept").fetchone() == (42,)
            connection.close()
        finally:
            supervisor.stop()
            state.remove_sockets()


def test_a_sign_of_life_is_looked_for_by_process_and_machine(sockets: Path) -> None:
    with pytest.raises(CannotTell):
        postgres.has_heard_of(sockets, os.getpid())
    with connect(sockets) as connection:
        connection.execute("CREATE TABLE workers (pid int, host text, seen_at timestamptz)")
        beat = "INSERT INTO workers VALUES (%s, %s, clock_timestamp() - %s::interval)"
        connection.execute(beat, (1, socket.gethostname(), "0 s"))
        connection.execute(beat, (2, socket.gethostname(), "1 min"))
        connection.execute(beat, (3, "elsewhere", "0 s"))
    assert [postgres.has_heard_of(sockets, pid) for pid in (1, 2, 3, 4)] == [True, False, False, False]


def test_a_server_that_refuses_lives_and_one_that_shuts_down_without_end_does_not(
    state: StateFolder, sockets: Path
) -> None:
    elsewhere = postgres.url(sockets).replace("+psycopg", "").replace("/postgres?", "/template1?")
    with psycopg.connect(elsewhere, autocommit=True) as stays:
        stays.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
        assert (postgres.is_ready(sockets), postgres.speaks(sockets)) == (False, True)
        stays.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true")
        server = next(each for each in state.recorded() if each.name == postgres.NAME)
        os.kill(server.pid, signal.SIGTERM)  # waits for every client to leave
        wait_for(lambda: not postgres.is_ready(sockets))
        assert not postgres.speaks(sockets)


def test_a_server_that_still_reads_its_log_lives(state: StateFolder) -> None:
    supervisor = Supervisor(state.record)
    with supervisor.listening():
        sockets = state.fresh_sockets()
        stack._start_servers(supervisor, state, sockets)
        supervisor.stop()
        # One that reads on for ever, and lets nobody in.
        (state.postgres / "standby.signal").touch()
        with (state.postgres / "postgresql.conf").open("a") as configuration:
            configuration.write("hot_standby = off\n")
        log, environment = state.log(postgres.NAME), inherited_environment()
        supervisor.start(postgres.server_program(state.postgres, sockets, log, environment))
        supervisor.wait_until(lambda: postgres.speaks(sockets), postgres.NAME, 30)
        assert not postgres.is_ready(sockets)
        supervisor.stop()


def test_a_server_s_zombie_is_no_server(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)
    file = tmp_path / "postmaster.pid"
    try:
        file.write_text(f"{dead.pid}\n{tmp_path}\n")
        postgres.clear_remains(tmp_path)
        assert not file.exists()
    finally:
        dead.wait()
    # One that is gone altogether is for Postgres to judge, which knows who still shares its memory.
    file.write_text(f"{dead.pid}\n{tmp_path}\n")
    postgres.clear_remains(tmp_path)
    assert file.exists()
