"""Faults: fork, exit, signals and subinterpreters while everything is at work.

Hunts for a lock that a fork's child inherits held, for threads that are waited for at
exit although nobody wakes them, for wake-ups that a signal swallows, and for state that
two interpreters share.
Mutants: none, as what these need breaks only with the processes and the interpreter
around the C core, and the fork handlers of the core have mutants that its own tests
catch (reclaim-fork-unlocked, reclaim-fork-keeps-slots).
"""

from typing import Any

import pytest
from builds import TSAN
from exits import EXITS
from stressing import counts, scaled

pytestmark = [
    pytest.mark.thread_unsafe(reason="starts processes"),
    pytest.mark.timeout(900),
]
no_forks = pytest.mark.skipif(
    TSAN, reason="ThreadSanitizer ends a child that starts threads"
)

FORKS = """
import contextlib, os, signal, threading, time, ftbus
bus = ftbus.EventBus(workers=2, queue_size=64, name="parent")
shared = ftbus.StripedMap()
bus.on("key", lambda event: None)
bus.on("encoded", lambda event: None, encoded=True)
stop = False
def work(index):
    n = 0
    while not stop:
        n += 1
        bus.emit("key", n)
        bus.emit("encoded", n)
        bus.post("key", n, partition=index if n % 2 else None)
        bus.subscribe(n % 10, lambda event: None).cancel()
        bus.topic(f"{index}.{n % 100}")
        shared[n % 100] = n
def in_child():
    assert bus.emit("key", 1) == 1 and bus.emit("encoded", 1) == 1
    bus.on("child", lambda event: None)
    assert bus.emit("child") == 1
    shared["child"] = 1
    with contextlib.suppress(ftbus.BusForkedError):
        bus.post("key")
    bus.stats()
    with ftbus.EventBus(workers=1) as own:
        own.on("key", lambda event: event)
        assert own.call("key", 5).result(30) == [5]
    assert bus.close() == 0
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
for n in range($forks):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends a child that hangs
        status = 1
        try:
            in_child()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, (n, status)
stop = True
for thread in threads:
    thread.join()
assert bus.drain(60)
stats = bus.stats()
assert stats.posted == stats.delivered, stats
assert shared._is_valid()
assert bus.close() == 0
"""


@no_forks
def test_two_hundred_forks_while_four_threads_emit_and_post(python: Any) -> None:
    program = FORKS.replace("$forks", str(scaled(200)))
    done = python(program, "-W", "ignore::DeprecationWarning", within=600)
    assert (done.returncode, done.stderr) == (0, "")
    counts.add(faults=scaled(200), threads=4)


def test_children_of_subprocess_and_spawn_have_buses_of_their_own(python: Any) -> None:
    done = python(
        """
import concurrent.futures, multiprocessing, subprocess, sys, ftbus
from ftbus import doctor
def main():
    bus = ftbus.EventBus(workers=1)
    bus.on("key", lambda event: event)
    bus.post("key")
    for n in range(3):
        done = subprocess.run([sys.executable, "-c", "import ftbus\\n"
            "with ftbus.EventBus(workers=1) as bus:\\n"
            "    bus.on('key', lambda event: event)\\n"
            "    print(bus.call('key', 5).result(30))"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "[5]\\n", ""), done
    # An exec of a program that knows nothing of us: no descriptor, no lock goes along.
    assert subprocess.run(["true"], preexec_fn=None).returncode == 0
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        keys = list(pool.map(ftbus.Key, ["a", "b"]))
    assert keys == [ftbus.Key("a"), ftbus.Key("b")]
    assert bus.drain(30)
    assert bus.close() == 0
if __name__ == "__main__":
    main()
""",
        within=300,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    counts.add(faults=3 + 1 + 2)


# Interpreter exit, again and again: the moment at which it hits differs.

# One process tries an exit several times over, in children of its own, as a start of
# an interpreter with ftbus takes longer than the exit.
REPEATED = """
import os, subprocess, sys
program = $program
for n in range($times):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True,
                          text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), (n, done)
"""


@pytest.mark.parametrize("program", EXITS.values(), ids=EXITS.keys())
def test_exit_is_quiet_and_ends_whatever_is_under_way(
    python: Any, program: str
) -> None:
    repeated = REPEATED.replace("$program", repr(program))
    done = python(repeated.replace("$times", str(scaled(4))), within=500)
    assert (done.returncode, done.stderr) == (0, "")
    counts.add(faults=scaled(4))


# Signals

TICKS = """
import contextlib, signal, threading, ftbus
ticks = 0
def tick(*args):
    global ticks
    ticks += 1
    bus.emit("tick", ticks)
    if ticks % 10 == 0:
        with contextlib.suppress(ftbus.QueueFullError):
            bus.post("tick", ticks, timeout=0)
signal.signal(signal.SIGALRM, tick)
with ftbus.EventBus(workers=2, queue_size=16) as bus:
    lock, seen = threading.Lock(), [0]
    def handle(event):
        with lock:
            seen[0] += 1
    bus.on("key", handle)
    bus.on("tick", lambda event: None)
    signal.setitimer(signal.ITIMER_REAL, $pause, $pause)
    executor = bus.executor()
    for round in range($rounds):
        bus.post_many("key", range(50))            # waits for space
        for n in range(50):
            bus.post("key", n, partition=n % 3)    # so does this
        assert bus.drain(60)                       # and this for the workers
        assert bus.call("key").result(60) == [None]
        assert executor.submit(int).result(60) == 0
        with bus.subscribe("key", lambda event: None) as subscription:
            bus.post("key")
            subscription.cancel(wait=True)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert bus.drain(60)
    assert seen[0] == $rounds * 102, seen
    stats = bus.stats()
    assert stats.posted == stats.delivered + stats.rejected, stats
print(ticks)
"""


def test_ticks_every_millisecond_lose_no_wake_up(python: Any) -> None:
    """The signal's handler runs in the middle of every wait, and uses the bus."""
    # Instrumented, the handler takes longer than that, and nothing else would run.
    pause = "0.02" if TSAN else "0.001"
    script = TICKS.replace("$rounds", str(scaled(100))).replace("$pause", pause)
    done = python(script, within=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 0
    counts.add(events=scaled(100) * 102, faults=int(done.stdout))


INTERRUPTS = """
import random, signal, threading, ftbus
choices = random.Random($seed)
main = threading.main_thread().ident
heard = 0
for n in range($rounds):
    entered, leave = threading.Event(), threading.Event()
    with ftbus.EventBus(workers=1, queue_size=1) as bus:
        bus.on("key", lambda event: (entered.set(), leave.wait(300)))
        bus.post("key")
        entered.wait()
        bus.post("key")  # the queue is full now
        wait = choices.choice([
            bus.drain,
            lambda: bus.post("key"),
            lambda: bus.call("key").result(),
            lambda: bus.executor().submit(int).result(),
            lambda: bus.close(timeout=300),
        ])
        def interrupt():
            threading.Event().wait(choices.random() * 0.003)
            signal.pthread_kill(main, signal.SIGINT)
        thread = threading.Thread(target=interrupt)
        try:
            try:
                thread.start()
                wait()
            finally:
                thread.join()
        except KeyboardInterrupt:
            heard += 1
        leave.set()
        assert bus.close(timeout=60) == 0
        stats = bus.stats()
        assert stats.delivered == 2, stats
        assert stats.posted == 2 + stats.rejected, stats
assert heard == $rounds, heard
"""


def test_interrupts_end_every_wait_and_lose_nothing(python: Any, seed: int) -> None:
    program = INTERRUPTS.replace("$seed", str(seed))
    done = python(program.replace("$rounds", str(scaled(100))), within=300)
    assert (done.returncode, done.stderr) == (0, "")
    counts.add(faults=scaled(100), threads=2 * scaled(100))


TERMINATED = """
import os, signal, threading, ftbus
bus = ftbus.EventBus(workers=2, queue_size=64)
lock, seen = threading.Lock(), [0]
def handle(event):
    with lock:
        seen[0] += 1
bus.on("key", handle)
left = []
signal.signal(signal.SIGTERM, lambda *args: left.append(bus.close(timeout=60)))
def post():
    while True:
        try:
            bus.post("key")
        except ftbus.BusClosedError:
            return
threads = [threading.Thread(target=post) for _ in range(2)]
for thread in threads:
    thread.start()
def terminate():
    while not seen[0]:
        threading.Event().wait(0.001)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=terminate).start()
for thread in threads:
    thread.join()
while not left:
    threading.Event().wait(0.001)
stats = bus.stats()
assert left == [0] and stats.delivered == seen[0] and not stats.pending, (left, stats)
assert stats.posted == stats.delivered + stats.rejected, stats
"""


def test_sigterm_that_closes_drains(python: Any) -> None:
    for _ in range(scaled(5)):
        done = python(TERMINATED)
        assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
        counts.add(faults=1)


SUBINTERPRETERS = """
import _interpreters, threading, ftbus
bus = ftbus.EventBus(workers=2)
bus.on("key", lambda event: None)
stop = False
def work():
    while not stop:
        bus.emit("key")
        bus.post("key")
        bus.drain()
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
for n in range($times):
    other = _interpreters.create()
    failure = _interpreters.run_string(other, '''
for module in ("ftbus", "ftbus._core"):
    try:
        __import__(module)
    except ImportError as error:
        assert "subinterpreters" in str(error), error
    else:
        raise AssertionError("imported")
''')
    assert failure is None, failure
    _interpreters.destroy(other)
stop = True
for thread in threads:
    thread.join()
assert bus.drain(60)
assert bus.close() == 0
"""


@pytest.mark.skipif(
    TSAN, reason="CPython's types race when a subinterpreter is made beside threads"
)
def test_subinterpreters_are_refused_again_and_again(python: Any) -> None:
    program = SUBINTERPRETERS.replace("$times", str(scaled(20)))
    done = python(program, "-W", "ignore", within=300)
    assert (done.returncode, done.stderr) == (0, "")
    counts.add(faults=scaled(20))
