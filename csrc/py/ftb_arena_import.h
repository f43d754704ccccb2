/* The arena's table for a C extension: call ftb_arena_api_import in its exec slot. */
#ifndef FTB_ARENA_IMPORT_H
#define FTB_ARENA_IMPORT_H

#include <Python.h>

#include "ftb_arena_api.h"

/* Import ftbus and use its arena. 0, or -1 with ImportError set. The caller is attached
 * to the interpreter. */
static inline int
ftb_arena_api_import(void)
{
    const void *table = PyCapsule_Import("ftbus._core._arena_api", 0);
    if (table == NULL) {
        return -1;
    }
    if (!ftb_arena_api_use(table)) {
        PyErr_Format(
            PyExc_ImportError,
            "this extension was compiled with headers of another ftbus (version %d of "
            "the arena's table, %zu bytes): compile it again with those in "
            "ftbus.get_include()",
            FTB_ARENA_API_VERSION, sizeof(ftb_arena_api_t));
        return -1;
    }
    return 0;
}

#endif
