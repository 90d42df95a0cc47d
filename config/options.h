/* SPDX-License-Identifier: Apache-2.0 */
/* What one row of the option table says; shared by the files of this folder. */
#ifndef PD_CONFIG_OPTIONS_H
#define PD_CONFIG_OPTIONS_H

#include "config/config.h"

typedef enum {
    PD__STRING,
    PD__UINT,    /* whole number */
    PD__BYTES,   /* whole number with an optional suffix K, M, G, T (powers of 1024) */
    PD__SECONDS, /* whole number of seconds */
    PD__BOOL,
    PD__CHOICE, /* one of choices[]; held as a string */
} pd__kind;

enum {
    PD__SECRET = 1u << 0,   /* never printed */
    PD__NO_FILE = 1u << 1,  /* not a key of the JSON file */
    PD__JSON_TEXT = 1u << 2, /* text or a JSON object, kept as compact text */
    PD__KEYS = 1u << 3,     /* comma-separated, printable, no blanks */
};

typedef struct pd__option {
    const char *group;  /* heading; rows of one group stand together */
    const char *name;   /* long flag without its dashes; key and variable follow from it */
    const char *letter; /* short flag without its dash, or NULL */
    const char *arg;    /* what --help shows after the flag; NULL for booleans */
    pd__kind kind;
    size_t offset;      /* of the field in pd_config */
    uint64_t def;       /* UINT, BYTES, SECONDS, BOOL (0/1) */
    uint64_t min, max;  /* inclusive; for numbers */
    const char *def_text; /* STRING, CHOICE: the default value, or NULL */
    const char *const *choices; /* NULL-terminated */
    unsigned flags;
    const char *zero; /* what the value 0 means, or NULL */
    const char *doc;  /* one or two sentences, plain text */
} pd__option;

extern const pd__option pd__options[];
extern const size_t pd__n_options;

enum { PD__NAME_MAX = 64 }; /* longest variable or key, with its NUL */

/* "ctx-size" -> "ctx_size" and "PRESSD_CTX_SIZE"; buf has PD__NAME_MAX bytes. */
const char *pd__option_key(const pd__option *o, char *buf);
const char *pd__option_env(const pd__option *o, char *buf);

/* The field of a row. */
char **pd__field_text(const pd__option *o, pd_config *c);
uint64_t *pd__field_uint(const pd__option *o, pd_config *c);
bool *pd__field_bool(const pd__option *o, pd_config *c);

/* A size as people write it: the largest suffix that divides it ("1M", "1000"). */
void pd__put_bytes(pd_buf *out, uint64_t n);

/* The default as people write it; "" if there is none. */
void pd__put_default(pd_buf *out, const pd__option *o);

#endif
