/* Python objects as compact keys, and the Key type.
 *
 * No user code runs here: str, bytes and int are taken only as exact types, classes and
 * enum members by identity. */
#ifndef FTB_PY_KEY_H
#define FTB_PY_KEY_H

#include <Python.h>

#include "ftb_key.h"

extern PyTypeObject ftb_key_type;

/* A view and the room an int needs behind it. Borrowed from the object. */
struct ftb_object_key {
    struct ftb_keyview view;
    uint8_t scratch[8];
};

/* Fill *key from an object. Returns 1, 0 if the object is of no kind that can be a key,
 * or -1 with an exception (a str that is not valid Unicode text, an int past 64 bits). */
int ftb_object_key_try(PyObject *object, struct ftb_object_key *key);

/* The same, but no key at all raises UnsupportedKeyError: returns 0 or -1. */
int ftb_object_key_of(PyObject *object, struct ftb_object_key *key);

/* True if the object is never freed, so that its address is a name for ever. */
static inline int
ftb_is_immortal(PyObject *object)
{
#if PY_VERSION_HEX >= 0x030E0000
    return PyUnstable_IsImmortal(object);
#else
    return _Py_IsImmortal(object);
#endif
}

/* In a fork's child: whoever held the intern table is gone. */
void ftb_key_after_fork_child(void);

/* Make the type ready and add it to the module. */
int ftb_key_type_ready(PyObject *module);

#endif
