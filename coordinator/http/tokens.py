"""`POST /tokenize` and `POST /detokenize`, as vLLM has them."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from coordinator.http.face import Face, client_of, face
from coordinator.http.schema import DetokenizeBody, TokenizeBody
from paceline.errors import InvalidInput

router = APIRouter()


@router.post("/tokenize", response_model=None)
async def tokenize(request: Request, body: TokenizeBody, it: Annotated[Face, Depends(face)]) -> JSONResponse:
    it.check_model(body.model)
    prompt = it.prompt(
        body.prompt,
        body.messages,
        add_generation_prompt=body.add_generation_prompt,
        more=body.chat_template_kwargs,
    )
    is_plain = body.messages is None
    add = is_plain if body.add_special_tokens is None else body.add_special_tokens
    token_ids = await it.service.tokenize(prompt, client=client_of(request), add_special_tokens=add)

    def answer() -> JSONResponse:
        told: dict[str, Any] = {
            "count": len(token_ids),
            "max_model_len": it.service.max_model_len,
            "tokens": token_ids,
        }
        if body.return_token_strs:
            told["token_strs"] = it.service.tokenizer.pieces(token_ids)
        return JSONResponse(told)

    return await asyncio.to_thread(answer)  # there may be millions of them


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, it: Annotated[Face, Depends(face)]) -> dict[str, str]:
    it.check_model(body.model)
    most = it.service.max_model_len
    if len(body.tokens) > most:
        fix = f"at most {most} fit the context: send fewer at a time"
        raise InvalidInput("tokens", f"{len(body.tokens)} tokens", fix)
    it.service.check_token_ids("tokens", body.tokens)
    return {"prompt": await asyncio.to_thread(it.service.tokenizer.decode_long, body.tokens)}
