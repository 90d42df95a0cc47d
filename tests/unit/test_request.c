/* SPDX-License-Identifier: Apache-2.0 */
/* Requests: what is accepted, what it becomes, what is refused and under which name.
 * Their compression: test_request_compression.c. */
#include "engine/run/engine.h"
#include "server/request.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/request_case.h"

static void test_defaults(void **state) {
    pd_request r;
    completion("{\"prompt\":\"hi\"}", &r);
    assert_int_equal(r.max_tokens, 16);
    assert_true(r.max_given);
    assert_int_equal(r.n_logprobs, -1);
    assert_true(r.sampling.temperature == 1.0f && r.sampling.top_p == 1.0f &&
                r.sampling.top_k == 0);
    assert_false(r.seed_given);
    assert_null(r.prompt->compression);
    const uint64_t seed = r.sampling.seed;
    pd_request_done(&r);
    completion("{\"prompt\":\"hi\"}", &r);
    assert_true(seed != r.sampling.seed); /* drawn anew */
    pd_request_done(&r);
    pd_err err = {0};
    assert_int_equal(
        decode("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}", PD_REQUEST_CHAT, &r, &err),
        PD_OK);
    assert_false(r.max_given); /* chat: as many as fit */
    assert_true(r.add_generation_prompt);
    pd_request_done(&r);
}

static void test_fields(void **state) {
    pd_request r;
    completion("{\"prompt\":[1,2.0,259],\"max_tokens\":5.0,\"max_completion_tokens\":7,"
               "\"temperature\":0,\"top_p\":0.5,"
               "\"top_k\":-1,\"min_p\":0.1,\"seed\":-3,\"stop\":[\"a\",\"bb\"],\"logprobs\":100,"
               "\"ignore_eos\":true,"
               "\"stream\":true,\"stream_options\":{\"include_usage\":true,\"continuous_usage_"
               "stats\":true},\"verbose\":true}",
               &r);
    assert_int_equal(r.prompt->ids.n, 3);
    assert_int_equal(r.prompt->ids.id[1], 2);
    assert_int_equal(r.max_tokens, 7); /* the newer name wins */
    assert_true(r.sampling.temperature == 0.0f && r.sampling.min_p == 0.1f);
    assert_true(r.sampling.seed == (uint64_t)-3 && r.seed_given);
    assert_int_equal(r.n_stop, 2);
    assert_int_equal(r.stop[1].len, 2);
    assert_int_equal(r.n_logprobs, 100);
    assert_true(r.stream && r.include_usage && r.continuous_usage && r.ignore_eos && r.verbose);
    pd_job_params p;
    pd_request_params(&r, 0, &p);
    assert_int_equal(p.n_tokens, 3);
    assert_string_equal(p.stop[1].text, "bb");
    pd_request_done(&r);
}

static void test_choices(void **state) {
    pd_request r;
    completion("{\"prompt\":[\"a\",[1,2],\"\"],\"n\":3,\"seed\":5,\"compression\":\"knorm@0.5\"}", &r);
    assert_int_equal(r.n_prompt, 3);
    assert_int_equal(r.n, 3);
    assert_int_equal(r.best_of, 3);
    assert_string_equal(r.prompt[0].text, "a");
    assert_null(r.prompt[1].text);
    assert_int_equal(r.prompt[1].ids.n, 2);
    assert_int_equal(r.prompt[2].text_len, 0);
    for (size_t i = 0; i < 3; i++) {
        pd_job_params p;
        pd_request_params(&r, i, &p);
        assert_ptr_equal(p.compression, r.prompt[i].compression);
        assert_non_null(p.compression);
        if (i) assert_ptr_not_equal(p.compression, r.prompt[0].compression); /* each job owns its own */
        assert_int_equal(p.follows, i > 0);
        assert_int_equal(p.n_logprobs, -1);
    }
    pd_request_done(&r);

    completion("{\"prompt\":[[7]],\"n\":2,\"best_of\":20}", &r);
    pd_job_params p;
    pd_request_params(&r, 0, &p);
    assert_int_equal(p.n_logprobs, 0); /* what the best are told by */
    assert_int_equal(r.n_logprobs, -1);
    pd_request_done(&r);

    pd_err err = {0};
    assert_int_equal(decode("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"n\":128}", PD_REQUEST_CHAT, &r, &err), PD_OK);
    assert_int_equal(r.best_of, 128);
    pd_request_done(&r);
    refuse("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"best_of\":2}", PD_REQUEST_CHAT, "best_of");
    refuse("{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"echo\":true}", PD_REQUEST_CHAT, "echo");

    pd_buf many = {0};
    pd_buf_puts(&many, "{\"prompt\":[\"a\"");
    for (int i = 1; i < PD_REQUEST_PROMPTS_MAX; i++) pd_buf_puts(&many, ",\"a\"");
    pd_buf_puts(&many, "]}");
    completion(many.data, &r); /* exactly the bound */
    pd_request_done(&r);
    many.len -= 2;
    pd_buf_puts(&many, ",[5]]}");
    refuse(many.data, PD_REQUEST_COMPLETION, "prompt");
    pd_buf_done(&many);
}

static void test_adjust(void **state) {
    pd_request r;
    completion("{\"prompt\":\"x\",\"logit_bias\":{\"7\":-100,\"259\":0.5,\"3\":null},\"presence_penalty\":-2,"
               "\"frequency_penalty\":0.25,\"repetition_penalty\":2,\"min_tokens\":16,\"stop_token_ids\":[0,259.0]}",
               &r);
    pd_job_params p;
    pd_request_params(&r, 0, &p);
    assert_int_equal(p.adjust.n_bias, 3);
    float sum = 0;
    for (size_t i = 0; i < 3; i++) {
        const pd_token_bias *b = &p.adjust.bias[i];
        assert_true(b->bias == (b->id == 7 ? -100.0f : b->id == 259 ? 0.5f : 0.0f));
        sum += b->bias;
    }
    assert_true(sum == -99.5f);
    assert_true(p.adjust.presence == -2.0f && p.adjust.frequency == 0.25f && p.adjust.repetition == 2.0f);
    assert_int_equal(p.adjust.min_tokens, 16);
    assert_int_equal(p.n_stop_id, 2);
    assert_int_equal(p.stop_id[1], 259);
    pd_request_done(&r);

    pd_buf many = {0}; /* one over the bound */
    pd_buf_puts(&many, "{\"prompt\":\"x\",\"stop_token_ids\":[0");
    for (int i = 0; i < PD_STOP_IDS_MAX; i++) pd_buf_puts(&many, ",0");
    pd_buf_puts(&many, "]}");
    refuse(many.data, PD_REQUEST_COMPLETION, "stop_token_ids");
    pd_buf_clear(&many);
    pd_buf_puts(&many, "{\"prompt\":\"x\",\"logit_bias\":{\"0\":0");
    for (int i = 0; i < PD_BIAS_MAX; i++) pd_buf_printf(&many, ",\"%d\":0", i + 1);
    pd_buf_puts(&many, "}}");
    refuse(many.data, PD_REQUEST_COMPLETION, "logit_bias");
    pd_buf_done(&many);
}

static void test_nulls(void **state) {
    pd_request r;
    completion("{\"prompt\":\"x\",\"stop\":null,\"seed\":null,\"n\":null,\"stream_options\":null,"
               "\"compression\":null,"
               "\"logprobs\":null,\"model\":null,\"echo\":null,\"tools\":null}",
               &r);
    pd_request_done(&r);
}

static void test_refused(void **state) {
    static const struct { const char *body, *param;
    } c[] = {
        {"{}", "prompt"},
        {"{\"prompt\":[260]}", "prompt[0]"},
        {"{\"prompt\":[0,-1]}", "prompt[1]"},
        {"{\"prompt\":[0,1e30]}", "prompt[1]"},
        {"{\"prompt\":[]}", "prompt"},
        {"{\"prompt\":[[]]}", "prompt[0]"},
        {"{\"prompt\":[\"a\",5]}", "prompt[1]"},
        {"{\"prompt\":[[1],[2,260]]}", "prompt[1][1]"},
        {"{\"prompt\":[[[1]]]}", "prompt[0][0]"},
        {"{\"prompt\":{}}", "prompt"},
        {"{\"prompt\":\"x\",\"max_tokens\":2147483648}", "max_tokens"},
        {"{\"prompt\":\"x\",\"max_tokens\":-1}", "max_tokens"},
        {"{\"prompt\":\"x\",\"max_tokens\":0.5}", "max_tokens"},
        {"{\"prompt\":\"x\",\"max_tokens\":1e308}", "max_tokens"},
        {"{\"prompt\":\"x\",\"temperature\":2.0000001}", "temperature"},
        {"{\"prompt\":\"x\",\"temperature\":-0.1}", "temperature"},
        {"{\"prompt\":\"x\",\"top_p\":0}", "top_p"},
        {"{\"prompt\":\"x\",\"top_k\":9223372036854775807}", "top_k"},
        {"{\"prompt\":\"x\",\"min_p\":2}", "min_p"},
        {"{\"prompt\":\"x\",\"seed\":0.5}", "seed"},
        {"{\"prompt\":\"x\",\"stop\":[\"\"]}", "stop[0]"},
        {"{\"prompt\":\"x\",\"stop\":[\"a\",\"a\",\"a\",\"a\",\"a\"]}", "stop"},
        {"{\"prompt\":\"x\",\"stop\":{}}", "stop"},
        {"{\"prompt\":\"x\",\"logprobs\":101}", "logprobs"},
        {"{\"prompt\":\"x\",\"stream\":\"yes\"}", "stream"},
        {"{\"prompt\":\"x\",\"stream\":true,\"stream_options\":{\"include_usage\":1}}",
         "stream_options.include_usage"},
        {"{\"prompt\":\"x\",\"stream_options\":{}}", "stream_options"},
        {"{\"prompt\":\"x\",\"ignore_eos\":0}", "ignore_eos"},
        {"{\"prompt\":\"x\",\"n\":129}", "n"},
        {"{\"prompt\":\"x\",\"n\":0}", "n"},
        {"{\"prompt\":\"x\",\"n\":\"1\"}", "n"},
        {"{\"prompt\":[\"x\",\"y\"],\"n\":65}", "n"},
        {"{\"prompt\":\"x\",\"best_of\":21}", "best_of"},
        {"{\"prompt\":\"x\",\"best_of\":2,\"n\":3}", "best_of"},
        {"{\"prompt\":\"x\",\"best_of\":2,\"stream\":true}", "best_of"},
        {"{\"prompt\":[\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\"],\"best_of\":20}", "best_of"},
        {"{\"prompt\":\"x\",\"echo\":1}", "echo"},
        {"{\"prompt\":\"x\",\"prompt_logprobs\":101}", "prompt_logprobs"},
        {"{\"prompt\":\"x\",\"prompt_logprobs\":true}", "prompt_logprobs"},
        {"{\"prompt\":\"x\",\"prompt_logprobs\":1,\"stream\":true}", "prompt_logprobs"},
        {"{\"prompt\":\"x\",\"suffix\":\"y\"}", "suffix"},
        {"{\"prompt\":\"x\",\"logit_bias\":[1,2]}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"260\":2}}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"-1\":2}}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"\":2}}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"1 \":2}}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"18446744073709551617\":2}}", "logit_bias"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"1\":100.5}}", "logit_bias.1"},
        {"{\"prompt\":\"x\",\"logit_bias\":{\"1\":\"2\"}}", "logit_bias.1"},
        {"{\"prompt\":\"x\",\"presence_penalty\":2.1}", "presence_penalty"},
        {"{\"prompt\":\"x\",\"frequency_penalty\":-2.1}", "frequency_penalty"},
        {"{\"prompt\":\"x\",\"frequency_penalty\":\"1\"}", "frequency_penalty"},
        {"{\"prompt\":\"x\",\"repetition_penalty\":0}", "repetition_penalty"},
        {"{\"prompt\":\"x\",\"repetition_penalty\":2.5}", "repetition_penalty"},
        {"{\"prompt\":\"x\",\"repeat_penalty\":1.5}", "repeat_penalty"},
        {"{\"prompt\":\"x\",\"min_tokens\":17}", "min_tokens"},
        {"{\"prompt\":\"x\",\"min_tokens\":-1}", "min_tokens"},
        {"{\"prompt\":\"x\",\"stop_token_ids\":5}", "stop_token_ids"},
        {"{\"prompt\":\"x\",\"stop_token_ids\":[1,260]}", "stop_token_ids[1]"},
        {"{\"prompt\":\"x\",\"stop_token_ids\":[\"1\"]}", "stop_token_ids[0]"},
        {"{\"prompt\":\"x\",\"tool_choice\":\"required\"}", "tool_choice"},
        {"{\"prompt\":\"x\",\"response_format\":{\"type\":\"json_schema\"}}", "response_format"},
        {"{\"prompt\":\"x\",\"model\":[]}", "model"},
        {"{\"prompt\":\"x\",\"model\":\"m@x@knorm:0.5\",\"compression\":\"knorm@0.5\"}",
         "compression"},
    };
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++)
        refuse(c[i].body, PD_REQUEST_COMPLETION, c[i].param);
}

static void test_neutral_values(void **state) {
    pd_request r;
    completion(
        "{\"prompt\":\"x\",\"n\":1,\"best_of\":1.0,\"echo\":false,\"suffix\":\"\",\"logit_bias\":{}"
        ","
        "\"presence_penalty\":0.0,\"frequency_penalty\":0,\"repetition_penalty\":1.0,\"tools\":[],"
        "\"tool_choice\":\"auto\",\"response_format\":{\"type\":\"text\"},\"user\":\"u\","
        "\"metadata\":{},\"zzz\":[{}]}",
        &r);
    pd_request_done(&r);
}

static void test_messages(void **state) {
    pd_request r;
    pd_err err = {0};
    const char *text = "{\"messages\":[{\"role\":\"developer\",\"content\":\"s\"},{\"role\":"
                       "\"user\",\"name\":\"n\",\"content\":"
                       "[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]},{"
                       "\"role\":\"assistant\",\"content\":null}],"
                       "\"logprobs\":true,\"top_logprobs\":5}";
    assert_int_equal(decode(text, PD_REQUEST_CHAT, &r, &err), PD_OK);
    assert_int_equal(r.n_msg, 3);
    assert_string_equal(r.msg[0].role, "system");
    assert_string_equal(r.msg[1].content, "a\nb");
    assert_string_equal(r.msg[2].content, "");
    assert_int_equal(r.n_logprobs, 5);
    pd_request_done(&r);
    static const struct { const char *body, *param;
    } c[] = {
        {"{}", "messages"},
        {"{\"messages\":{}}", "messages"},
        {"{\"messages\":[]}", "messages"},
        {"{\"messages\":[[]]}", "messages[0]"},
        {"{\"messages\":[{\"role\":1,\"content\":\"\"}]}", "messages[0].role"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"\"},{\"role\":\"user\"}]}",
         "messages[1].content"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":7}]}", "messages[0].content"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[\"x\"]}]}", "messages[0].content[0]"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\"}]}]}",
         "messages[0].content[0]"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"input_audio\"}]}]}",
         "messages[0].content[0]"},
        {"{\"messages\":[{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{}]}]}",
         "messages[0].tool_calls[0]"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":{}}]}", "messages[0].tool_calls"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{\"name\":\"f\","
         "\"arguments\":5}}]}]}",
         "messages[0].tool_calls[0]"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"id\":5,\"function\":{\"name\":\"f\"}}]}]}",
         "messages[0].tool_calls[0]"},
        {"{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"type\":\"x\",\"function\":{\"name\":\"f\"}}]}]}",
         "messages[0].tool_calls[0]"},
        {"{\"messages\":[{\"role\":\"tool\",\"content\":\"x\",\"tool_call_id\":5}]}", "messages[0].tool_call_id"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tools\":[{}]}", "tools[0]"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"tool_choice\":\"required\"}",
         "tool_choice"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"documents\":[5]}", "documents"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"reasoning_effort\":5}",
         "reasoning_effort"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"chat_template_kwargs\":5}",
         "chat_template_kwargs"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"chat_template_kwargs\":"
         "{\"messages\":[]}}",
         "chat_template_kwargs"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"top_logprobs\":1}",
         "top_logprobs"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"max_tokens\":0}", "max_tokens"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"x\"}],\"continue_final_message\":true,"
         "\"add_generation_prompt\":true}",
         "continue_final_message"},
    };
    for (size_t i = 0; i < sizeof c / sizeof c[0]; i++)
        refuse(c[i].body, PD_REQUEST_CHAT, c[i].param);
}

static void test_tokenize(void **state) {
    pd_engine_opts o = {.model_path = "fake"};
    pd_engine *e = NULL;
    assert_int_equal(pd_engine_open(&e, &o, NULL, NULL, NULL), PD_OK);
    const pd_request_env env = {.model_id = "m", .press_model = &model, .n_vocab = 260,
                                .tok = pd_engine_tokenizer(e), .chat = pd_engine_chat(e)};
    pd_request r;
    pd_err err = {0};
    assert_int_equal(decode_env("{\"messages\":[{\"role\":\"system\",\"content\":\"s\"},{\"role\":"
                                "\"user\",\"content\":\"u\"}]}",
                                PD_REQUEST_CHAT, &env, &r, &err),
                     PD_OK);
    assert_int_equal(pd_request_tokenize(&r, &env, &err), PD_OK);
    assert_true(r.has_marks);
    assert_int_equal(r.marks.system_begin, 0);
    assert_int_equal(r.marks.last_user_begin, r.marks.system_end);
    pd_request_trim(&r); /* what the engine copied is not needed any more */
    assert_null(r.body);
    pd_request_done(&r);

    assert_int_equal(decode_env("{\"messages\":[{\"role\":\"tool\",\"content\":\"s\"}]}",
                                PD_REQUEST_CHAT, &env, &r, &err),
                     PD_OK);
    assert_int_equal(pd_request_tokenize(&r, &env, &err), PD_EINVAL);
    assert_string_equal(err.param, "messages[0].role");
    pd_request_done(&r);
    pd_request_env bare = env;
    bare.chat = NULL;
    err = (pd_err){0};
    assert_int_equal(decode_env("{\"messages\":[{\"role\":\"user\",\"content\":\"s\"}]}",
                                PD_REQUEST_CHAT, &bare, &r, &err),
                     PD_OK);
    assert_int_equal(pd_request_tokenize(&r, &bare, &err), PD_EINVAL);
    pd_request_done(&r);
    pd_engine_close(e);
}

/* What the engine is asked to score, and the bound of it. */
static void test_scores(void **state) {
    static const struct { const char *fields; bool score; size_t top; } t[] = {
        {"\"echo\":true", false, 0},
        {"\"logprobs\":5", false, 0},
        {"\"echo\":true,\"logprobs\":0", true, 0},
        {"\"echo\":true,\"logprobs\":5", true, 5},
        {"\"prompt_logprobs\":0", true, 0},
        {"\"prompt_logprobs\":7,\"echo\":true,\"logprobs\":3", true, 7},
        {"\"prompt_logprobs\":2,\"echo\":true,\"logprobs\":3", true, 3},
        {"\"prompt_logprobs\":null,\"echo\":null", false, 0},
    };
    pd_engine_opts o = {.model_path = "fake"};
    pd_engine *e = NULL;
    assert_int_equal(pd_engine_open(&e, &o, NULL, NULL, NULL), PD_OK);
    const pd_request_env env = {.model_id = "m", .press_model = &model, .n_vocab = 260, .tok = pd_engine_tokenizer(e)};
    pd_request r;
    pd_job_params p;
    pd_err err = {0};
    for (size_t i = 0; i < sizeof t / sizeof t[0]; i++) {
        char body[200];
        snprintf(body, sizeof body, "{\"prompt\":\"x\",%s}", t[i].fields);
        completion(body, &r);
        pd_request_params(&r, 0, &p);
        if (p.score != t[i].score || p.score_top != t[i].top) fail_msg("%s", body);
        pd_request_done(&r);
    }
    for (size_t over = 0; over < 2; over++) { /* 5242 tokens (5243 with what comes first), 99 alternatives: 524300 > 524288 */
        pd_buf body = {0};
        pd_buf_puts(&body, "{\"prompt_logprobs\":99,\"prompt\":[0");
        for (size_t i = 1; i < 5242 + over; i++) pd_buf_puts(&body, ",0");
        pd_buf_puts(&body, "]}");
        assert_int_equal(decode_env(body.data, PD_REQUEST_COMPLETION, &env, &r, &err), PD_OK);
        assert_int_equal(pd_request_tokenize(&r, &env, &err), over ? PD_EINVAL : PD_OK);
        pd_request_done(&r);
        pd_buf_done(&body);
    }
    assert_string_equal(err.param, "prompt_logprobs");
    assert_non_null(strstr(err.msg, "524288"));

    /* The echo's pieces: a code point of two tokens, a special token, the BOS before a text. */
    err = (pd_err){0};
    static const pd_echo_cut text[] = {{0, 0}, {0, 0}, {1, 1}, {2, 1}, {3, 2}, {8, 7}}, ids[] = {{0, 0}, {5, 5}, {6, 6}};
    assert_int_equal(decode_env("{\"prompt\":[\"a\\u00e9<eos>\",[256,98]],\"echo\":true}", PD_REQUEST_COMPLETION, &env, &r, &err), PD_OK);
    assert_int_equal(pd_request_tokenize(&r, &env, &err), PD_OK);
    assert_int_equal(r.echoed[0].n, 5);
    assert_string_equal(r.echoed[0].text.data, "a\xc3\xa9<eos>");
    assert_string_equal(r.echoed[1].text.data, "<bos>b");
    assert_memory_equal(r.echoed[1].cut, ids, sizeof ids);
    for (size_t i = 0; i < 6; i++)
        if (i != 3) assert_memory_equal(&r.echoed[0].cut[i], &text[i], sizeof *text); /* 3: inside the code point */
    pd_request_trim(&r);
    assert_string_equal(r.echoed[1].text.data, "<bos>b"); /* still there while the answer is written */
    pd_request_done(&r);
    pd_engine_close(e);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_fields),
        cmocka_unit_test(test_choices),
        cmocka_unit_test(test_adjust),
        cmocka_unit_test(test_nulls),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_neutral_values),
        cmocka_unit_test(test_messages),
        cmocka_unit_test(test_tokenize),
        cmocka_unit_test(test_scores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
