"""Program text for tests that misuse the arena as only native code can."""

# steal(buffer): releases a frozen Buffer's memory once more than it was held.
STEAL = """
import ctypes
from ftbus.buffers import arena_api, handle_of
table = (ctypes.c_void_p * 24).from_address(arena_api)  # two words, then functions
release = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(table[2 + 15])
take = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p
)(table[2 + 20])
def steal(buffer):
    share = (ctypes.c_void_p * 3)()
    take(handle_of(buffer), None, 0, share)
    release(share[0])
    release(share[0])
"""
