"""The server: what it answers, what it refuses, what it survives."""

import base64
import io
import json
import re
import threading
import time

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

import explainode
from explainode.cli.main import main
from explainode.jobs.demo_pair import SIZE, demo_networks, demo_pictures
from explainode.serve.app import make_app
from explainode.serve.desk import Desk, Limits
from explainode.serve.worker import Place

QUICK = "/api/v1/explain?gallery=0&methods=saliency&scores=false"


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def heats(told):
    return {
        (e["network"], e["method"]): np.frombuffer(base64.b64decode(e["heat"]), "<f4").reshape(e["height"], e["width"])
        for e in told["events"]
        if e["kind"] == "map"
    }


def test_info_names_everything_and_no_place(client, desk):
    info = client.get("/api/v1/info").json()
    assert [network["name"] for network in info["networks"]] == ["resnet", "sde"]
    assert {"gradcam", "random_map"} <= {method["name"] for method in info["methods"]}
    assert len(info["gallery"]) == 6
    disagree = [item["disagree"] for item in info["gallery"]]
    assert disagree == sorted(disagree, reverse=True)  # where they differ comes first
    assert client.get("/api/v1/gallery/0.png").content.startswith(b"\x89PNG")
    assert client.get("/healthz").json() == {"ok": True}


def test_a_job_finds_maps_then_scores(client, finish):
    told = client.post("/api/v1/explain?gallery=1&methods=saliency,gradcam,adjoint_cam,random_map")
    assert told.status_code == 202
    found = finish(client, told.json()["job"])
    kinds = [event["kind"] for event in found["events"]]
    assert found["state"] == "done" and found["made"] == found["total"] == 8
    assert kinds[:2] == ["network", "network"] and kinds.index("scores") > max(
        i for i, kind in enumerate(kinds) if kind == "map"
    )
    first = [event["method"] for event in found["events"] if event["kind"] == "map"][:4]
    assert set(first) == {"gradcam", "saliency"}  # one pass each
    refused = [event["sentence"] for event in found["events"] if event["kind"] == "refused"]
    assert len(refused) == 2 and all("equation" in sentence for sentence in refused)
    scores = [event for event in found["events"] if event["kind"] == "scores"]
    assert all(
        0 <= event["deletion"] <= 1 and event["random_maps"] == 19 and 0 <= event["ahead_of"] <= 19 for event in scores
    )
    steady = {event["method"]: event for event in scores}
    assert steady["saliency"]["floor"] == 0 < steady["saliency"]["sensitivity"]


def test_http_python_and_the_command_line_give_the_same_arrays(client, finish, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    (tmp_path / "picture.png").write_bytes(png(pixels))
    job = client.post("/api/v1/explain?methods=ig,gradcam&scores=false", content=png(pixels)).json()["job"]
    over_http = heats(finish(client, job))

    assert main(["explain", "picture.png", "-m", "ig,gradcam", "-o", "out"]) == 0
    written = np.load("out/maps.npz")
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div_(255).contiguous()
    for name, network in demo_networks().items():
        for method in ("ig", "gradcam"):
            record = explainode.explain(explainode.get(f"explainer/{method}"), network, x)
            assert np.array_equal(over_http[name, method], record.heatmap()[0].numpy())
            assert np.array_equal(written[f"demo/{name}/{method}"][0], record.attribution[0].numpy())
    downloaded = np.load(io.BytesIO(client.get(f"/api/v1/jobs/{job}/maps.npz").content))
    assert all(np.array_equal(downloaded[f"{network}/{method}"], heat) for (network, method), heat in over_http.items())


def test_pictures_of_any_kind_are_read_or_refused_in_a_sentence(client, finish):
    gray = np.full((60, 80), 40_000, dtype=np.uint16)
    told = client.post("/api/v1/explain?methods=saliency&scores=false", content=png(gray)).json()
    assert any("16-bit" in note for note in told["notes"])
    for body in (b"", b"<html>", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n torn", b"\0" * 100):
        answer = client.post("/api/v1/explain?methods=saliency", content=body)
        assert answer.status_code == 422 and 0 < len(answer.json()["error"]) <= 200
    answer = client.post("/api/v1/explain", content=b"x" * ((1 << 20) + 1))
    assert answer.status_code == 413 and "1 MiB" in answer.json()["error"]


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("gallery=0&methods=gradcamm", 422, "no method named 'gradcamm'; the nearest are gradcam"),
        ("gallery=0&methods=", 422, "no method is named"),
        ("gallery=0&networks=vgg", 422, "no network named 'vgg'"),
        ("gallery=0&target=dog", 422, "no class named 'dog'"),
        ("gallery=0&target=99", 422, "out of range"),
        ("gallery=0&noise=loud", 422, "noise must be"),
        ("gallery=0&noise=mean:1000", 422, "more than the 32"),
        ("gallery=77", 404, "the gallery has 6 pictures"),
        ("gallery=x", 422, "gallery: "),
        ("gallery=0&seed=-1", 422, "seed: "),
        ("gallery=0&methods=" + "a," * 3000, 422, "methods: "),
        ("gallery=0&methods=../../etc/passwd", 422, "no method named"),
        ("gallery=0&networks=http://169.254.169.254/", 422, "no network named"),
        ("gallery=0&methods=%3Cscript%3E", 422, "no method named '<script>'"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(client, query, status, words):
    answer = client.post(f"/api/v1/explain?{query}")
    assert answer.status_code == status and words in answer.json()["error"] and len(answer.json()["error"]) <= 300
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/..%2f..%2fapp.py", "/static/%2e%2e/app.py", "/etc/passwd", "/api/v1/jobs/..", "/api/v1/gallery/-1.png",
     "/api/v1/gallery/../info", "/static/app.js/../../app.py", "//evil.example/", "/api/v1/jobs/x/report.html", "/docs", "/redoc", "/static/"],
)  # fmt: skip
def test_no_address_leads_out(client, path):
    answer = client.get(path)
    assert answer.status_code in (200, 404, 405, 422) and b"import" not in answer.content
    if answer.status_code == 200:
        assert "/etc" not in path and "app.py" not in path


def test_requests_from_other_pages_and_names_are_refused(client):
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/healthz", headers={"host": "127.0.0.1.evil.example:80"}).status_code == 421
    assert client.post(QUICK, headers={"origin": "http://evil.example"}).status_code == 403
    assert client.post(QUICK, headers={"origin": "null"}).status_code == 403
    assert client.get("/api/v1/info", headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200  # a link to the page
    assert client.post(QUICK, headers={"origin": "http://testserver"}).status_code == 202
    policy = client.get("/").headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy
    assert client.put("/api/v1/info").status_code == 405


def test_a_token_is_asked_for(desk):
    guarded = TestClient(make_app(desk, {"testserver"}, token="secret-of-the-test"))
    assert guarded.get("/api/v1/info").status_code == 401
    assert guarded.get("/api/v1/info", headers={"authorization": "Bearer wrong"}).status_code == 401
    assert guarded.get("/api/v1/info", headers={"authorization": "Bearer secret-of-the-test"}).status_code == 200
    assert guarded.get("/").status_code == 200


def test_no_body_names_a_place_of_the_server(client, finish, tmp_path):
    job = client.post(QUICK).json()["job"]
    finish(client, job)
    bodies = [
        client.get(path).text
        for path in (
            "/",
            "/api/v1/info",
            f"/api/v1/jobs/{job}",
            f"/api/v1/jobs/{job}/report.html",
            "/api/v1/openapi.json",
        )
    ]
    for body in bodies:
        assert not re.search(r"/(home|root|tmp|usr|work)/|site-packages|Traceback|\.py\b", body)


def test_names_are_text_in_the_report(client, desk, finish):
    from explainode.jobs.showing import Showing
    from explainode.serve.document import job_document

    event = {"kind": "network", "network": "<script>alert(1)</script>", "predicted": [{"class": 0, "name": "<b>", "probability": 1.0}],
             "explained": 0, "explained_name": "<i>", "explained_probability": 1.0}  # fmt: skip
    text = job_document([event], Showing({}, ["<img src=x>"], []))
    assert "<script" not in text and "<b>" not in text and "&lt;script&gt;" in text and "<img src=x>" not in text


def test_a_job_is_stopped_between_maps_and_forgotten(desk, client, finish):
    job = client.post(
        "/api/v1/explain?gallery=0&methods=occlusion,smoothgrad,ig_adaptive,vargrad,ig,saliency,gradcam"
    ).json()["job"]
    assert client.delete(f"/api/v1/jobs/{job}").status_code == 200
    assert finish(client, job)["state"] == "stopped"
    assert desk.jobs[job].wish.pictures == {}  # the picture is gone
    assert client.get("/api/v1/jobs/unknown").status_code == 404


def test_a_stop_that_comes_too_late_costs_nobody_anything(desk, client, finish):
    """Said while the last map is being made, it is read after the job: the next one must not notice."""
    before = desk.restarts
    for wait in (0.0, 0.05, 0.2, 0.4):
        job = client.post("/api/v1/explain?gallery=0&methods=vargrad&networks=sde&scores=false").json()["job"]
        time.sleep(wait)
        client.delete(f"/api/v1/jobs/{job}")
        assert finish(client, job)["state"] in ("done", "stopped")
        assert finish(client, client.post(QUICK).json()["job"])["state"] == "done"
    assert desk.restarts == before


def test_one_client_cannot_fill_the_line():
    from explainode.jobs.showing import Showing
    from explainode.serve.desk import Busy

    desk = Desk(Place(), Limits(per_client=2))  # not started: jobs wait
    for _ in range(2):
        desk.submit("10.0.0.7", Showing({}, ["saliency"], ["resnet"]))
    with pytest.raises(Busy, match="2 jobs"):
        desk.submit("10.0.0.7", Showing({}, ["saliency"], ["resnet"]))
    desk.submit("10.0.0.8", Showing({}, ["saliency"], ["resnet"]))


def test_a_slow_sender_is_told(desk):
    import asyncio

    from explainode.serve.app import Refused, _body

    class Slow:
        async def stream(self):
            yield b"x"
            await asyncio.sleep(5)

    with pytest.raises(Refused) as refused:
        asyncio.run(_body(Slow(), 100, 0.05))
    assert refused.value.status == 408


def test_a_full_line_is_said_and_nothing_is_lost(client, desk, finish):
    slow = "/api/v1/explain?gallery=0&methods=smoothgrad,vargrad&scores=false"
    answers = [client.post(slow) for _ in range(40)]
    accepted = [answer.json()["job"] for answer in answers if answer.status_code == 202]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(accepted) + len(refused) == 40 and len(refused) >= 10
    assert all(answer.headers["retry-after"] and "line is full" in answer.json()["error"] for answer in refused)
    assert client.get("/api/v1/info").status_code == 200
    for job in accepted[3:]:
        client.delete(f"/api/v1/jobs/{job}")
    assert [finish(client, job)["state"] for job in accepted[:3]] == ["done"] * 3


def test_a_worker_that_dies_is_replaced_and_its_job_says_so(desk, client, finish):
    before = desk.restarts
    job = client.post("/api/v1/explain?gallery=0&methods=ig_adaptive,smoothgrad,vargrad").json()["job"]
    while client.get(f"/api/v1/jobs/{job}").json()["state"] == "queued":
        time.sleep(0.01)
    desk._process.kill()
    found = finish(client, job)
    assert found["state"] == "failed" and "was started again" in found["error"]
    assert client.get("/api/v1/info").status_code == 200  # at once, while the new one loads
    after = client.post(QUICK).json()["job"]
    assert finish(client, after, 120)["state"] == "done" and desk.restarts == before + 1


def test_maps_of_many_jobs_do_not_pile_up(desk, client, finish):
    limit = Limits(memory=3 * SIZE * SIZE * 4 * 2)
    old, desk.limits = desk.limits, limit
    try:
        jobs = []
        for _ in range(5):
            jobs.append(client.post(QUICK).json()["job"])
            finish(client, jobs[-1])
        client.get("/api/v1/jobs/x")
        assert [job in desk.jobs for job in jobs] == [False, False, True, True, True]
    finally:
        desk.limits = old


def test_many_clients_at_once_get_their_own(client, finish):
    found = {}

    def one(number):
        job = client.post(f"/api/v1/explain?gallery={number}&methods=saliency&scores=false").json()["job"]
        found[number] = heats(finish(client, job))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(found) == 6
    maps = [found[number]["resnet", "saliency"] for number in range(6)]
    assert len({heat.tobytes() for heat in maps}) == 6
    again = client.post("/api/v1/explain?gallery=4&methods=saliency&scores=false").json()["job"]
    assert np.array_equal(heats(finish(client, again))["resnet", "saliency"], maps[4])


def test_openapi_describes_every_address(client):
    paths = client.get("/api/v1/openapi.json").json()["paths"]
    assert set(paths) == {
        "/healthz", "/api/v1/info", "/api/v1/gallery/{number}.png", "/api/v1/explain", "/api/v1/jobs/{name}",
        "/api/v1/jobs/{name}/report.html", "/api/v1/jobs/{name}/maps.npz",
    }  # fmt: skip
    json.dumps(paths)


def test_the_pair_is_worth_showing():
    networks = demo_networks()
    images = torch.stack([image for _, image in demo_pictures(200)])
    names = [name for name, _ in demo_pictures(200)]
    from explainode.data import ShapesDataset

    for network in networks.values():
        with torch.no_grad():
            said = [ShapesDataset.class_names[k] for k in network(images).argmax(1)]
        assert np.mean([a == b for a, b in zip(said, names, strict=True)]) >= 0.97


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--host", "0.0.0.0"], "add --token"),
        (["--token", "abc"], "fewer than 8"),
        (["runs/none"], "there is no run directory"),
        (["--gallery", "nowhere"], "there is no folder nowhere"),
        (["--port", "0"], "--port must lie"),
        (["--weights", "x.pth"], "--weights needs --model"),
        (["--what"], "explainode serve --help"),
    ],
)
def test_the_verb_refuses_in_a_sentence(words, sentence, capsys):
    assert main(["serve", *words]) == 2
    assert sentence in capsys.readouterr().err


def test_a_gallery_of_a_folder(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (70, 50), "teal").save(tmp_path / f"{name}<b>.png")
    (tmp_path / "torn.png").write_bytes(b"no picture")
    desk = Desk(Place(gallery=str(tmp_path), device="cpu"))
    desk.start()
    try:
        assert [item["title"] for item in desk.about["gallery"]] == ["a<b>", "b<b>"]
    finally:
        desk.close()
