"""ImageNet on many GPUs, on paper: time, memory, storage and network from unit costs that are measured here, and rates from public data sheets.

    python scripts/benchmarks/scaling.py [--pictures FOLDER] [--epochs 90] [--batch 256]

Measured here, on any machine: operations of a forward pass (counted), sizes of weights, gradients, checkpoints, maps and table rows, activations kept for
the backward pass, rows that the default explainers and metrics send through the network for an image, and, with `--pictures`, the CPU time and the
bytes of a JPEG. Assumed: the constants below, each with its source.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import resnet50

TRAIN, VAL, PICTURE_KB = 1_281_167, 50_000, 108.0  # ILSVRC 2012: 138 GB of training pictures
GIB = 1 << 30


@dataclass(frozen=True)
class Device:
    """A GPU as its data sheet has it, and the share of the peak that convolutional training reaches.

    `flops`: dense bfloat16 operations per second; `link`: bytes per second and direction between the GPUs of a node; `cores`: of the host, per GPU.
    """

    name: str
    flops: float
    memory: float
    link: float
    utilization: float
    cores: int


# NVIDIA A100 80GB and H100 SXM data sheets. 0.23: ResNet-50 v1.5 in mixed precision at 2,900 images/s on an A100 (NVIDIA DeepLearningExamples).
# 0.15 on the H100: an assumption, as its arithmetic has outgrown its memory. 16 cores: a common share of a host of 128 cores with 8 GPUs.
DEVICES = (
    Device("A100 80GB", 312e12, 80 * GIB, 300e9, 0.23, 16),
    Device("H100 SXM", 989e12, 80 * GIB, 450e9, 0.15, 16),
)
NODE = 8  # GPUs
NETWORK = 25e9  # bytes per second and node: one InfiniBand HDR port of 200 Gbit/s
DISK = 5e9  # bytes per second and node: one NVMe drive (PCIe 4; data sheets say up to 7)


@dataclass(frozen=True)
class Costs:
    """What is measured: operations of a forward pass, bytes, and rows through the network for an explained image."""

    forward: float
    weights: int
    checkpoint: int
    activations: float  # bytes kept per image and training step
    map_bytes: float  # a stored map, float16, compressed
    row_bytes: float  # a line of metrics.csv
    value_bytes: float  # a line of per_image.csv
    rows_forward: float
    rows_backward: float
    methods: int
    picture_ms: float
    picture_bytes: float


def network_costs() -> dict[str, float]:
    """Operations, weights, checkpoint with momentum, activations of ResNet-50 at 224 pixels."""
    network = resnet50().train()
    x = torch.rand(2, 3, 224, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(x)
    kept = [0]
    seen: set[int] = set()

    def pack(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        if not isinstance(saved, nn.Parameter) and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            kept[0] += storage.nbytes()
        return saved

    alive = []  # or a storage that is freed would give its address, and its place in `seen`, to another
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (alive.append(t), pack(t))[1], lambda t: t):
        F.cross_entropy(network.train()(x), torch.zeros(2, dtype=torch.int64))
    weights = sum(p.numel() for p in network.parameters())
    state = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    return {
        "forward": counter.get_total_flops() / 2,
        "weights": weights,
        "checkpoint": state + 4 * weights,  # SGD's momentum
        "activations": kept[0] / 2,
    }


def explanation_costs(images: int = 4) -> dict[str, float]:
    """Rows through the network per image, for the default explainers and metrics together, and what is stored of them."""
    from explainode.data.shapes import ShapesData
    from explainode.evaluation import evaluate
    from explainode.jobs.measure import many
    from explainode.registry.composing import compose, plain
    from explainode.runs.directory import RunDirectory

    settings = plain(compose("train", ["output_dir=unused", "variant=net"]))
    explainers = many(settings, "explainer")
    metrics = many(settings, "metric")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 8)
    ).eval()
    count = {"forward": 0, "backward": 0}

    def forwards(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        count["forward"] += len(output)
        if output.requires_grad:
            output.register_hook(lambda gradient: count.__setitem__("backward", count["backward"] + len(gradient)))

    network.register_forward_hook(forwards)
    data = ShapesData(train_size=8, val_size=8, test_size=images, size=32)
    results = evaluate(
        network, explainers, metrics, data.batches("test", range(images), images), n=images, panel=list(range(images))
    )
    with tempfile.TemporaryDirectory() as folder:
        RunDirectory(folder).write_results(results)
        lines = {name: (Path(folder) / f"{name}.csv").read_text().splitlines()[1:] for name in ("metrics", "per_image")}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.random.default_rng(0).normal(size=(4, 3, 224, 224)).astype(np.float16))
    return {
        "rows_forward": count["forward"] / images,
        "rows_backward": count["backward"] / images,
        "methods": len(explainers),
        "row_bytes": sum(map(len, lines["metrics"])) / len(lines["metrics"]) + 1,
        "value_bytes": sum(map(len, lines["per_image"])) / len(lines["per_image"]) + 1,
        "map_bytes": buffer.tell() / 4,
    }


def picture_costs(folder: Path | None) -> dict[str, float]:
    """CPU milliseconds of a JPEG: decoded, resized, cropped to 224 pixels; of noise as large as ImageNet's pictures without a folder."""
    from explainode.data.pictures import load_picture

    with tempfile.TemporaryDirectory() as made:
        files = sorted(folder.rglob("*.jp*g"))[:200] if folder is not None else make_pictures(Path(made), 100)
        seconds = []
        for path in files:
            start = time.process_time()
            load_picture(path, 224)
            seconds.append(time.process_time() - start)
    return {"picture_ms": 1000 * median(seconds), "picture_bytes": 1000 * PICTURE_KB}


def make_pictures(folder: Path, count: int) -> list[Path]:
    """JPEGs of smooth noise, 500 x 375 pixels as ImageNet's are on average."""
    draw = np.random.default_rng(0)
    paths = [folder / f"{k:03d}.jpg" for k in range(count)]
    for path in paths:
        small = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="a folder of JPEGs whose decoding is timed")
    parser.add_argument("--epochs", type=int, default=90)
    parser.add_argument("--batch", type=int, default=256, help="images per GPU and step")
    parser.add_argument("--explained", type=int, default=5000, help="validation images explained at the end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    costs = Costs(**network_costs(), **explanation_costs(), **picture_costs(options.pictures))  # type: ignore[arg-type]
    print_units(costs)
    for device in DEVICES:
        print_table(costs, device, options.epochs, options.batch, options.explained)


def print_units(c: Costs) -> None:
    rows = [
        (
            "forward pass of an image, ResNet-50, 224 px",
            f"{c.forward / 1e9:.2f} GFLOP (two for a multiply and add); training three times that",
        ),
        ("weights; gradients in float32", f"{c.weights / 1e6:.1f} M; {4 * c.weights / 1e6:.0f} MB"),
        ("checkpoint with momentum", f"{c.checkpoint / 1e6:.0f} MB"),
        ("activations kept for an image", f"{c.activations / 1e6:.0f} MB in float32, about half in bfloat16"),
        ("decode, resize, crop of a JPEG", f"{c.picture_ms:.1f} ms of a core; {c.picture_bytes / 1000:.0f} KB"),
        (
            f"explaining and measuring an image, {c.methods} methods",
            f"{c.rows_forward:.0f} rows forward, {c.rows_backward:.0f} of them back",
        ),
        (
            "a map, compressed; a line of metrics.csv; of per_image.csv",
            f"{c.map_bytes / 1000:.0f} KB; {c.row_bytes:.0f} B; {c.value_bytes:.0f} B",
        ),
    ]
    print("Unit costs, measured:")
    for name, value in rows:
        print(f"  {name:<62}{value}")


def print_table(c: Costs, device: Device, epochs: int, batch: int, explained: int) -> None:
    rate = device.utilization * device.flops / (3 * c.forward)  # images per second and GPU
    step = batch / rate
    decode = device.cores * 1000 / c.picture_ms
    memory = batch * c.activations / 2 + 4 * c.weights * 3 + 2 * c.weights
    work = (c.rows_forward + 2 * c.rows_backward) * c.forward  # a backward pass is two forward ones
    print(
        f"\n{device.name}: {rate:.0f} images/s and GPU at {device.utilization:.0%} of its peak (assumed), {step * 1000:.0f} ms a step of {batch}"
    )
    print(
        f"  memory: {memory / GIB:.0f} GiB of {device.memory / GIB:.0f}; {device.cores} cores decode {decode:.0f} images/s, {decode / rate:.2f} of that"
    )
    head = (
        "GPUs",
        "images/s",
        "epoch, min",
        "run, h",
        "disk, GB/s",
        "all-reduce, ms",
        "of a step",
        "cores busy",
        f"{explained} explained, min",
        "bottleneck",
    )
    widths = (5, 10, 12, 8, 12, 16, 11, 12, 22, 12)
    print("".join(f"{name:>{width}}" for name, width in zip(head, widths, strict=True)))
    for gpus in (8, 16, 32, 64):
        ring = 2 * (gpus - 1) / gpus * 4 * c.weights
        reduce = (
            ring / device.link if gpus <= NODE else ring / NETWORK
        )  # a ring over nodes is as fast as its slowest link
        fed = min(rate, decode)  # images/s that the cores have to decode
        compute, reading = batch / rate, batch / decode
        loading = batch * NODE * c.picture_bytes / DISK
        seconds = max(compute, reading, loading, reduce)  # overlapped: the slowest decides
        total = gpus * batch / seconds
        epoch = TRAIN / total + VAL / (3 * total)
        names = {compute: "arithmetic", reading: "decoding", loading: "the disk", reduce: "all-reduce"}
        minutes = explained * work / (gpus * device.utilization * device.flops) / 60
        cells = (
            f"{gpus}",
            f"{total:.0f}",
            f"{epoch / 60:.1f}",
            f"{epochs * epoch / 3600:.1f}",
            f"{total * c.picture_bytes / 1e9:.2f}",
            f"{1000 * reduce:.1f}",
            f"{reduce / compute:.0%}",
            f"{min(1.0, fed / decode):.0%}",
            f"{minutes:.1f}",
            names[seconds],
        )
        print("".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))


if __name__ == "__main__":
    main()
