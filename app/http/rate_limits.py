"""Token buckets in Valkey (GCRA), charged together or not at all, by the server's own clock.

A bucket is one number, the time at which it will be full again (the theoretical arrival time of
ITU-T I.371's Generic Cell Rate Algorithm). Everything is in whole microseconds, so that the script
and a model of it agree exactly.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock

import redis
import structlog

TIMEOUT_SECONDS = 0.25
RETRY_AFTER_SECONDS = 1.0  # Valkey is away: it is asked again after so long, not at each request
MINUTE = 60_000_000

# KEYS: buckets. ARGV: for each its emission interval, its burst and what it is charged.
# Returns the clock, the first bucket that refuses (0: none does), and when each will be full.
SCRIPT = """
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local full, refusing = {}, 0
for i, key in ipairs(KEYS) do
    local interval, burst, cost =
        tonumber(ARGV[3 * i - 2]), tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
    local capacity = interval * burst
    -- Never further away than an empty bucket is: the clock may have been set back.
    local at = math.min(tonumber(redis.call('GET', key) or '0'), now + capacity)
    full[i] = math.max(at, now) + interval * cost
    -- A look (cost 0) is refused by a bucket that could not pay for one.
    if refusing == 0 and math.max(at, now) + interval * math.max(cost, 1) > now + capacity then
        refusing = i
    end
    if refusing == i then full[i] = math.max(at, now) end
end
local answer = {string.format('%.0f', now), refusing}
for i, key in ipairs(KEYS) do
    local cost = tonumber(ARGV[3 * i])
    if refusing ~= 0 and refusing ~= i then
        full[i] = full[i] - tonumber(ARGV[3 * i - 2]) * cost
    elseif refusing == 0 and cost > 0 then
        redis.call('SET', key, string.format('%.0f', full[i]),
                   'PX', math.ceil((full[i] - now) / 1000) + 1)
    end
    answer[2 + i] = string.format('%.0f', full[i])
end
return answer
"""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast a bucket fills, and how much it holds.

    Attributes:
        name: The policy's, in answers.
        per_minute: Requests; 0 switches the limit off.
        burst: Requests at once after a rest.
    """

    name: str
    per_minute: int
    burst: int

    @property
    def interval(self) -> int:
        """Microseconds that one request takes to be paid back."""
        return -(-MINUTE // self.per_minute)

    @property
    def policy(self) -> str:
        """Return the member of `RateLimit-Policy`."""
        window = math.ceil(self.interval * self.burst / 1_000_000)
        return f'"{self.name}";q={self.burst};w={window}'


@dataclass(frozen=True, slots=True)
class Charge:
    """One bucket and what a request costs there; 0 only looks whether it is empty."""

    rate: Rate
    key: str
    cost: int = 1


@dataclass(frozen=True, slots=True)
class Level:
    """What a bucket holds after a request."""

    rate: Rate
    full_in: int  # microseconds

    @property
    def remaining(self) -> int:
        """Whole requests that are left."""
        return max(0, (self.rate.interval * self.rate.burst - self.full_in) // self.rate.interval)

    @property
    def wait(self) -> int:
        """Whole seconds until one request fits again, at least one."""
        missing = self.full_in + self.rate.interval * (1 - self.rate.burst)
        return max(1, math.ceil(missing / 1_000_000))

    @property
    def field(self) -> str:
        """Return the member of `RateLimit`."""
        return f'"{self.rate.name}";r={self.remaining};t={math.ceil(self.full_in / 1_000_000)}'


@dataclass(frozen=True, slots=True)
class Decision:
    """What the buckets said.

    Attributes:
        now: Valkey's clock, microseconds; 0 if it was away.
        refused_by: The bucket that was empty, if any.
        levels: Of every bucket, in the order of the charges; empty if Valkey was away.
    """

    now: int
    refused_by: Level | None
    levels: tuple[Level, ...]


NO_LIMIT = Decision(0, None, ())


class RateLimiter:
    """Asks Valkey. Without it everybody passes: keys are still checked, and requests still kept.

    The limits are fairness, not the lock on the door, and a deletion request has a legal deadline
    that a broker's outage does not move (docs/adr/0025).
    """

    def __init__(self, redis_url: str) -> None:
        self._client = redis.Redis.from_url(
            redis_url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
        )
        self._script = self._client.register_script(SCRIPT)
        self._lock = Lock()
        self._ask_again_at = 0.0
        self.unlimited = 0  # requests that passed because Valkey was away

    def charge(self, charges: Sequence[Charge]) -> Decision:
        """Charge all of the buckets, or none if one of them is empty."""
        charges = [charge for charge in charges if charge.rate.per_minute]
        if not charges:
            return NO_LIMIT
        with self._lock:
            if time.monotonic() < self._ask_again_at:
                self.unlimited += 1
                return NO_LIMIT
        arguments = [
            number
            for charge in charges
            for number in (charge.rate.interval, charge.rate.burst, charge.cost)
        ]
        try:
            answer = self._script(keys=[charge.key for charge in charges], args=arguments)
        except (redis.RedisError, OSError) as error:
            return self._let_pass(error)
        now, refusing = int(answer[0]), int(answer[1])
        levels = tuple(
            Level(charge.rate, max(0, int(full_at) - now))
            for charge, full_at in zip(charges, answer[2:], strict=True)
        )
        return Decision(now, levels[refusing - 1] if refusing else None, levels)

    def _let_pass(self, error: Exception) -> Decision:
        with self._lock:
            self.unlimited += 1
            self._ask_again_at = time.monotonic() + RETRY_AFTER_SECONDS
            passed = self.unlimited
        logger.warning(
            "rate-limit.unavailable",
            error=repr(error),
            unlimited_requests=passed,
            remedy="requests pass without a limit until REDIS_URL answers",
        )
        return NO_LIMIT

    def close(self) -> None:
        """Give connections back."""
        self._client.close()
