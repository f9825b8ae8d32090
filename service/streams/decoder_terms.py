"""What the decoders of a service are allowed, and what each of them is therefore told."""

from __future__ import annotations

from dataclasses import dataclass

from service.contract.geometry import FitRule
from service.contract.model_card import InputSize
from service.settings import Settings
from service.streams.decoder_messages import Job


@dataclass(frozen=True, slots=True)
class DecoderTerms:
    """What all decoders of a service are allowed."""

    input_size: InputSize
    max_pixels: int
    memory_bytes: int
    behind_s: float
    hang_s: float
    stall_s: float
    restarts: int
    reconnect_s: float
    slots: int = 4

    @classmethod
    def read(cls, settings: Settings, input_size: InputSize) -> DecoderTerms:
        """As the settings say."""
        return cls(
            input_size=input_size,
            max_pixels=settings.max_pixels,
            memory_bytes=settings.decoder_memory_bytes,
            behind_s=settings.decoder_behind_s,
            hang_s=settings.decoder_hang_s,
            stall_s=settings.stall_s,
            restarts=settings.decoder_restarts,
            reconnect_s=settings.reconnect_s,
        )

    def plan_job(self, fit_rule: FitRule, *, is_lossless: bool) -> Job:
        """A decoder's job as far as it is the same for all; where its frames come from is still to be said."""
        return Job(
            input_height=self.input_size.height,
            input_width=self.input_size.width,
            fit=fit_rule,
            max_pixels=self.max_pixels,
            memory_bytes=self.memory_bytes,
            slots=self.slots,
            behind_s=None if is_lossless else self.behind_s,
        )
