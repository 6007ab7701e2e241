"""One tiny run, trained by the command line, for all tests of it."""

import pytest

from tests.cli.commands import Tiny, done
from tests.training.tiny_runs import save_model, write_table


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("cli")
    result = Tiny(
        save_model(folder / "model", dropout=True),
        write_table(folder / "train.csv"),
        write_table(folder / "test.csv", 20, seed=5),
        folder / "run",
    )
    done("train", *result.start(result.run), "--rank", "2", "--lr", "0.01")
    return result
