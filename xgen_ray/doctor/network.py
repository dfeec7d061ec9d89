"""What others tell over HTTP: their time, and whether the hub of models is there."""

import ctypes
import email.utils
import time

import httpx

from xgen_ray.doctor.facts import Clock, Hub

# <sys/timex.h>: the return value and the status bit of a clock that no one keeps.
_TIME_ERROR = 5
_STA_UNSYNC = 0x40
_TIMEX_BYTES = 512
_STATUS_WORD = 40
# The header has whole seconds.
_DATE_ERROR_S = 0.5


async def read_clock(peer_url: str | None, timeout_s: float) -> Clock:
    """The kernel's word on its clock, and how far it is from that of ``peer_url``, by its ``Date`` header."""
    synchronised = read_synchronised()
    if peer_url is None:
        return Clock(synchronised)
    try:
        async with httpx.AsyncClient(timeout=timeout_s, trust_env=False) as client:
            began = time.time()
            response = await client.head(peer_url)
            ended = time.time()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Clock(synchronised, peer_url, problem=str(error) or type(error).__name__)
    try:
        theirs = email.utils.parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return Clock(synchronised, peer_url, problem="its answer has no Date")
    # The header was cut to whole seconds somewhere between the two.
    skew = (began + ended) / 2 - (theirs + _DATE_ERROR_S)
    return Clock(synchronised, peer_url, skew, _DATE_ERROR_S + (ended - began) / 2)


def read_synchronised() -> bool | None:
    """Whether the kernel's clock is kept by a time service: ``timedatectl`` shows the same."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):  # not on macOS
        return None
    if ctypes.sizeof(ctypes.c_long) != ctypes.sizeof(ctypes.c_longlong):
        return None
    timex = ctypes.create_string_buffer(_TIMEX_BYTES)
    state = adjtimex(timex)
    if state < 0:
        return None
    status = int.from_bytes(timex.raw[_STATUS_WORD : _STATUS_WORD + 4], "little")
    return state != _TIME_ERROR and not status & _STA_UNSYNC


async def ask_hub(endpoint: str, timeout_s: float) -> Hub:
    """Whether ``endpoint`` answers, through the proxy of the environment, as downloads go."""
    began = time.monotonic()
    try:
        async with httpx.AsyncClient(timeout=timeout_s, follow_redirects=True) as client:
            response = await client.head(f"{endpoint.rstrip('/')}/api/models?limit=1")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Hub(endpoint, problem=str(error) or type(error).__name__)
    if response.is_server_error:
        return Hub(endpoint, problem=f"HTTP {response.status_code}")
    return Hub(endpoint, seconds=time.monotonic() - began)
