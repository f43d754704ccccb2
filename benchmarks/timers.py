"""How late timers are: python benchmarks/timers.py [--timers 2000] [--seconds 4]."""

import argparse
import random
import statistics
import time

from ftbus import EventBus


def lateness_us(timers: int, seconds: float) -> list[float]:
    """Return how late the handlers of so many timers ran, in microseconds."""
    late: list[float] = []
    with EventBus(workers=1) as bus:
        bus.on("key", lambda when: late.append(1e6 * (time.monotonic() - when)))
        for _ in range(timers):
            delay = random.uniform(0.1, seconds)
            bus.post_later(delay, "key", time.monotonic() + delay)
        time.sleep(seconds + 0.1)
        bus.drain()
    return late


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timers", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=4.0)
    options = parser.parse_args()
    late = lateness_us(options.timers, options.seconds)
    cuts = statistics.quantiles(late, n=100)
    print(
        f"{len(late)} timers in {options.seconds} s, handlers late by "
        f"p50 {cuts[49]:.0f} us, p99 {cuts[98]:.0f} us, max {max(late):.0f} us"
    )


if __name__ == "__main__":
    main()
