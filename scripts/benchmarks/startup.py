"""Start-up: `import explainode` beyond `import torch`, and `explainode --help`, as whole processes, interleaved, medians."""

import statistics
import subprocess
import sys
import time

RUNS = 7


def seconds(*words: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    commands = {
        "import torch": ("-c", "import torch"),
        "import torch, explainode": ("-c", "import torch, explainode"),
        "explainode --help": ("-m", "explainode", "--help"),
        "explainode train --help": ("-m", "explainode", "train", "--help"),
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, words in commands.items():
            times[name].append(seconds(*words))
    median = {name: statistics.median(values) for name, values in times.items()}
    beyond = median["import torch, explainode"] - median["import torch"]
    print(f"{'what':<42}{'seconds':>9}{'target':>9}")
    print(f"{'import explainode beyond import torch':<42}{beyond:>9.3f}{0.3:>9}")
    for name in ("explainode --help", "explainode train --help"):
        print(f"{name:<42}{median[name]:>9.3f}{2.5:>9}")


if __name__ == "__main__":
    main()
