"""`explainode serve`: a page that shows which network and which explanation to trust."""

from __future__ import annotations

import argparse
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from explainode.errors import UserError

HELP = """explainode serve [RUN ...] [options]

Opens a page on this machine where a picture is explained by several networks and methods, side by side, with controls. Without runs it
shows the pair that comes with the package: a small ResNet and its noise-injected twin, trained on drawn shapes.

options:
  --model NAME --weights PATH   a network of conf/model instead of runs
  --gallery FOLDER              pictures to choose from
  --host HOST                   127.0.0.1; another host needs --token
  --token [TOKEN]               ask for it; without a value one is made
  --port PORT                   8765, or the next free one
  --device DEVICE               auto, cpu, cuda:0, ...

examples:
  explainode serve
  explainode serve runs/a runs/b --gallery pictures/
  explainode serve --model tv_resnet50 --weights resnet50.pth --gallery photos/"""
LOCAL = {"127.0.0.1", "localhost", "[::1]", "::1"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message} (explainode serve --help)")


def run(arguments: Sequence[str]) -> int:
    """Serve until Ctrl-C."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP)
        return 0
    options = _read(arguments)
    try:
        import uvicorn

        from explainode.serve.app import make_app
        from explainode.serve.desk import Desk
    except ImportError as error:
        raise UserError(
            f"the page needs the package {error.name!r}, which is not installed; pip install 'explainode[serve]' brings it"
        ) from error
    from explainode.heartbeat import Heartbeat
    from explainode.serve.worker import Place

    desk = Desk(Place(tuple(options.runs), _settings(options), options.gallery, options.device))
    with Heartbeat("loading the networks"):
        desk.start()
    port = _free_port(options.host, options.port)
    hosts = LOCAL | {options.host.lower(), *(name.lower() for name in options.allow_host)}
    names = ", ".join(network["name"] for network in desk.about["networks"])
    print(f"showing {names}")
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(
        options.host, f"[{options.host}]" if ":" in options.host else options.host
    )
    address = f"http://{shown}:{port}/"
    print(f"open {address}{f'#token={options.token}' if options.token else ''}   (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(
        make_app(desk, hosts, options.token),
        host=options.host,
        port=port,
        log_level="warning",
        timeout_keep_alive=15,
        limit_concurrency=1000,
        server_header=False,
        h11_max_incomplete_event_size=64 << 10,
    )
    try:
        uvicorn.Server(config).run()
    finally:
        desk.close()
    return 0


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(prog="explainode serve", add_help=False)
    parser.add_argument("runs", nargs="*")
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--gallery")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--token", nargs="?", const="")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--allow-host", action="append", default=[])
    parser.add_argument("--device", default="auto")
    options = parser.parse_intermixed_args(list(arguments))
    if options.token == "":
        options.token = secrets.token_urlsafe(24)
    if options.host.lower() not in LOCAL and not options.token:
        raise UserError(
            f"--host {options.host} lets other machines ask this server; add --token, which makes one that they must show"
        )
    if options.token is not None and len(options.token) < 8:
        raise UserError("the token has fewer than 8 characters and could be guessed; --token without a value makes one")
    if not 0 < options.port < 65536:
        raise UserError(f"--port must lie in 1..65535, got {options.port}")
    for run_folder in options.runs:
        if not Path(run_folder).is_dir():
            raise UserError(f"there is no run directory {run_folder}; name a folder that explainode train has written")
    if options.gallery is not None and not Path(options.gallery).is_dir():
        raise UserError(f"there is no folder {options.gallery} for the gallery; name a folder of pictures")
    if options.model and options.runs:
        raise UserError("runs and --model are two ways to say which network; give one of them")
    if options.weights and not options.model:
        raise UserError("--weights needs --model NAME: which network the weights belong to (explainode list model)")
    return options


def _settings(options: argparse.Namespace) -> dict[str, Any] | None:
    """Of `explain`, for a model of conf/."""
    if not options.model:
        return None
    from explainode.registry.composing import compose, plain

    settings = plain(compose("explain", [f"model={options.model}"])) | {
        "model_name": options.model,
        "device": options.device,
    }
    if options.weights:
        settings["model"]["weights"] = options.weights
    return settings


def _free_port(host: str, port: int) -> int:
    """The port, or the next one that is free.

    Raises:
        UserError: if none of twenty is, or the host is none of this machine's.
    """
    for candidate in range(port, min(port + 20, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((host.strip("[]"), candidate))
            except OSError as error:
                if isinstance(error, socket.gaierror) or error.errno == 99:
                    raise UserError(f"--host {host} is no address of this machine ({error.strerror})") from error
                continue
        if candidate != port:
            print(f"port {port} is taken, so this is {candidate}")
        return candidate
    raise UserError(f"ports {port} to {port + 19} are taken; name a free one with --port")
