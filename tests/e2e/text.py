# SPDX-License-Identifier: Apache-2.0
"""Fixed prompts: prose of any length that does not repeat itself, and a needle to hide in it."""

SUBJECT = ("the ferryman", "a clerk from the mill", "our teacher", "the younger sister", "the doctor", "a tall stranger",
           "the gardener", "an old sailor", "the baker's boy", "the surveyor", "my uncle", "the postmistress", "a quiet child")
VERB = ("counted", "carried", "sold", "repaired", "remembered", "drew", "hid", "found", "weighed", "described", "washed")
OBJECT = ("eleven blue bottles", "the broken clock", "a map of the marshes", "two sacks of barley", "the letters from abroad",
          "a cage of finches", "the church accounts", "an iron key", "the last of the apples", "a box of lenses",
          "three coils of rope", "the captain's chair", "a ledger bound in green", "the lamp from the harbour",
          "a photograph of the bridge", "the measuring chain", "some bread and a knife")
PLACE = ("behind the chapel", "at the edge of the wood", "in the upper room", "on the quay", "beside the frozen canal",
         "under the arches", "near the toll house", "across the square", "at the turn of the road")
TIME = ("before breakfast", "on the second Sunday of March", "while it rained", "as the bells began", "in the winter of 1911",
        "after the fair", "when nobody was looking")
LINK = ("Later,", "Meanwhile,", "To everyone's surprise,", "That evening,", "As far as I know,")


def prose(sentences, start=0):
    """The same text every time; `start` gives another text.  A sentence is 15 to 20 tokens."""
    out = []
    for i in range(start, start + sentences):
        n = (i * 2654435761) >> 3  # spread the choices; no pattern a model could latch on to
        parts = [SUBJECT[n % 13], VERB[n // 13 % 11], OBJECT[n // 143 % 17], PLACE[n // 2431 % 9], TIME[n // 21879 % 7]]
        lead = LINK[n // 7 % 5] + " " if i % 3 == 1 else ""
        text = lead + " ".join(parts)
        out.append(text[0].upper() + text[1:] + ".")
    return " ".join(out)


NEEDLE = "The secret number of the lighthouse is 7304."
QUESTION = "What is the secret number of the lighthouse?"
ANSWER = "7304"


def haystack(sentences, at=0.3):
    cut = int(sentences * at)
    return f"{prose(cut)} {NEEDLE} {prose(sentences - cut, cut)}"
