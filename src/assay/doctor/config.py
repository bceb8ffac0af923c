"""Settings of the doctor during a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from assay.config import Config

Act = Literal["warn", "stop", "correct"]


class DoctorConfig(Config):
    """What the monitors may do while a stage trains."""

    act: Act = Field(
        default="stop",
        description="where a stage is broken beyond use (NaN, runaway KL or loss, collapsed entropy): say so, stop it "
        "with a checkpoint, or correct it: back to the newest checkpoint from before the trouble, a third of the "
        "learning rate, twice the KL weight; three times at most, then stop",
    )
