"""Every target, by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuzz.targets_broker import BROKER_TARGETS
from fuzz.targets_broker_state import BROKER_STATE_TARGETS
from fuzz.targets_channel import CHANNEL_TARGETS
from fuzz.targets_client import CLIENT_TARGETS
from fuzz.targets_dstack import DSTACK_TARGETS
from fuzz.targets_endorsements import ENDORSEMENT_TARGETS
from fuzz.targets_formats import FORMAT_TARGETS
from fuzz.targets_inference import INFERENCE_TARGETS
from fuzz.targets_log import LOG_TARGETS
from fuzz.targets_near import NEAR_TARGETS
from fuzz.targets_nras import NRAS_TARGETS
from fuzz.targets_owners import OWNER_TARGETS
from fuzz.targets_records import RECORD_TARGETS
from fuzz.targets_relay import RELAY_TARGETS
from fuzz.targets_run import RUN_TARGETS
from fuzz.targets_seats import SEAT_TARGETS
from fuzz.targets_services import SERVICE_TARGETS
from fuzz.targets_services_whole import SERVICE_WHOLE_TARGETS
from fuzz.targets_snp import SNP_TARGETS
from fuzz.targets_store import STORE_TARGETS
from fuzz.targets_training import TRAINING_TARGETS
from fuzz.targets_whole import WHOLE_TARGETS
from fuzz.targets_wire import WIRE_TARGETS
from fuzz.targets_workload import WORKLOAD_TARGETS

if TYPE_CHECKING:
    from fuzz.driver import Target

TARGETS: tuple[Target, ...] = (
    *WIRE_TARGETS,
    *CHANNEL_TARGETS,
    *CLIENT_TARGETS,
    *INFERENCE_TARGETS,
    *RELAY_TARGETS,
    *RUN_TARGETS,
    *NEAR_TARGETS,
    *NRAS_TARGETS,
    *ENDORSEMENT_TARGETS,
    *FORMAT_TARGETS,
    *DSTACK_TARGETS,
    *WORKLOAD_TARGETS,
    *SERVICE_TARGETS,
    *SERVICE_WHOLE_TARGETS,
    *SNP_TARGETS,
    *WHOLE_TARGETS,
    *LOG_TARGETS,
    *STORE_TARGETS,
    *OWNER_TARGETS,
    *BROKER_STATE_TARGETS,
    *BROKER_TARGETS,
    *TRAINING_TARGETS,
    *RECORD_TARGETS,
    *SEAT_TARGETS,
)
