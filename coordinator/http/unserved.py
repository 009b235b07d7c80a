"""Fields that OpenAI or vLLM have and that are not served, each with the values that ask for nothing, and why.

To ignore one that asks for something would be a lie, and to call it unknown would send its user looking for a typing
error. `null` asks for nothing, whatever the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline.errors import InvalidInput

_CONSTRAINED = "constrained output is not served"
_TOOLS = "tools are not served"
_BEAMS = "there is no beam search"
_TEXT_ONLY = "only text is served"

REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "allowed_token_ids": ((), "the vocabulary cannot be cut for a request; logit_bias can favour tokens"),
    "audio": ((), _TEXT_ONLY),
    "bad_words": (([],), "words cannot be forbidden; logit_bias can forbid tokens"),
    "cache_salt": ((), "all requests share the prefix cache"),
    "chat_template": ((), "the server has one, by --chat-template"),
    "continue_final_message": (
        (False,),
        "the assistant's next message is a new one; /v1/completions goes on with any text",
    ),
    "detokenize": ((True,), "text is always told"),
    "documents": (([],), "chat_template_kwargs can hand them to the target's chat template"),
    "echo": ((False,), "the prompt is not sent back"),
    "function_call": (("none",), _TOOLS),
    "functions": (([],), _TOOLS),
    "guided_choice": ((), _CONSTRAINED),
    "guided_decoding_backend": ((), _CONSTRAINED),
    "guided_grammar": ((), _CONSTRAINED),
    "guided_json": ((), _CONSTRAINED),
    "guided_regex": ((), _CONSTRAINED),
    "guided_whitespace_pattern": ((), _CONSTRAINED),
    "include_reasoning": ((True,), "reasoning is part of the text"),
    "include_stop_str_in_output": ((False,), "output ends before a stop string"),
    "kv_transfer_params": (({},), "caches stay where they are"),
    "length_penalty": ((1, 1.0), _BEAMS),
    "logits_processors": (([],), "no code is taken from clients"),
    "mm_processor_kwargs": (({},), _TEXT_ONLY),
    "modalities": ((["text"],), _TEXT_ONLY),
    "parallel_tool_calls": ((True, False), _TOOLS),
    "prediction": ((), "drafts come from the drafters"),
    "priority": ((0,), "requests are served first come, first served"),
    "prompt_cache_retention": (("in_memory",), "the prefix cache keeps what there is room for"),
    "prompt_embeds": ((), "a prompt is text or token ids"),
    "prompt_logprobs": ((), "only output tokens have log-probabilities"),
    "reasoning_effort": ((), "the target's chat template decides; see chat_template_kwargs"),
    "response_format": (({"type": "text"},), _CONSTRAINED),
    "return_token_ids": ((False,), "POST /tokenize and gRPC tell token ids"),
    "return_tokens_as_token_ids": ((False,), "tokens are told as text, and for chats as bytes"),
    "service_tier": (("auto", "default"), "there is one tier"),
    "spaces_between_special_tokens": ((True,), "the tokenizer decides"),
    "store": ((False,), "nothing is stored"),
    "structured_outputs": ((), _CONSTRAINED),
    "suffix": (("",), "text is only written after the prompt"),
    "tool_choice": (("none", "auto"), _TOOLS),
    "tools": (([],), _TOOLS),
    "truncate_prompt_tokens": ((), "a prompt is never cut"),
    "use_beam_search": ((False,), _BEAMS),
    "verbosity": (("medium",), "the target knows none; ask for it in the prompt"),
    "vllm_xargs": (({},), "there are no plug-ins that would read them"),
    "web_search_options": ((), "nothing is looked up"),
}


def without_what_asks_for_nothing(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without the fields of this file, and without `null`. Raises InvalidInput for what asks for something."""
    asking = {name: value for name, value in body.items() if value is not None}
    for name in asking.keys() & REFUSED.keys():
        neutral, reason = REFUSED[name]
        # 0 == False and 1 == True in Python, but not in JSON.
        if not any(type(asking[name]) is type(one) and asking[name] == one for one in neutral):
            raise InvalidInput(name, asking[name], f"is not supported: {reason}; leave it out")
    return {name: value for name, value in asking.items() if name not in REFUSED}
