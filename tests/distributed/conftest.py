import pytest

from tests.helpers.reference import train_reference
from tests.helpers.tiny import save_rows, save_tiny_model

LR = 1e-3
GLOBAL_BATCH = 4


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_tied_model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny_tied", tied=True)


@pytest.fixture(scope="session")
def rows_20_steps(tmp_path_factory):
    return save_rows(tmp_path_factory.mktemp("rows80"), 20 * GLOBAL_BATCH)


@pytest.fixture(scope="session")
def rows_6_steps(tmp_path_factory):
    return save_rows(tmp_path_factory.mktemp("rows24"), 6 * GLOBAL_BATCH)


@pytest.fixture(scope="session")
def rows_1_step(tmp_path_factory):
    return save_rows(tmp_path_factory.mktemp("rows4"), GLOBAL_BATCH)


@pytest.fixture(scope="session")
def reference_20_steps(tiny_model, rows_20_steps):
    return train_reference(tiny_model, rows_20_steps, GLOBAL_BATCH, LR)


@pytest.fixture(scope="session")
def reference_1_step(tiny_model, rows_1_step):
    return train_reference(tiny_model, rows_1_step, GLOBAL_BATCH, LR)
