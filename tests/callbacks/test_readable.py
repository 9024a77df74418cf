"""A run whose pictures cannot be read ends; a few bad files do not end it."""

from __future__ import annotations

import pytest

from explainode.callbacks.readable import Readable
from explainode.errors import UserError


@pytest.mark.parametrize(("bad", "ends"), [(1, False), (5, True)])
def test_the_share_decides(classifier, data, trainer, tmp_path, bad, ends):
    images = data()
    images.skipped = {f"{k}.jpg": "damaged" for k in range(bad)}  # of 48 training pictures
    run = trainer(tmp_path, [Readable()], max_epochs=1)
    if not ends:
        run.fit(classifier(), datamodule=images)
        return
    with pytest.raises(UserError, match=r"5 of \d+ pictures could not be read, more than the 5%.*0\.jpg"):
        run.fit(classifier(), datamodule=images)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_a_limit_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"must lie in \[0, 1\), got 2"):
        Readable(2)
