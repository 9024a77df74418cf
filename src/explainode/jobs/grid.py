"""The cells of a benchmark as they are worked through: a live table on a terminal, a line every two seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from explainode.heartbeat import EVERY
from explainode.ticker import Ticker

if TYPE_CHECKING:
    from rich.console import Group

Key = tuple[str, str]  # model, explainer


@dataclass
class Cell:
    """What became of a cell: "waiting", "running", "done", "kept" (of an earlier command) or "missing"."""

    state: str = "waiting"
    seconds: float = 0.0


class Grid:
    """Context: shows the state of models x explainers on stderr until it ends.

    Called as `grid(explainer, images done, images)` it is the progress function of `evaluate`.
    """

    def __init__(self, models: Sequence[str], explainers: Sequence[str]) -> None:
        self.models, self.explainers = list(models), list(explainers)
        self.cells = {(model, explainer): Cell() for model in models for explainer in explainers}
        self.running: Key | None = None
        self._started = 0.0
        self._images = (0, 0)
        self._view: object = None

    # ---- what happens

    def keep(self, key: Key, seconds: float) -> None:
        """The cell is there from an earlier command, which took so long for it."""
        self.cells[key] = Cell("kept", seconds)

    def start(self, key: Key) -> None:
        self.running, self._started, self._images = key, time.monotonic(), (0, 0)
        self.cells[key] = Cell("running")

    def __call__(self, _: str, done: int, total: int) -> None:
        self._images = (done, total)

    def finish(self, state: str) -> float:
        """The running cell is "done" or "missing"; its seconds."""
        assert self.running is not None, "a cell was started"
        cell = self.cells[self.running]
        cell.state, cell.seconds = state, time.monotonic() - self._started
        self.running = None
        return cell.seconds

    # ---- what is said of it

    def remaining(self) -> float | None:
        """Seconds that the other cells will probably take: as long as the same explainer took on other networks, else as long as a cell took on
        average; the running cell counts at its own pace once it has images behind it. None before anything is known."""
        known = {key: cell.seconds for key, cell in self.cells.items() if cell.state in ("done", "kept")}
        elapsed, (done, total) = time.monotonic() - self._started, self._images
        if self.running is not None and done:
            known[self.running] = elapsed * total / done
        if not known:
            return None

        def expected(key: Key) -> float:
            same = [seconds for (_, explainer), seconds in known.items() if explainer == key[1]]
            return known.get(key) or sum(same or known.values()) / len(same or known)

        waiting = sum(expected(key) for key, cell in self.cells.items() if cell.state == "waiting")
        return waiting + (0 if self.running is None else max(0.0, expected(self.running) - elapsed))

    def line(self) -> str:
        """Where we are, in a line."""
        count = sum(cell.state in ("done", "kept", "missing") for cell in self.cells.values())
        done, total = self._images
        now = ""
        if self.running is not None:
            images = f", {done}/{total} images" if total else ""
            now = f", {' x '.join(self.running)}{images} ({time.monotonic() - self._started:.0f} s)"
        left = self.remaining()
        return f"{count} of {len(self.cells)} cells{now}" + (
            f", about {duration(left)} left" if left is not None and now else ""
        )

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for model in self.models:
            table.add_column(escape(model), justify="right")
        for explainer in self.explainers:
            table.add_row(escape(explainer), *(self._shown((model, explainer)) for model in self.models))
        return Group(Text(self.line(), no_wrap=True, overflow="ellipsis"), table)

    def _shown(self, key: Key) -> str:
        cell = self.cells[key]
        if cell.state == "running":
            done, total = self._images
            return f"[bold]{done}/{total}[/]" if total else "[bold]starts[/]"
        if cell.state in ("done", "kept"):
            return (
                f"[green]{duration(cell.seconds)}[/]"
                if cell.state == "done"
                else f"[dim green]{duration(cell.seconds)}[/]"
            )
        return "[red]missing[/]" if cell.state == "missing" else "[dim]·[/]"

    def __enter__(self) -> Grid:
        from rich.console import Console
        from rich.live import Live

        console = Console(stderr=True)
        if console.is_terminal:
            view: Live | Ticker = Live(self, console=console, refresh_per_second=4)
        else:
            view = Ticker(lambda: print(self.line(), file=sys.stderr, flush=True), EVERY)
        self._view = view
        view.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.stop()  # type: ignore[attr-defined]


def duration(seconds: float) -> str:
    """12 s, 3 min, 1 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
