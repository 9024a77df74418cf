"""
The page, asked from Python
===========================

`explainode serve` opens a page; the same server answers programs. Here it shows the pair that comes with the package.
"""

import base64
import subprocess
import sys
import time

import httpx
import matplotlib.pyplot as plt
import numpy as np

server = subprocess.Popen([sys.executable, "-m", "explainode", "serve", "--port", "8797"], stderr=subprocess.DEVNULL)
client = httpx.Client(base_url="http://127.0.0.1:8797", timeout=60)
for _ in range(600):
    try:
        client.get("/healthz")
        break
    except httpx.ConnectError:
        time.sleep(0.2)
info = client.get("/api/v1/info").json()
print(
    [network["name"] for network in info["networks"]], len(info["methods"]), "methods", len(info["gallery"]), "pictures"
)

# %%
# A job: maps come one by one, the cheap ones first, then what measures them.

asked = {"methods": "gradcam,ig_adaptive,lrp_epsilon_plus,random_map", "gallery": 3}
job = client.post("/api/v1/explain", params=asked).json()["job"]
while (told := client.get(f"/api/v1/jobs/{job}").json())["state"] in ("queued", "running"):
    time.sleep(0.2)
print(told["state"], [event["kind"] for event in told["events"]])

# %%
# What came, as a grid: a row per network.

maps = {(e["network"], e["method"]): e for e in told["events"] if e["kind"] == "map"}
scores = {(e["network"], e["method"]): e for e in told["events"] if e["kind"] == "scores"}
networks, methods = (list(dict.fromkeys(keys)) for keys in zip(*maps))
figure, axes = plt.subplots(len(networks), len(methods), figsize=(2.5 * len(methods), 5.6), layout="constrained")
for row, network in zip(axes, networks):
    for axis, method in zip(row, methods):
        event = maps[network, method]
        heat = np.frombuffer(base64.b64decode(event["heat"]), "<f4").reshape(event["height"], event["width"])
        limit = np.abs(heat).max() or 1.0
        axis.imshow(heat, cmap="RdBu_r", vmin=-limit, vmax=limit)
        ahead = scores[network, method]
        axis.set_title(
            f"{network}: {method}\nahead of {ahead['ahead_of']} of {ahead['random_maps']} random maps", fontsize=8
        )
        axis.axis("off")
plt.show()

# %%
# A mistake is a sentence, here as there.

print(client.post("/api/v1/explain", params={"methods": "gradcamm", "gallery": 0}).json())
server.terminate()
server.wait()
