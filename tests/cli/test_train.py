"""`explainode train` from outside: what Ctrl-C and a precision make of it, and the order of callbacks."""

import subprocess
import sys

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging

from explainode.jobs.train import averaging_last
from explainode.training.precision import native_bf16

SMALL = ["trainer=debug", "trainer.max_epochs=1", "data.size=32", "evaluation.images=2", "module.scheduler=null"]
# A program whose user presses Ctrl-C twice while the first batch is computed.
IMPATIENT = """
import os, signal, sys
from explainode.callbacks.interrupt import Interrupt
from explainode.cli.main import main

def press(self, trainer, module, batch, batch_idx):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGINT)

Interrupt.on_train_batch_start = press
sys.exit(main(sys.argv[1:]))
"""


class Tail(WeightAveraging):
    """A weight averaging with a name of its own."""


def test_weight_averaging_comes_last_whatever_its_name():
    first, second, tail, ema = Callback(), Callback(), Tail(), EMAWeightAveraging()
    assert averaging_last([tail, first, ema, second]) == [first, second, tail, ema]


def test_a_second_ctrl_c_is_status_130_and_a_slow_precision_a_sentence(tmp_path):
    words = ["train", *SMALL, "run_dir=run", "trainer.precision=bf16-mixed"]
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 130, done.stderr
    assert "press Ctrl-C again to stop at once" in done.stderr and done.stderr.rstrip().endswith("interrupted")
    assert "Traceback" not in done.stderr
    assert ("set trainer.precision=32-true" in done.stderr) is (native_bf16() is False)
    assert not (tmp_path / "run" / "report.html").exists()
