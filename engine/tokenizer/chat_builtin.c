/* SPDX-License-Identifier: Apache-2.0 */
/* Templates by name, for --chat-template and for files that bring none: in our words
 * what each family's published template writes for text messages (tests/golden/chat.py
 * compares).  Tools are not in them; a model's own template has those. */
#include "engine/tokenizer/chat_int.h"

#include <string.h>

#define TURN(open, close) "{{ '" open "' + m.content + '" close "' }}"
#define CHATML_TURN "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
#define CHATML_ASK "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
#define CHATML "{% for m in messages %}" CHATML_TURN "{% endfor %}" CHATML_ASK
#define DEFAULTED(system)                                                                     \
    "{% if messages and messages[0].role != 'system' %}<|im_start|>system\n" system           \
    "<|im_end|>\n{{ '' }}{% endif %}"

/* What many want: user and assistant in turn behind an optional system message. */
#define SPLIT                                                                                 \
    "{% set has_system = messages[0].role == 'system' %}"                                     \
    "{% set talk = messages[1:] if has_system else messages %}"
#define MUST_ALTERNATE                                                                        \
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"                                   \
    "{{ raise_exception('user and assistant must take turns, the user first') }}{% endif %}"
#define TWO_ROLES                                                                             \
    "{% else %}{{ raise_exception('only user and assistant messages are taken') }}{% endif %}"

#define LLAMA3_HEADER "'<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n'"
#define LLAMA3_ASK "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{{ '' }}{% endif %}"

#define GEMMA_TURN(first)                                                                     \
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' }}" first  \
    "{{ m.content | trim }}<end_of_turn>\n"
#define GEMMA_ASK "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"

#define PHI3(system)                                                                          \
    "{% for m in messages %}{% if m.role == 'system'" system " %}" TURN("<|system|>\\n", "<|end|>\\n") \
    "{% elif m.role == 'user' %}" TURN("<|user|>\\n", "<|end|>\\n")                           \
    "{% elif m.role == 'assistant' %}" TURN("<|assistant|>\\n", "<|end|>\\n")                 \
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"

/* [INST] families: what stands around a user's message, around an answer, and which
 * user message takes the system message. */
#define INST(open, close, answer, which)                                                      \
    SPLIT "{{ bos_token }}{% for m in talk %}" MUST_ALTERNATE "{% if m.role == 'user' %}"     \
    "{{ '" open "' + (messages[0].content + '\\n\\n' if has_system and loop." which " else '') + m.content + '" close "' }}" \
    "{% elif m.role == 'assistant' %}{{ " answer " }}" TWO_ROLES "{% endfor %}"
#define INST_OLD(after)                                                                       \
    "{{ bos_token }}{% for m in messages %}" MUST_ALTERNATE "{% if m.role == 'user' %}"       \
    TURN("[INST] ", " [/INST]") "{% elif m.role == 'assistant' %}{{ m.content + eos_token" after " }}" TWO_ROLES "{% endfor %}"

const pd__chat_builtin pd__chat_builtins[] = {
    {"chatml", CHATML},
    {"smollm2", DEFAULTED("You are a helpful AI assistant named SmolLM, trained by Hugging Face") CHATML},
    {"qwen1.5", DEFAULTED("You are a helpful assistant") CHATML},
    {"qwen2", DEFAULTED("You are a helpful assistant.") CHATML},
    {"qwen2.5",
     "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful "
     "assistant.<|im_end|>\n{{ '' }}{% endif %}{% for m in messages %}{% if m.role == 'tool' %}"
     "{% if loop.first or loop.previtem.role != 'tool' %}<|im_start|>user{% endif %}"
     "{{ '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
     "{% if loop.last or loop.nextitem.role != 'tool' %}<|im_end|>\n{{ '' }}{% endif %}"
     "{% elif m.role in ['system', 'user', 'assistant'] %}" CHATML_TURN "{% endif %}{% endfor %}" CHATML_ASK},
    {"llama2",
     SPLIT "{% for m in talk %}" MUST_ALTERNATE
     "{% set content = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' + m.content if has_system and loop.first else m.content %}"
     "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
     "{% elif m.role == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"},
    {"llama3",
     "{% for m in messages %}{{ bos_token if loop.first }}{{ " LLAMA3_HEADER " + m.content | trim + '<|eot_id|>' }}{% endfor %}" LLAMA3_ASK},
    {"llama3.1",
     SPLIT "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
           "Today Date: {{ date_string | default('26 Jul 2024') }}\n\n{{ messages[0].content | trim if has_system }}<|eot_id|>"
           "{% for m in talk %}{% if m.role in ['tool', 'ipython'] %}{{ raise_exception('no tool messages by this template') }}{% endif %}"
           "{{ " LLAMA3_HEADER " + m.content | trim + '<|eot_id|>' }}{% endfor %}" LLAMA3_ASK},
    {"gemma",
     SPLIT "{{ bos_token }}{% for m in talk %}" MUST_ALTERNATE
     GEMMA_TURN("{{ messages[0].content + '\\n\\n' if has_system and loop.first }}") "{% endfor %}" GEMMA_ASK},
    {"gemma2",
     "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system message by this template') }}{% endif %}"
     "{% for m in messages %}" MUST_ALTERNATE GEMMA_TURN("") "{% endfor %}" GEMMA_ASK},
    {"phi3", PHI3("")},
    {"phi3.5", PHI3(" and m.content")},
    {"phi3-first",
     "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}" TURN("<|user|>\\n", "<|end|>\\n<|assistant|>\\n")
     "{% elif m.role == 'assistant' %}" TURN("", "<|end|>\\n") "{% endif %}{% endfor %}"},
    {"mistral", INST("[INST]", "[/INST]", "m.content + eos_token", "last")},
    {"mistral-v0.1", INST_OLD(" + ' '")},
    {"mistral-v0.2", INST_OLD("")},
    {"mistral-v1", INST(" [INST] ", " [/INST]", "' ' + m.content + eos_token", "first")},
    {"mistral-v3", INST("[INST] ", "[/INST]", "' ' + m.content | trim + eos_token", "last")},
};
const size_t pd__n_chat_builtins = sizeof pd__chat_builtins / sizeof *pd__chat_builtins;

const pd__chat_builtin *pd__chat_find(const char *name, size_t len) {
    for (size_t i = 0; i < pd__n_chat_builtins; i++) {
        const pd__chat_builtin *b = &pd__chat_builtins[i];
        if (strlen(b->name) == len && memcmp(b->name, name, len) == 0) return b;
    }
    return NULL;
}

const char *pd_chat_names(void) {
    return "chatml, smollm2, qwen1.5, qwen2, qwen2.5, llama2, llama3, llama3.1, gemma, gemma2, phi3, phi3.5, phi3-first, "
           "mistral, mistral-v0.1, mistral-v0.2, mistral-v1, mistral-v3";
}
