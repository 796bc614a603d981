"""The broker is a doorbell: each kind rings, and the embedded one is safe for several processes."""

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty

import pytest
from celery import Celery
from kombu import Connection, Exchange, Queue

from peers import dcmsend, redis_server
from plugin.bootstrap import Plugin
from plugin.tasks import Bell, celery_app
from road import head_ct, road, settings, tiny_bundle


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[str]:
    with redis_server(tmp_path) as url:
        yield url


@pytest.mark.parametrize("broker", ["embedded", "rabbitmq", "redis"])
def test_studies_are_reported_behind_each_broker_one_right_after_the_other(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    url = broker if broker == "embedded" else request.getfixturevalue(broker)
    with road(tmp_path, broker={"url": url}, model={"bundle": str(tiny_bundle())}) as plugin:
        for name in "abcd":
            head_ct(tmp_path / "in", name=name)
        dcmsend(plugin.port, tmp_path / "in")
        assert plugin.settled(instances=48, seconds=9)["studies_by_state"] == {"reported": 4}


@pytest.mark.parametrize("url", ["amqp://127.0.0.1:9//", "redis://127.0.0.1:9/0"])
def test_a_broker_that_is_away_costs_the_scheduler_no_time(tmp_path: Path, url: str) -> None:
    bell = Bell(celery_app(Plugin(settings(tmp_path, broker={"url": url}))))
    started = time.monotonic()
    for _ in range(20):
        bell("prepare")
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("broker", ["embedded", "rabbitmq", "redis"])
def test_rings_that_no_one_takes_do_not_pile_up(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Before, a queue that no one served any more filled the broker's disk."""
    monkeypatch.setattr("plugin.tasks.ENOUGH_RINGS", 5)
    url = broker if broker == "embedded" else request.getfixturevalue(broker)
    app = celery_app(Plugin(settings(tmp_path, broker={"url": url})))
    assert [Bell(app)("signal") for _ in range(9)] == [True] * 5 + [False] * 4  # counted anew by each
    bell = Bell(app)
    assert [bell("prepare") for _ in range(9)] == [True] * 5 + [False] * 4
    connection, prepare = queue(app)
    with connection:
        assert [prepare.get(no_ack=True) is not None for _ in range(7)] == [True] * 5 + [False] * 2
    assert bell("prepare") is False
    monkeypatch.setattr("plugin.tasks.COUNT_SECONDS", 0.0)
    assert bell("prepare") is True


def test_a_connection_that_was_closed_is_opened_again(tmp_path: Path, rabbitmq: str) -> None:
    """Before, the scheduler died of it."""
    app = celery_app(Plugin(settings(tmp_path, broker={"url": rabbitmq})))
    bell = Bell(app)
    assert bell("deliver")
    with app.producer_or_acquire() as producer:
        Connection.release(producer.connection)  # not the pool's, which keeps it open
    assert bell("signal")


def test_a_ring_that_redis_cannot_be_told_is_heard_does_not_silence_those_after_it(tmp_path: Path) -> None:
    """Before, a worker whose Redis was restarted while it worked took no work ever again."""
    with redis_server(tmp_path) as url:
        app = celery_app(Plugin(settings(tmp_path, broker={"url": url})))
        Bell(app)("prepare")
        connection, prepare = queue(app)
        channel = prepare.channel
        channel.basic_qos(0, 1, False)
        message = prepare.get()
        assert not channel.qos.can_consume()
    with pytest.raises(connection.connection_errors):
        message.ack()
    assert channel.qos.can_consume()


def embedded(folder: Path) -> Celery:
    return celery_app(Plugin(settings(folder)))


def queue(app: Celery, name: str = "prepare") -> tuple[Connection, Queue]:
    connection = app.connection_for_read()
    return connection, Queue(name, Exchange(name), routing_key=name, channel=connection.channel())


def ring(folder: Path, times: int) -> None:
    bell = Bell(embedded(folder))
    for _ in range(times):
        bell("prepare")


def test_messages_of_several_processes_are_each_taken_once_and_whole(tmp_path: Path) -> None:
    """Before, a worker that read a message in the middle of its being written died of it."""
    processes = [multiprocessing.get_context("fork").Process(target=ring, args=(tmp_path, 100)) for _ in range(3)]
    connection, prepare = queue(embedded(tmp_path))
    other, same = queue(embedded(tmp_path))
    with connection, other:
        for process in processes:
            process.start()
        taken: list[str] = []
        end = time.monotonic() + 30
        while len(taken) < 300 and time.monotonic() < end:
            messages = [queue.get(no_ack=True) for queue in (prepare, same)]
            taken += [message.properties["correlation_id"] for message in messages if message is not None]
        for process in processes:
            process.join()
    assert len(taken) == len(set(taken)) == 300
    assert not any((tmp_path / "data" / "broker" / "messages").iterdir())


def test_queues_do_not_hear_each_other(tmp_path: Path) -> None:
    app = embedded(tmp_path)
    Bell(app)("deliver")
    connection, prepare = queue(app)
    with connection:
        assert prepare.get() is None
        with pytest.raises(Empty):
            prepare.channel._get("liver")
        assert prepare.channel._get("deliver")["headers"]["task"] == "hlip.deliver"
