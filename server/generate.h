/* SPDX-License-Identifier: Apache-2.0 */
/* What completions and chat share: decode, submit, collect or stream, answer.
 * They differ in the shape of a choice, which is a small table of functions. */
#ifndef PD_SERVER_GENERATE_H
#define PD_SERVER_GENERATE_H

#include "server/call.h"
#include "server/dialect.h"
#include "server/http.h"
#include "server/logprobs.h"
#include "server/request.h"
#include "server/tool_calls.h"

#include <time.h>

typedef struct pd_gen pd_gen;

/* One member of "choices". */
typedef struct pd_answer {
    pd_gen *gen;
    size_t index;         /* its "index" */
    pd_call *call;        /* NULL before submit and after the end */
    const pd_echo *echo;  /* its prompt, NULL unless it is given back; in gen->rq */
    size_t n_echoed;      /* tokens of it that a stream gave back */
    size_t n_out;
    size_t n_chars;       /* code points of the answer so far, those of the echo included */
    double logprob_sum;   /* for best_of */
    uint64_t token_ns;
    pd_buf text;          /* the answer, or the scratch of one take */
    pd_buf chat_logprobs; /* entries of a whole chat reply */
    pd_logprob_lists lists;
    pd_tool_reader *reader; /* parts tool calls from the text, NULL = there are no tools */
    pd_block_state blocks;  /* for dialects */
    bool opened, done;    /* the opening chunk went out; counted, and its end went out */
} pd_answer;

typedef struct pd_shape {
    pd_request_kind kind;
    const pd_dialect *dialect; /* NULL, or what stands in place of the functions below */
    const char *id_prefix, *object, *chunk_object;
    /* Append one member of "choices".  finish NULL = null. */
    void (*whole)(pd_answer *a, pd_buf *out, const char *finish);
    /* A chunk with prompt tokens [from, to) of an answer with an echo; NULL: has none. */
    void (*echo)(pd_answer *a, pd_buf *out, size_t from, size_t to);
    /* Members behind "choices", with their comma, of a whole reply; NULL: none. */
    void (*members)(pd_gen *g, pd_buf *out);
    /* The chunk before the first token, NULL if there is none. */
    void (*opening)(pd_answer *a, pd_buf *out);
    /* ev NULL: text let go at the end, or (len 0) the chunk with the finish reason. */
    void (*chunk)(pd_answer *a, pd_buf *out, const pd_token_event *ev, const char *text, size_t len,
                  const char *finish);
    /* A token of a whole reply, for its logprobs; only called when asked for. */
    void (*collect)(pd_answer *a, const pd_token_event *ev);
} pd_shape;

/* State of one generation request; q->state.  Thread: loop, after decoding. */
struct pd_gen {
    const pd_shape *shape; /* NULL for explain */
    struct pd_server *srv;
    pd_request rq;
    pd_answer *answer;     /* [n_answer]: best_of of the first prompt, of the second ... */
    size_t n_answer, n_done, turn; /* turn: whose token a stream sends next */
    char id[48];
    time_t created;
    size_t n_prompt, n_out; /* tokens of all prompts and answers */
    size_t n_event;        /* for dialects: events sent */
    pd_buf asked;          /* members that repeat the request */
    pd_buf said, told;     /* for streams that repeat them: the text of the open block; blocks that are over */
    uint64_t submit_ns;
    pd_err failed;         /* ended by us: timeout */
};

/* What decoding a request needs to know of the server.  Thread: any. */
pd_request_env pd_gen_env(const struct pd_server *s);

/* For pd_route.decode.  shape NULL: explain; the kind is told by "messages". */
pd_status pd_gen_decode(pd_req *q, const pd_shape *shape, pd_err *err);
/* For pd_route.run. */
void pd_gen_run(pd_req *q);

/* `"usage":...,"kv_cache":...,"timings":...` of the whole request, usage only if asked;
 * all its answers are there. */
void pd_gen_meta(pd_gen *g, pd_buf *out, bool usage);

/* Submit g->rq; on_event as in pd_call_submit.  On failure the error was replied. */
pd_status pd_gen_submit(pd_req *q, void (*on_event)(pd_req *q, pd_call *call));
void pd_gen_end(pd_gen *g); /* let all its jobs go; those not done are cancelled */
void pd_gen_expired(pd_req *q); /* for pd_req.expired */
/* The job's failure as an error; PD_OK when it ended well. */
pd_status pd_gen_outcome(const pd_job_result *r, pd_err *err);

#endif
