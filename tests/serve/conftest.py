"""One server for the tests of this room: the pair of the package on a worker of its own, asked without a network where that is enough."""

from __future__ import annotations

import time

import pytest

pytest.importorskip("fastapi", reason="the server needs explainode[serve]")
pytest.importorskip("httpx", reason="the tests of the server need httpx")

from fastapi.testclient import TestClient

from explainode.serve.app import make_app
from explainode.serve.desk import Desk, Limits
from explainode.serve.worker import Place


@pytest.fixture(scope="session")
def desk():
    desk = Desk(Place(count=6, device="cpu"), Limits(queue=20, budget=60, body=1 << 20, requests=100_000))
    desk.start()
    yield desk
    desk.close()


@pytest.fixture(scope="session")
def client(desk):
    return TestClient(make_app(desk, {"testserver", "127.0.0.1"}), raise_server_exceptions=False)


@pytest.fixture(scope="session")
def finish():
    """Ask for a job until it is over."""

    def until_over(client, name, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            told = client.get(f"/api/v1/jobs/{name}").json()
            if told["state"] in ("done", "failed", "stopped"):
                return told
            time.sleep(0.05)
        raise AssertionError(f"the job is {told['state']} after {seconds} s")

    return until_over
