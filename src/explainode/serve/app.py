"""The HTTP interface: what there is, jobs, what they found, and the files of the page. Names only; no path, address or file of the server crosses it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from explainode import __version__
from explainode.data.pictures import load_picture
from explainode.errors import UserError, nearest
from explainode.explaining import noise_draws
from explainode.jobs.showing import Showing
from explainode.registry.entries import describe
from explainode.serve.desk import Busy, Desk, Job
from explainode.serve.document import job_document
from explainode.serve.guards import Guards

CHOSEN = ("gradcam", "saliency", "ig_adaptive", "smoothgrad", "lrp_epsilon_plus", "occlusion")
CONTROLS = ("random_map", "centre_prior")
STATIC = {"app.js": "text/javascript", "app.css": "text/css", "icon.svg": "image/svg+xml"}
NAME = r"^[\w.@/ -]{1,120}$"
PICTURE = {
    "requestBody": {
        "description": "The bytes of a picture (JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF); nothing where `gallery` names one.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Refused(Exception):
    """A request that is answered with a sentence."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


def make_app(desk: Desk, hosts: set[str], token: str | None = None) -> FastAPI:
    """The application around a desk.

    Args:
        desk: not started yet: it starts with the application and ends with it.
        hosts: names under which the server may be asked, without ports.
        token: what every request must show, or None.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not desk.about:
            await run_in_threadpool(desk.start)
        yield
        await run_in_threadpool(desk.close)

    app = FastAPI(
        title="ExplainIt!",
        version=__version__,
        summary="Explanations of a picture by several networks and methods, with their controls.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/v1/openapi.json",
    )
    app.add_middleware(Guards, hosts=hosts, token=token, requests=desk.limits.requests)
    known = Known(desk)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return JSONResponse(
            {"error": error.sentence}, error.status, headers={k.replace("_", "-"): v for k, v in error.headers.items()}
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"error": f"{first['loc'][-1]}: {first['msg'].lower()}"}, 422)

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(
            {"error": "there is nothing at this address" if error.status_code == 404 else str(error.detail)},
            error.status_code,
        )

    @app.exception_handler(Exception)
    async def fault(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"a fault of ours ({type(error).__name__}); the server goes on"}, 500)

    @app.get("/healthz", summary="Whether the server answers.")
    async def health() -> dict[str, Any]:
        return {"ok": True}

    @app.get("/api/v1/info", summary="Networks, methods, the gallery and the limits.")
    async def info() -> dict[str, Any]:
        return known.info()

    @app.get(
        "/api/v1/gallery/{number}.png",
        summary="A picture of the gallery.",
        response_class=Response,
        responses={404: {}},
    )
    async def thumbnail(number: int) -> Response:
        return Response(known.thumbnail(number), media_type="image/png", headers={"cache-control": "max-age=3600"})

    @app.post(
        "/api/v1/explain",
        status_code=202,
        summary="A new job.",
        openapi_extra=PICTURE,
        responses={code: {} for code in (408, 413, 422, 503)},
    )
    async def explain_picture(
        request: Request,
        methods: str = Query(",".join(CHOSEN), max_length=4000, description="names, separated by commas"),
        networks: str = Query("", max_length=2000, description="names, separated by commas; all where there are none"),
        target: str | None = Query(
            None, max_length=200, description="a class by name or number; else what each network predicts"
        ),
        noise: str = Query("off", max_length=20, description="off, path or mean:k"),
        seed: int = Query(0, ge=0, lt=2**31),
        scores: bool = Query(True, description="curves and sensitivity after the maps"),
        gallery: int | None = Query(
            None, ge=0, description="the number of a picture of the gallery, instead of a body"
        ),
    ) -> dict[str, Any]:
        wish = known.wish(methods, networks, target, noise, seed, scores)
        if gallery is None:
            body = await _body(request, desk.limits.body, desk.limits.slow)
            notes = await run_in_threadpool(known.decode, wish, body)
        else:
            notes = known.take(wish, gallery)
        try:
            job = desk.submit((request.client.host if request.client else ""), wish)
        except Busy as busy:
            raise Refused(503, str(busy), retry_after="5") from None
        return {
            "job": job.id,
            "position": desk.position(job),
            "total": job.total,
            "notes": notes,
            "pictures": known.pictures(wish),
        }

    def found(name: str) -> Job:
        job = desk.find(name)
        if job is None:
            raise Refused(404, "there is no such job; jobs are kept for fifteen minutes")
        return job

    @app.get("/api/v1/jobs/{name}", summary="What a job has found since event number `after`.", responses={404: {}})
    async def job(name: str, after: int = Query(0, ge=0)) -> Response:
        one = found(name)
        events = list(one.events)
        content = {
            "state": one.state,
            "error": one.sentence,
            "position": desk.position(one),
            "total": one.total,
            "made": sum(event["kind"] in ("map", "refused") for event in events),
            "next": len(events),
            "events": [_sendable(event) for event in events[after:]],
        }
        return Response(json.dumps(content), media_type="application/json")

    @app.delete("/api/v1/jobs/{name}", summary="Stop a job after the map that is being made.", responses={404: {}})
    async def stop(name: str) -> dict[str, Any]:
        one = found(name)
        desk.stop(one)
        return {"state": one.state if one.is_over else "stopping"}

    @app.get(
        "/api/v1/jobs/{name}/report.html",
        summary="What a job found, as one file.",
        response_class=Response,
        responses={404: {}},
    )
    async def report(name: str) -> Response:
        one = found(name)
        text = await run_in_threadpool(job_document, list(one.events), one.wish)
        return Response(
            text, media_type="text/html", headers={"content-disposition": 'attachment; filename="explanations.html"'}
        )

    @app.get(
        "/api/v1/jobs/{name}/maps.npz",
        summary="The maps of a job as numpy arrays.",
        response_class=Response,
        responses={404: {}},
    )
    async def maps(name: str) -> Response:
        one = found(name)
        file = io.BytesIO()
        arrays = {
            f"{event['network']}/{event['method']}": event["heat"]
            for event in list(one.events)
            if event["kind"] == "map"
        }
        np.savez_compressed(file, **arrays)
        return Response(
            file.getvalue(),
            media_type="application/octet-stream",
            headers={"content-disposition": 'attachment; filename="maps.npz"'},
        )

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _static("index.html", "text/html")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in STATIC:
            raise Refused(404, "there is nothing at this address")
        return _static(name, STATIC[name])

    return app


class Known:
    """What the server may be asked for, and requests held against it."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.methods = {entry.name: entry for entry in describe("explainer")}

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        return {network["name"]: network for network in self.desk.about["networks"]}

    def info(self) -> dict[str, Any]:
        """What `GET /api/v1/info` says."""
        limits = self.desk.limits
        return {
            "version": __version__,
            "networks": list(self.networks.values()),
            "methods": [
                {
                    "name": name,
                    "summary": entry.summary,
                    "source": entry.source,
                    "chosen": name in CHOSEN,
                    "control": name in CONTROLS or entry.summary.startswith("Control"),
                }
                for name, entry in self.methods.items()
            ],
            "controls": list(CONTROLS),
            "gallery": [
                {key: item[key] for key in ("title", "predictions", "disagree")} | {"number": number}
                for number, item in enumerate(self.desk.about["gallery"])
            ],
            "limits": {"bytes": limits.body, "queue": limits.queue, "seconds": limits.budget},
        }

    def thumbnail(self, number: int) -> bytes:
        """PNG of a picture of the gallery, as its smallest network sees it."""
        pictures = self._item(number)["pictures"]
        return _png(pictures[min(pictures)])

    def _item(self, number: int) -> dict[str, Any]:
        gallery = self.desk.about["gallery"]
        if not 0 <= number < len(gallery):
            raise Refused(404, f"the gallery has {len(gallery)} pictures, from 0 on")
        item: dict[str, Any] = gallery[number]
        return item

    def wish(self, methods: str, networks: str, target: str | None, noise: str, seed: int, scores: bool) -> Showing:
        """A request as a job; its picture comes later."""
        chosen = list(dict.fromkeys(word.strip() for word in methods.split(",") if word.strip()))
        asked = list(dict.fromkeys(word.strip() for word in networks.split(",") if word.strip())) or list(self.networks)
        for word, kind, known in [(w, "method", self.methods) for w in chosen] + [
            (w, "network", self.networks) for w in asked
        ]:
            if word not in known:
                raise Refused(422, f"no {kind} named {word[:60]!r}; the nearest are {nearest(word[:60], known)}")
        if not chosen:
            raise Refused(422, "no method is named; /api/v1/info lists them")
        try:
            draws = noise_draws(noise)
        except UserError as error:
            raise Refused(422, str(error)) from None
        if draws > 32:
            raise Refused(422, f"the mean over {draws} noise paths is more than the 32 that a page computes")
        if target is not None:
            self._check_target(target, asked)
        return Showing({}, chosen, asked, target, noise, seed, scores)

    def _check_target(self, target: str, asked: list[str]) -> None:
        for name in asked:
            classes = self.networks[name]["classes"]
            lowered = [known.lower() for known in classes]
            if not target.isdigit() and target.lower() not in lowered:
                hint = (
                    f"the nearest are {nearest(target.lower()[:60], lowered)}"
                    if classes
                    else "its classes have no names; give a number"
                )
                raise Refused(422, f"{name} has no class named {target[:60]!r}; {hint}")
            if target.isdigit() and classes and int(target) >= len(classes):
                raise Refused(422, f"class {target[:12]} is out of range: {name} has classes 0..{len(classes) - 1}")

    def decode(self, wish: Showing, body: bytes) -> list[str]:
        """Fill the wish with the picture of a body; what was done to it."""
        notes: list[str] = []
        try:
            for side in sorted({self.networks[name]["size"] for name in wish.networks}):
                picture = load_picture(body, side)
                wish.pictures[side] = picture.image.numpy()
                notes = picture.notes
        except UserError as error:
            raise Refused(422, str(error)[:300]) from None
        return notes

    def take(self, wish: Showing, number: int) -> list[str]:
        """Fill the wish with a picture of the gallery."""
        wish.pictures.update(self._item(number)["pictures"])
        return []

    def pictures(self, wish: Showing) -> dict[str, str]:
        """{network: the picture as it sees it, as a data address}."""
        drawn = {
            side: "data:image/png;base64," + base64.b64encode(_png(pixels)).decode()
            for side, pixels in wish.pictures.items()
        }
        return {name: drawn[self.networks[name]["size"]] for name in wish.networks}


async def _body(request: Request, limit: int, seconds: float) -> bytes:
    """The picture, read as it arrives and no further than the limit: nothing of it is written anywhere."""

    async def read() -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise Refused(
                    413, f"the picture has more than {limit >> 20} MiB; scale it down first", connection="close"
                )
            parts.append(part)
        return b"".join(parts)

    try:
        body = await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError:
        raise Refused(408, f"the picture did not arrive within {seconds:.0f} seconds", connection="close") from None
    if not body:
        raise Refused(422, "there is no picture in the body; send its bytes, or name one with gallery=0")
    return body


def _png(pixels: Any) -> bytes:
    """(3, H, W) in [0, 1] as PNG."""
    array = (np.asarray(pixels).transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def _sendable(event: dict[str, Any]) -> dict[str, Any]:
    """An event as JSON: a map as little-endian float32 in base64, rows first; what is no number as null."""
    if event["kind"] != "map":
        return event
    heat: np.ndarray = event["heat"]
    return event | {
        "heat": base64.b64encode(heat.astype("<f4").tobytes()).decode(),
        "height": heat.shape[0],
        "width": heat.shape[1],
    }


def _static(name: str, kind: str) -> Response:
    content = resources.files("explainode.serve").joinpath("static", name).read_bytes()
    return Response(
        content,
        media_type=f"{kind}; charset=utf-8" if kind.startswith("text") else kind,
        headers={"cache-control": "no-cache"},
    )
