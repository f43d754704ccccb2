"""CPython's own tests of ThreadPoolExecutor, run against BusExecutor."""

import contextlib
import unittest
from collections.abc import Callable
from typing import Any

import pytest
from dispatching import WAIT

from ftbus import EventBus
from ftbus.executor import BusExecutor

pytest.importorskip("test.support")
executor_tests = pytest.importorskip("test.test_concurrent_futures.executor")
util = pytest.importorskip("test.test_concurrent_futures.util")
thread_pool = pytest.importorskip("test.test_concurrent_futures.test_thread_pool")
shutdown = pytest.importorskip("test.test_concurrent_futures.test_shutdown")
init = pytest.importorskip("test.test_concurrent_futures.test_init")
waiting = pytest.importorskip("test.test_concurrent_futures.test_wait")
completed = pytest.importorskip("test.test_concurrent_futures.test_as_completed")

pytestmark = pytest.mark.thread_unsafe(reason="counts the threads of the process")


class OwnBusExecutor(BusExecutor):
    """A BusExecutor with a bus of its own, constructed like a ThreadPoolExecutor."""

    def __init__(
        self,
        max_workers: int = 4,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        bus = EventBus(workers=max_workers, on_error=lambda e, k, h: None)
        super().__init__(bus, initializer, initargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait, cancel_futures=cancel_futures)
        if wait:
            self._bus.close(timeout=WAIT)


class Mixin(util.ExecutorMixin):  # type: ignore[misc]
    executor_type = OwnBusExecutor

    def create_event(self) -> Any:
        return util.threading.Event()


class TestExecutor(Mixin, executor_tests.ExecutorTest, util.BaseTestCase):  # type: ignore[misc]
    test_map_timeout = None  # six seconds; ours is in tests/test_executor.py
    test_map_submits_without_iteration = (
        thread_pool.ThreadPoolExecutorTest.test_map_submits_without_iteration
    )
    test_map_current_future_cancel = (
        thread_pool.ThreadPoolExecutorTest.test_executor_map_current_future_cancel
    )


class TestShutdown(Mixin, util.BaseTestCase):  # type: ignore[misc]
    """Those that run no program of their own; tests/test_executor.py has programs."""

    test_run_after_shutdown = shutdown.ExecutorShutdownTest.test_run_after_shutdown
    test_hang_issue12364 = shutdown.ExecutorShutdownTest.test_hang_issue12364
    test_hang_gh94440 = shutdown.ExecutorShutdownTest.test_hang_gh94440


class TestInitializer(Mixin, init.InitializerMixin, unittest.TestCase):  # type: ignore[misc]
    pass


class TestFailingInitializer(  # type: ignore[misc]
    Mixin, init.FailingInitializerMixin, unittest.TestCase
):
    def _assert_logged(self, message: str) -> Any:
        """Do without: ours goes to on_error, see tests/test_executor.py."""
        return contextlib.nullcontext()


class TestWait(Mixin, waiting.WaitTests, util.BaseTestCase):  # type: ignore[misc]
    pass


class TestAsCompleted(Mixin, completed.AsCompletedTests, util.BaseTestCase):  # type: ignore[misc]
    pass
