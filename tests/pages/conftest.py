"""The published campaign's figures, drawn once for every file."""

import pytest
from common import H200

from engram_exp.analysis.subjects import load_campaign, subjects
from engram_exp.pages.figures import figures


@pytest.fixture(scope="session")
def drawn():
    frame = load_campaign(H200)
    return figures(frame, subjects(frame))
