"""What `explainode serve` bears: many clients, a full line, slow senders, many jobs; figures beside one client alone on the same machine.

python scripts/benchmarks/serve_load.py [--jobs 20] [--clients 8] [--many 400]
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np

QUERY = {"methods": "gradcam", "gallery": 0, "scores": "false"}


def job(client: httpx.Client) -> float:
    """Seconds of one job, from asking to its last map; 503 waits and asks again."""
    start = time.perf_counter()
    while True:
        answer = client.post("/api/v1/explain", params=QUERY)
        if answer.status_code != 503:
            break
        time.sleep(0.2)
    answer.raise_for_status()
    name = answer.json()["job"]
    while (told := client.get(f"/api/v1/jobs/{name}").json())["state"] in ("queued", "running"):
        time.sleep(0.02)
    assert told["state"] == "done", told["error"]
    return time.perf_counter() - start


def memory(pid: int) -> float:
    """MiB that a process holds."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--many", type=int, default=400)
    options = parser.parse_args()
    port = 8791
    server = subprocess.Popen(
        [sys.executable, "-m", "explainode", "serve", "--port", str(port)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    base = f"http://127.0.0.1:{port}"
    try:
        client = httpx.Client(base_url=base, timeout=60)
        while True:
            try:
                client.get("/healthz")
                break
            except httpx.ConnectError:
                time.sleep(0.2)
        before_files = len(os.listdir(tempfile.gettempdir()))
        alone = [job(client) for _ in range(options.jobs)]
        print(f"one client: median {np.median(alone):.3f} s, p95 {np.quantile(alone, 0.95):.3f} s of {len(alone)} jobs")

        found: list[float] = []

        def one() -> None:
            with httpx.Client(base_url=base, timeout=60) as own:
                found.extend(job(own) for _ in range(options.jobs))

        threads = [threading.Thread(target=one) for _ in range(options.clients)]
        [thread.start() for thread in threads]
        pings = []
        while any(thread.is_alive() for thread in threads):
            start = time.perf_counter()
            client.get("/healthz")
            pings.append(time.perf_counter() - start)
            time.sleep(0.1)
        bound = 1.3 * options.clients * float(np.median(alone))
        print(f"{options.clients} clients: p95 {np.quantile(found, 0.95):.3f} s of {len(found)} jobs (bound 1.3 x {options.clients} x one: {bound:.3f}); "
              f"healthz p95 {1000 * np.quantile(pings, 0.95):.0f} ms")  # fmt: skip

        answers = [client.post("/api/v1/explain", params=QUERY | {"methods": "smoothgrad,vargrad"}) for _ in range(40)]
        taken = [answer.json()["job"] for answer in answers if answer.status_code == 202]
        refused = [answer for answer in answers if answer.status_code == 503 and "retry-after" in answer.headers]
        ends = []
        for name in taken:
            while (told := client.get(f"/api/v1/jobs/{name}").json())["state"] in ("queued", "running"):
                time.sleep(0.05)
                [client.get(f"/api/v1/jobs/{other}") for other in taken[-3:]]
            ends.append(told["state"])
        print(f"40 at once: {len(taken)} taken, {len(refused)} x 503 with Retry-After, {ends.count('done')} done")

        held = []
        for _ in range(200):
            one_socket = socket.create_connection(("127.0.0.1", port))
            one_socket.sendall(
                b"POST /api/v1/explain?methods=gradcam HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000000\r\n\r\nx"
            )
            held.append(one_socket)
        start = time.perf_counter()
        client.get("/api/v1/info")
        print(f"200 slow posts held: info after {1000 * (time.perf_counter() - start):.0f} ms")
        [one_socket.close() for one_socket in held]

        held_before = memory(server.pid)
        for _ in range(options.many):
            job(client)
        print(
            f"{options.many} jobs more: {memory(server.pid) - held_before:+.1f} MiB, {len(os.listdir(tempfile.gettempdir())) - before_files:+d} temporary files"
        )
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
