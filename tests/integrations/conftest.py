"""What the tests of pipelines share."""

from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet_diffusers() -> Iterator[None]:
    """Only errors of diffusers are logged."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)
