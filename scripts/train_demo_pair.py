"""Trains the pair of networks that `explainode serve` and `explainode explain` use where there is no run: a small ResNet and its noise-injected twin.

    python scripts/train_demo_pair.py --seed 0 --noise 0 --out pair/resnet-0.pt
    python scripts/train_demo_pair.py --seed 0 --noise 0.25 --out pair/sde-0.pt
    python scripts/train_demo_pair.py --table pair        # accuracy of all that are there, and the chosen pair into the package

Every picture is drawn once and seen once: there is no training set to learn by heart. About 25 minutes of one core each.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

import torch
from torch import nn

import explainode
from explainode.data import ShapesDataset

SIZE, WIDTH, BATCH = 48, 32, 64
SETTINGS = {"num_classes": 8, "width": WIDTH}
PLACE = Path(__file__).parents[1] / "src" / "explainode" / "models" / "demo"
TEST = 2000


def network(noise: float) -> nn.Module:
    """The network of a magnitude of noise."""
    return explainode.get("model/six_block", **SETTINGS, noise={"magnitude": noise})


def pictures(split: str, first: int, count: int, spurious: float = 0.0):
    """`count` pictures of a split, from number `first` on."""
    return ShapesDataset(10**8, size=SIZE, split=split, seed=11, spurious=spurious).__getitems__(
        list(range(first, first + count))
    )


@torch.no_grad()
def accuracy(net: nn.Module, count: int = TEST) -> float:
    """On pictures that no network saw, without noise."""
    net.eval()
    batch = pictures("test", 0, count)
    return float((net(batch.image).argmax(1) == batch.label).float().mean())


def train(seed: int, noise: float, steps: int, out: Path) -> None:
    """One network, its weights, and what it reached."""
    torch.manual_seed(seed)
    net = network(noise)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps, pct_start=0.2)
    start = time.time()
    for step in range(steps):
        batch = pictures(f"train{seed}", step * BATCH, BATCH)
        loss = nn.functional.cross_entropy(net.train()(batch.image), batch.label, label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 250 == 249:
            print(
                f"step {step + 1}/{steps} loss {float(loss):.3f} accuracy {accuracy(net, 500):.3f} {time.time() - start:.0f} s",
                flush=True,
            )
    found = {
        "seed": seed,
        "noise": noise,
        "steps": steps,
        "accuracy": accuracy(net),
        "seconds": round(time.time() - start),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": net.state_dict(), "found": json.dumps(found)}, out)
    print(json.dumps(found))


def table(folder: Path) -> None:
    """What each seed reached; the first seed's pair goes into the package as half precision, and is measured as it is stored."""
    rows = []
    for path in sorted(folder.glob("*.pt")):
        content = torch.load(path, weights_only=True)
        found = json.loads(content["found"])
        kept = {name: value.half() for name, value in content["state_dict"].items()}
        net = network(found["noise"])
        net.load_state_dict({name: value.float() for name, value in kept.items()})
        found["stored accuracy"] = accuracy(net)
        rows.append(found)
        if re.fullmatch(r"(resnet|sde)-0\.pt", path.name):
            PLACE.mkdir(exist_ok=True)
            torch.save(kept, PLACE / f"{path.name.split('-')[0]}.pt")
    (PLACE / "seeds.json").write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--steps", type=int, default=4500)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.table:
        table(options.table)
    else:
        train(options.seed, options.noise, options.steps, options.out)


if __name__ == "__main__":
    main()
