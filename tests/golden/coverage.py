#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""For every press of `pressd presses`: what is checked and how, and where it differs from kvpress on purpose.

    coverage.py --checks    the table of tests/golden/README.md
    coverage.py --differs   the table of compression/README.md
    coverage.py --elsewhere the one below it: files that are no press
    coverage.py --write     put all between their markers

Counted, not claimed: goldens are the cases in the recorded files of data/, the model's the presses that
check_presses.py is given, and the differences the `DIFFERS:` sentences of each file.  An error, and exit code 1, is
a press without any golden of kvpress and not in NO_GOLDEN, a difference without a test in DIFFERS_TESTS or (of a file
that is no press) ELSEWHERE, and a test named here that does not exist.  The cli suite compares the tables.  Standard
library only.
"""
import glob
import gzip
import json
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
DATA = os.path.join(HERE, "data")

# Why a press has no golden of its own, and what stands in for it.
NO_GOLDEN = {"kv_compress": ("not in kvpress", "pages_are_the_cheapest"),
             "eigen_attention": ("not in kvpress", "what_is_lost_is_what_the_basis_misses"),
             "sals": ("not in kvpress", "tokens_are_those_of_the_highest_scores"),
             "hcattention": ("not in kvpress", "steps_equal_the_plain_ones"),
             "quest": ("not in kvpress", "pages_are_those_of_the_highest_bounds"),
             "prefill_decoding": ("does nothing itself: sends its presses to their places", "spellings_are_one")}

# Which tests would fail without the difference; one or more for each press that differs.
DIFFERS_TESTS = {
    "adakv": ["adakv_shares_a_layer_unevenly", "pressed_equals_the_masked_reference"],
    "cap": ["cap_is_the_formula"],
    "block": ["children_are_chosen_by_what_they_can", "block_is_the_plain_choice_of_a_local_score"],
    "cam": ["cam_draws_are_seeded", "children_are_chosen_by_what_they_can"],
    "chunk": ["chunk_queries_stand_where_they_are", "chunks_have_no_sinks_of_their_own", "chunks_cover_the_text"],
    "compactor": ["each_says_what_it_can"],
    "composed": ["composed_windows_stay_in_place", "composed_hands_on_what_it_gets"],
    "critical_adakv": ["critical_adakv_weighs_by_the_effect"],
    "cur": ["cur_of_nothing"],
    "decoding": ["views_while_decoding_are_true", "recent_queries_are_as_many_as_asked", "decoding_equals_the_masked_reference"],
    "dms": ["dms_equals_the_masked_reference", "dms_protects_and_leaves_the_newest"],
    "duo_attention": ["duo_protects_and_counts"],
    "eigen_attention": ["bytes_fall_by_the_rank", "what_is_lost_is_what_the_basis_misses", "heads_have_their_bases",
                        "a_budget_gives_each_layer_its_rank", "a_budget_for_both_is_shared_by_both", "few_bits_go_along_for_values"],
    "expected_attention": ["expected_attention_is_the_formula"],
    "fastkvzip": ["gates_cut_all_layers_at_one_score"],
    "finch": ["finch_keeps_the_question"],
    "hcattention": ["steps_equal_the_plain_ones", "bytes_fall_by_the_codes", "steps_equal_plain_ones_over_decoded_keys"],
    "kv_compress": ["whole_pages_hold_the_budget", "slots_stay_in_order"],
    "kvcompose": ["kvcompose_joins_rows_groups_and_heads", "deferred_presses_share_one_budget"],
    "kvgrad": ["kvzip_is_the_most_looked_at", "deferred_presses_share_one_budget", "few_bits_come_near"],
    "kvzip": ["kvzip_is_the_most_looked_at", "deferred_presses_share_one_budget", "replays_model.py: class Behind(Tokenizer)"],
    "lagkv": ["lagkv_of_one_token"],
    "leverage": ["sketches_follow_seed_and_layer"],
    "lukv": ["lukv_keeps_within_a_count"],
    "merging": ["merging_is_the_formula"],
    "per_layer": ["per_layer_takes_its_layers_ratio", "layers_keep_what_they_are_told"],
    "prefill_decoding": ["spellings_are_one", "company_and_threads_change_nothing"],
    "quest": ["pages_are_those_of_the_highest_bounds", "bounds_hold_for_what_is_stored"],
    "random": ["random_is_seeded", "random_eviction_keeps_the_prompt"],
    "restorekv": ["added_tokens_equal_the_masked_reference", "without_eviction_nothing_is_added", "later_presses_leave_what_was_added"],
    "sals": ["bytes_fall_by_the_joint_rank", "reads_are_counted", "all_numbers_of_all_tokens_lose_nothing", "values_take_any_type"],
    "simlayerkv": ["children_are_chosen_by_what_they_can"],
    "streaming_llm": ["streaming_keeps_both_ends"],
    "think": ["bytes_fall_by_the_channels"],
}

# The same for files that are no press: a unit test, or a file (of tests/golden, or by its whole path) and a word in it.
ELSEWHERE = {
    "compression/calibrate_gate.c": ["only_shown_layers_are_trained"],
    "compression/calibrate_repeat.c": ["calibrate.py: p.weights[i][:, again:, first:first + n]"],
    "compression/global.c": ["every_head_keeps_a_slot_of_one_budget"],
    "engine/jinja/eval.c": ["hostile_templates_end"],
    "engine/jinja/filters.c": ["one_letter_stays_one"],
    "engine/model/rope.c": ["arch_models.py: phi3-short"],
    "server/responses.c": ["tests/http/test_tools.py: test_responses"],
}


def registry():
    binary = os.environ.get("PRESSD_BIN") or os.path.join(TOP, "build", "server", "pressd")
    return json.loads(subprocess.run([binary, "presses", "--json"], capture_output=True, text=True, check=True).stdout)


def inside(text):
    """The press names in a text form."""
    return {n for n in re.findall(r"(?:^|[(,])([a-z_]+)(?=[:(,)@]|$)", text)}


def counted(texts):
    """press -> (cases of its own, cases in which it stands inside another)"""
    out = {}
    for t in texts:
        first = re.match(r"[a-z_]+", t).group()
        for name in inside(t) | {first}:
            own, within = out.get(name, (0, 0))
            out[name] = (own + (name == first), within + (name != first))
    return out


def lines_of(name, word):
    with open(os.path.join(DATA, name), "rb") as f:
        return [m.decode() for m in re.findall(word.encode() + rb" [0-9 .]+ ([a-z_]+\S*)\n", f.read())]


def model_texts():
    out = []
    for path in sorted(p for kind in ("presses", "replays", "gates", "restore") for p in glob.glob(os.path.join(DATA, kind + "_*.json.gz"))):
        for prompt in json.loads(gzip.open(path).read())["prompts"]:
            for c in prompt["cases"] if "cases" in prompt else prompt["presses"]:
                out.append(c if isinstance(c, str) else c["press"])
    return out


def tests():
    """unit test -> its file"""
    found = {}
    for path in sorted(glob.glob(os.path.join(TOP, "tests", "unit", "test_*.c"))):
        with open(path, encoding="utf-8") as f:
            for name in re.findall(r"^static void (\w+)\(void \*\*state\)", f.read(), re.M):
                found[name] = os.path.basename(path)
    return found


def marked():
    """The files of the tree that say DIFFERS, but tests."""
    paths = [p for top in ("compression", "config", "engine", "server") for kind in "ch"
             for p in glob.glob(os.path.join(TOP, top, "**", "*." + kind), recursive=True)]
    return sorted(os.path.relpath(p, TOP) for p in paths if "DIFFERS" in open(p, encoding="utf-8").read())


def exists(test, known):
    name, _, word = test.partition(": ")
    if not word:
        return name in known
    path = os.path.join(TOP if "/" in name else HERE, name)
    return os.path.exists(path) and word in open(path, encoding="utf-8").read()


def differences(path):
    """The DIFFERS sentences of a file."""
    with open(os.path.join(TOP, path), encoding="utf-8") as f:
        text = f.read()
    out = []
    for comment in re.findall(r"/\*.*?\*/", text, re.S):
        plain = re.sub(r"\n \*(?: |/|$)?", "\n", comment)
        for part in re.findall(r"DIFFERS:? (.*?)(?=DIFFERS|\nCost:|\n\n|\Z)", plain, re.S):
            out.append(re.sub(r" :", ":", re.sub(r"\s+", " ", part)).strip(" */").rstrip("."))
    return out


def upper(sentence):
    """With a capital, unless it begins with a name of ours."""
    first = sentence.split()[0]
    return sentence if "_" in first else sentence[0].upper() + sentence[1:]


def number(pair):
    own, within = pair
    return f"{own}" + (f" + {within} inside" if within else "") if own or within else ""


def collect():
    wrong, presses, known = [], registry(), tests()
    names = [p["name"] for p in presses]
    unit, model = counted(lines_of("presses_unit.bin", "case") + lines_of("press_data.bin", "case")), counted(model_texts())
    walks = counted(lines_of("decode_walk.bin", "walk"))
    zero = (0, 0)
    checks = ["| press | cases of kvpress, small inputs | cases of kvpress on real models | walks of kvpress | rules for all |", "|---|---|---|---|---|"]
    for n in names:
        if unit.get(n, zero)[0] + model.get(n, zero)[0] + walks.get(n, zero)[0]:
            if n in NO_GOLDEN:
                wrong.append(f"{n} has goldens and stands in NO_GOLDEN")
            row = [number(d.get(n, zero)) for d in (unit, model, walks)]
        elif n in NO_GOLDEN:
            row = [f"none: {NO_GOLDEN[n][0]} (`{NO_GOLDEN[n][1]}`)", "", ""]
        else:
            wrong.append(f"{n}: no golden of kvpress, and no reason in NO_GOLDEN")
            row = ["", "", ""]
        checks.append(f"| `{n}` | " + " | ".join(row) + " | every_press_keeps_its_promises |")
    differs = ["| press | DIFFERS | tests |", "|---|---|---|"]
    for n in names:
        some = differences(f"compression/{n}.c")
        if bool(some) != (n in DIFFERS_TESTS):
            wrong.append(f"{n}: {'a difference without a test' if some else 'no DIFFERS in its file any more'}; see DIFFERS_TESTS")
        if some:
            where = ", ".join(f"`{t}`" for t in DIFFERS_TESTS.get(n, []))
            differs.append(f"| `{n}` | " + " — ".join(upper(d) for d in some).replace("|", "\\|") + f". | {where} |")
    others = [p for p in marked() if p not in [f"compression/{n}.c" for n in names]]
    wrong += [f"{p}: {'a difference without a test' if p in others else 'no DIFFERS any more'}; see ELSEWHERE"
              for p in sorted(set(others) ^ set(ELSEWHERE))]
    elsewhere = ["| file | DIFFERS | tests |", "|---|---|---|"]
    for p in others:
        where = ", ".join(f"`{t.split(': ')[0]}`" for t in ELSEWHERE.get(p, []))
        elsewhere.append(f"| `{p}` | " + " — ".join(upper(d) for d in differences(p)).replace("|", "\\|") + f". | {where} |")
    used = [t for table in (DIFFERS_TESTS, ELSEWHERE) for some in table.values() for t in some] + [t for _, t in NO_GOLDEN.values()]
    wrong += [f"there is no test {t}" for t in used + ["every_press_keeps_its_promises"] if not exists(t, known)]
    wrong += [f"there is no press {n}" for n in (*NO_GOLDEN, *DIFFERS_TESTS) if n not in names]
    return {"checks": checks, "differs": differs, "elsewhere": elsewhere}, wrong


PLACES = {"checks": "tests/golden/README.md", "differs": "compression/README.md", "elsewhere": "compression/README.md"}


def between(name, text, new=None):
    m = re.search(f"(<!-- {name}: tests/golden/coverage.py --{name} -->\n)(.*?)(<!-- end of {name} -->)", text, re.S)
    if not m:
        raise ValueError(f"{PLACES[name]} has lost its markers of {name}")
    return m.group(2) if new is None else text[:m.start(2)] + new + text[m.end(2):]


def main():
    tables, wrong = collect()
    tables = {name: "\n".join(rows) + "\n" for name, rows in tables.items()}
    for arg in sys.argv[1:]:
        if arg == "--write":
            for name, path in PLACES.items():
                path = os.path.join(TOP, path)
                with open(path, encoding="utf-8") as f:
                    text = between(name, f.read(), tables[name])
                with open(path, "w", encoding="utf-8") as f:
                    f.write(text)
        elif arg[2:] in tables:
            print(tables[arg[2:]], end="")
        else:
            sys.exit(f"unknown option {arg}; {__doc__}")
    for w in wrong:
        print(f"coverage.py: {w}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
