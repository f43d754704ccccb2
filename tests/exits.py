"""Programs that end while a bus is at work: quietly, and soon.

Every sleep in them is longer than what a test waits for them: nobody waited for it.
"""

_PROLOGUE = """
import contextlib, sys, threading, time, ftbus
bus = ftbus.EventBus(workers=2)
"""
_ENDS = {
    "pending queue": """
bus.on("key", lambda event: None)
bus.post_many("key", range(50_000))
""",
    "sleeping handler": """
entered = threading.Event()
bus.on("key", lambda event: (entered.set(), time.sleep(600)))
bus.post("key")
entered.wait(30)
bus.post_many("key", range(100))
""",
    "four buses with sleeping handlers": """
buses = [ftbus.EventBus(workers=1) for _ in range(4)]
entered = threading.Semaphore(0)
for each in buses:
    each.on("key", lambda event: (entered.release(), time.sleep(600)))
    each.post("key")
for each in buses:
    entered.acquire(timeout=30)
""",
    "bus in a global": """
bus.on("key", lambda event: bus.stats())
bus.post_many("key", range(100))
""",
    "bus in a cycle": """
class Owner:
    def handle(self, event): pass
owner = Owner()
owner.bus, owner.topic = bus, bus.topic("key")
owner.subscription = bus.subscribe("key", owner.handle)
bus.post_many("key", range(100))
del owner, bus
""",
    "emit in atexit": """
import atexit
@atexit.register
def last():
    with contextlib.suppress(ftbus.BusClosedError):
        bus.emit("key")
    with contextlib.suppress(ftbus.BusClosedError):
        bus.post("key")
bus.on("key", lambda event: None)
bus.post("key")
""",
    "emit in a finalizer": """
class Late:
    def __del__(self, closed=ftbus.BusClosedError):
        try:
            self.bus.emit("key")
            self.bus.post("key")
        except closed:
            pass
late = Late()
late.bus = bus
bus.on("key", lambda event: None)
bus.post("key")
""",
    "pinned bus": """
bus.pin()
topic = bus.topic("key")
topic.on(lambda event: topic)
topic.post()
""",
    "daemon threads at work": """
topic = bus.topic("key")
topic.on(lambda event: None)
bus.on("encoded", lambda event: None, encoded=True)
def endless():
    with contextlib.suppress(ftbus.BusClosedError):
        while True:
            topic.emit()
            bus.emit("encoded", 1)
            bus.post("key", partition=1)
            bus.subscribe("other", lambda event: None).cancel()
for _ in range(3):
    threading.Thread(target=endless, daemon=True).start()
bus.post("key")
""",
    "timers, batches and an executor": """
bus.every(0.001, "key")
bus.on("key", lambda events: None, batch=(5, 0.01))
bus.on("key", lambda event: None, latest=True)
executor = bus.executor()
futures = [executor.submit(time.sleep, 0.001) for _ in range(20)]
bus.post_later(600, "key")
""",
    "call under way": """
bus.on("key", lambda event: time.sleep(600))
future = bus.call("key")
""",
    "system exit in the main thread": """
bus.on("key", lambda event: None)
bus.post("key")
sys.exit(0)
""",
}
EXITS = {name: _PROLOGUE + end for name, end in _ENDS.items()}
