"""The GPU gate: no GPU takes work before this node has proven it. docs/protocols/hardware.md §7.

Order: shut → the driver's word → signed reports appraised → extended into RTMR3 → the driver's word
again → open. Whatever goes wrong, and whoever gives up waiting, leaves the gate shut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.appraisal.gpu_gate import gate_faults
from confide.errors import ConfideError, ConfigurationError, Unavailable
from confide.node.measure import measure_gpus

if TYPE_CHECKING:
    from contextlib import AsyncExitStack
    from datetime import datetime

    from confide.appraisal.nvidia_policy import NvidiaPolicy
    from confide.node.attester import Devices
    from confide.node.machine import Machine
    from confide.ports import Clock, Entropy, GpuControl, QuoteSource
    from confide.trust.nvidia import NvidiaRoots

__all__ = ["gate_machine", "open_gate", "shut_gate"]

_STUCK = "the ready state of the GPUs is not what it was set to: nobody knows what they accept"


async def _set(control: GpuControl, *, ready: bool) -> None:
    await control.set_ready(ready)
    if (await control.state()).ready is not ready:
        raise Unavailable(_STUCK)


async def _require(control: GpuControl, policy: NvidiaPolicy) -> None:
    state = await control.state()
    if state.ready:
        raise Unavailable("the GPUs take work although nobody has accepted them")
    if faults := gate_faults(state, policy):
        raise ConfigurationError(
            "; ".join(f"GPUs: {fault.what} ({fault.mend})" for fault in faults)
        )


async def open_gate(
    guest: QuoteSource,
    devices: Devices,
    control: GpuControl,
    *,
    policy: NvidiaPolicy,
    roots: NvidiaRoots,
    nonce: bytes,
    now: datetime,
) -> None:
    """
    Let the GPUs of this node take work, once they are proven and measured.

    Raises `ConfigurationError` for a set that the driver itself says is wrong, `Rejected` for one
    that is not accepted, `Unavailable` where an edge fails or the ready state does not stick. The
    gate is shut then, as far as the driver obeys.
    """
    try:
        await _set(control, ready=False)
        await _require(control, policy)
        await measure_gpus(guest, devices, policy=policy, roots=roots, nonce=nonce, now=now)
        # What was appraised is what is there now.
        await _require(control, policy)
        await _set(control, ready=True)
    except BaseException as error:
        try:
            await shut_gate(control)
        except ConfideError as again:
            error.add_note(f"and the GPUs could not be shut: {again}")
        raise


async def shut_gate(control: GpuControl) -> None:
    """Let the GPUs take no more work. Raises `Unavailable` where they go on taking it."""
    await _set(control, ready=False)


async def gate_machine(
    machine: Machine, stack: AsyncExitStack, *, clock: Clock, entropy: Entropy
) -> None:
    """
    Open the gate of `machine` for as long as `stack` is open.

    Raises what `open_gate` raises, and `ConfigurationError` for a machine without GPUs.
    """
    gpus = machine.gpus
    if gpus is None:
        raise ConfigurationError("a model node needs a confidential GPU")
    await open_gate(
        machine.guest,
        gpus.devices,
        gpus.control,
        policy=gpus.policy,
        roots=machine.roots.nvidia,
        nonce=entropy.token(32),
        now=clock.now(),
    )
    # The GPUs take work for as long as this node vouches for them.
    stack.push_async_callback(shut_gate, gpus.control)
