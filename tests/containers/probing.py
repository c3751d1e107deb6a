"""The image that container tests run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confide.adapters.engine import EngineName
    from confide.adapters.image_build import BuiltAgent
    from confide.agents.sandbox import AgentImage


@dataclass(frozen=True, slots=True)
class Probe:
    """An image with nothing but the base and a trivial agent, and the engine that built it."""

    engine: EngineName
    built: BuiltAgent

    @property
    def image(self) -> AgentImage:
        """The image."""
        return self.built.image
