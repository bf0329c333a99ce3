# /// script
# dependencies = ["dspy"]
# [tool.driver]
# client = "DSPy"
# apis = ["chat", "responses"]
# ///
"""Its LM by itself, and with a signature whose outputs are a JSON object."""

import dspy
from drive import API, CAPITAL, FORM, KEY, MODEL, TOO_LONG, V1, Lacks, feature, main, refused


def model(name=MODEL, key=KEY, **fields):
    return dspy.LM(f"openai/{name}", api_base=V1, api_key=key, model_type=API, cache=False, num_retries=0, **fields)


def text_of(answer):
    return answer["text"] if isinstance(answer, dict) else answer


@feature
def plain():
    return text_of(model()(CAPITAL)[0])


@feature
def structured():
    if API == "chat":
        raise Lacks("it asks for JSON in words only")
    with dspy.context(lm=model(), adapter=dspy.JSONAdapter()):
        told = dspy.Predict("question -> city: str, degrees: int")(question=FORM)
    return {"city": told.city, "degrees": told.degrees}


@feature
def usage():
    lm = model()
    lm(CAPITAL)
    used = lm.history[-1]["usage"]
    return [used["prompt_tokens"], used["completion_tokens"], used["prompt_tokens_details"]["cached_tokens"]]


@feature
def overflow():
    return refused(lambda: model()(TOO_LONG))


@feature
def unknown_model():
    return refused(lambda: model("nobody")(CAPITAL))


@feature
def wrong_key():
    return refused(lambda: model(key="wrong")(CAPITAL))


main()
